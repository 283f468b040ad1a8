import json, time
import requests, sseclient

last = "0"
while True:
    try:
        answer = requests.get(
            "http://localhost:8080/stream", headers={"Last-Event-ID": last}, stream=True, timeout=30
        )
        answer.raise_for_status()
        for event in sseclient.SSEClient(answer).events():
            if event.event == "message":
                update = json.loads(event.data)
                print(update["timestamp"], update["price"], flush=True)
                last = event.id
    except requests.RequestException:
        pass
    time.sleep(1)
