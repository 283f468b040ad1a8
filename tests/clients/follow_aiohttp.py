import asyncio, json
import aiohttp
from aiohttp_sse_client2.client import EventSource

async def follow():
    last = "0"
    while True:
        try:
            url, headers = "http://localhost:8080/stream", {"Last-Event-ID": last}
            async with EventSource(url, headers=headers) as events:
                async for event in events:
                    if event.type is None:  # a named event is no update
                        update = json.loads(event.data)
                        print(update["timestamp"], update["price"], flush=True)
                        last = event.last_event_id
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            pass
        await asyncio.sleep(1)

asyncio.run(follow())
