//! What happens every day to a service that runs for long: a source behind a server, a proxy or a company's
//! CA, a dead name server, a wrong clock, a crowd. The real binary, over real sockets.

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::{
    Connection, Say, Server, Source, eventually, folder, free_address, listen, make_certificate,
    own_address, read_head, skipped,
};
use nix::sys::signal::Signal;

/// A command that runs the server with this environment and these options.
fn command(environment: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Server::command();
    command.envs(environment.iter().copied());
    // A fetch may take two intervals: enough on a loaded machine.
    command.args(["--listen", "127.0.0.1:0", "--interval", "500ms"]).args(arguments);
    command
}

fn start(environment: &[(&str, &str)], source_url: &str) -> Server {
    Server::run(&mut command(environment, &["--source-url", source_url, "--price-at", "/price"]))
}

const PRICE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"price\":1}";

/// Waits for a price, which a server that cannot reach its source never has.
fn await_price(server: &Server) -> f64 {
    eventually("a price arrives", || server.get("/price").status == 200);
    server.get("/price").json()["price"].as_f64().unwrap()
}

/// How many kinds of outcome the fetches of a server had.
fn outcomes(server: &Server) -> usize {
    let metrics = server.get("/metrics").body;
    metrics.lines().filter(|line| line.starts_with("btc_ticker_fetches_total{")).count()
}

// ------------------------------------------------------------------------------- the source

#[test]
fn a_source_that_closes_kept_connections_costs_no_fetch() {
    // It answers a request without saying that it will close, and closes when the next one arrives.
    let source = listen(|connection| {
        let mut connection = Connection(BufReader::new(connection));
        read_head(&mut connection.0);
        let _ = connection.0.get_mut().write_all(PRICE);
        read_head(&mut connection.0);
    });
    let server = start(&[], &format!("http://{source}/"));
    eventually("ten fetches", || server.fetches("ok") >= 10.0);
    assert_eq!(outcomes(&server), 1, "no fetch failed");
}

#[test]
fn a_fetch_that_takes_longer_than_an_interval_skips_a_tick_and_succeeds() {
    let source = Source::start();
    source.ration();
    source.allow(1);
    let server = Server::start(&source, &["--interval", "4s"]);
    let request = |n: usize| source.requests().get(n).copied();
    eventually("the second fetch takes 5 s", || {
        request(1).is_some_and(|begun| begun.elapsed() > Duration::from_secs(5))
    });
    source.allow(u64::MAX);
    eventually("a fetch after it", || request(2).is_some());
    let pause = request(2).unwrap() - request(1).unwrap();
    assert!(pause > Duration::from_secs(6), "not at the next tick but one: {pause:?}");
    assert_eq!(outcomes(&server), 1, "no fetch failed");
}

#[test]
fn a_dead_name_server_delays_prices_and_does_not_stop_them() {
    let (dead, live) = (own_address(53), own_address(54));
    let may_mount = Command::new("unshare").args(["--mount", "true"]).status();
    let (Ok(_dead), Ok(answering), true) = (
        UdpSocket::bind((dead, 53)),
        UdpSocket::bind((live, 53)),
        may_mount.is_ok_and(|status| status.success()),
    ) else {
        return skipped("a dead name server was not tested: needs unshare (util-linux), as root");
    };
    thread::spawn(move || answer_names(&answering));
    let source = Source::start();
    let url = format!("http://price.test:{}/ticker", source.address.port());
    let folder = folder("name-servers");
    let start = |servers: &[Ipv4Addr]| {
        let lines: Vec<String> = servers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
        let file = folder.join(servers[1].to_string());
        fs::write(&file, lines.concat()).unwrap();
        // A mount namespace of its own: no other process sees this file.
        let line = format!(
            "exec unshare --mount bash -c 'mount --bind \"{}\" /etc/resolv.conf && exec \"$0\" \"$@\"' \
             \"$0\" \"$@\"",
            file.display()
        );
        Server::start_by_shell(&line, &source, &["--interval", "5s", "--source-url", &url])
    };
    let (first_dead, all_dead) = (start(&[dead, live]), start(&[dead, dead]));
    await_price(&first_dead);
    let timed_out = || all_dead.fetches("name look-up timed out");
    eventually("the reason names the look-up", || timed_out() >= 1.0);
    eventually("so does the log", || all_dead.log().contains(": name look-up timed out"));
}

/// A name server that knows one address, of all names.
fn answer_names(socket: &UdpSocket) {
    let mut query = [0; 512];
    while let Ok((_, client)) = socket.recv_from(&mut query) {
        // After the name, which ends in a zero, come its type and class.
        let name = query[12..].iter().position(|byte| *byte == 0).unwrap();
        let end = 12 + name + 5;
        let is_ipv4 = query[end - 3] == 1;
        let counts = [0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0];
        let mut answer = [&query[..2], &counts, &query[12..end]].concat();
        if is_ipv4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&answer, client).unwrap();
    }
}

// ------------------------------------------------------------------------------- proxies

/// Serves a connection as a SOCKS5 proxy, and as the source behind it. Returns the host that was requested.
fn proxy(mut client: TcpStream) -> io::Result<String> {
    let read = |mut client: &TcpStream, length: u8| {
        let mut bytes = vec![0; length.into()];
        client.read_exact(&mut bytes).map(|()| bytes)
    };
    let methods = read(&client, 2)?[1];
    read(&client, methods)?;
    client.write_all(&[5, 0])?;
    let host = match read(&client, 4)?[3] {
        1 => <[u8; 4]>::try_from(read(&client, 4)?).map(Ipv4Addr::from).unwrap().to_string(),
        3 => {
            let length = read(&client, 1)?[0];
            String::from_utf8(read(&client, length)?).unwrap()
        }
        other => panic!("address type {other}"),
    };
    read(&client, 2)?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    read_head(&mut BufReader::new(&client));
    client.write_all(PRICE)?;
    Ok(host)
}

#[test]
fn a_socks_proxy_is_used_by_every_variable_and_resolves_names_with_socks5h() {
    let source = Source::start();
    let direct = source.url();
    for (variable, scheme, url, host) in [
        ("ALL_PROXY", "socks5", direct.as_str(), "127.0.0.1"),
        // Only the proxy can resolve this name.
        ("ALL_PROXY", "socks5h", "http://price.invalid/ticker", "price.invalid"),
        ("all_proxy", "SOCKS5H", "http://price.invalid/ticker", "price.invalid"),
        ("HTTPS_PROXY", "socks5", &direct, "127.0.0.1"),
        ("https_proxy", "socks5h", "http://price.invalid/ticker", "price.invalid"),
        ("HTTP_PROXY", "socks5", &direct, "127.0.0.1"),
        ("http_proxy", "socks5h", "http://price.invalid/ticker", "price.invalid"),
    ] {
        let hosts: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = hosts.clone();
        let address = listen(move |client| kept.lock().unwrap().extend(proxy(client)));
        let server = start(&[(variable, &format!("{scheme}://{address}"))], url);
        eventually("three prices", || server.fetches("ok") >= 3.0);
        let hosts = hosts.lock().unwrap();
        assert!(hosts.iter().all(|asked| asked == host), "{variable} {scheme}: {hosts:?}");
    }
    assert_eq!(source.requests().len(), 0, "every fetch went through the proxy");
}

#[test]
fn only_no_proxy_and_the_demo_bypass_a_proxy() {
    let source = Source::start();
    // Nothing listens there.
    let dead = format!("socks5://{}", free_address());
    for proxy in [dead.as_str(), &dead.replace("socks5", "http")] {
        let server = start(&[("ALL_PROXY", proxy)], &source.url());
        eventually("the proxy is dead", || server.fetches("connection failed") >= 1.0);
        assert_eq!(source.requests().len(), 0, "no way around it");
    }
    for variable in ["NO_PROXY", "no_proxy"] {
        let environment = [("ALL_PROXY", dead.as_str()), (variable, "other.example,127.0.0.1")];
        await_price(&start(&environment, &source.url()));
    }
    let mut demo = command(&[("ALL_PROXY", &dead)], &["--source", "demo"]);
    await_price(&Server::run(&mut demo));
}

#[test]
fn a_proxy_that_cannot_be_used_is_refused_at_the_start() {
    for (variable, value) in [
        ("ALL_PROXY", "socks9://secret@127.0.0.1:1080"),
        ("https_proxy", "ftp://secret@127.0.0.1"),
        ("HTTP_PROXY", "http://"),
        ("http_proxy", "::::"),
    ] {
        let error = Server::fails(&mut command(&[(variable, value)], &["--source", "coinbase"]), 2);
        assert!(error.contains(variable) && error.contains("socks5h://"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let source = Source::start();
    await_price(&start(&[("ALL_PROXY", ""), ("http_proxy", "")], &source.url()));
}

// ------------------------------------------------------------------------------- certificates

#[test]
fn a_certificate_of_a_private_ca_is_trusted_if_the_system_trusts_it() {
    let Some(secure) = SecureSource::start() else { return };
    let ca = secure.folder.join("ca.pem").display().to_string();
    let start = |environment: &[(&str, &str)], host: &str| {
        let url = format!("https://{host}:{}/price", secure.address.port());
        // The first fetch must not time out: the log explains only the first failure.
        let options = ["--interval", "3s", "--source-url", &url, "--price-at", "/price"];
        Server::run(&mut command(environment, &options))
    };
    let trusting = [("SSL_CERT_FILE", ca.as_str())];
    assert_eq!(await_price(&start(&trusting, "127.0.0.1")), 5.0);
    // A CA that is not known, and a certificate of another host.
    for server in [start(&[], "127.0.0.1"), start(&trusting, "localhost")] {
        eventually("it is refused again", || server.fetches("certificate refused") >= 2.0);
        assert_eq!(server.get("/price").status, 503);
        let log = server.stop_cleanly(Signal::SIGTERM);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("ertificate:")).collect();
        assert_eq!(lines.len(), 1, "once for an outage: {log}");
        let says = |word: &str| lines[0].contains(word);
        assert!(says("certificate refused") && says("SSL_CERT_FILE"), "{log}");
        assert!(!says("--source demo"), "{log}");
    }
}

/// A source whose certificate, for 127.0.0.1, a CA of its own has signed. The CA is `ca.pem`.
struct SecureSource {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl SecureSource {
    /// `None` if openssl is not installed.
    fn start() -> Option<SecureSource> {
        if Command::new("openssl").arg("version").output().is_err() {
            skipped("a private CA was not tested: openssl is not installed");
            return None;
        }
        let folder = folder("private-ca");
        make_certificate(&folder, "ca.key", "ca.pem", "-subj /CN=ca");
        let signed = "-CA ca.pem -CAkey ca.key -subj /CN=price -addext basicConstraints=CA:FALSE \
                      -addext subjectAltName=IP:127.0.0.1";
        make_certificate(&folder, "key.pem", "certificate.pem", signed);
        fs::write(folder.join("price"), "{\"price\":5}").unwrap();
        let address = free_address();
        let mut server = Command::new("openssl");
        server.args(["s_server", "-quiet", "-WWW", "-cert", "certificate.pem", "-key", "key.pem"]);
        server.args(["-accept", &address.to_string()]).current_dir(&folder);
        let child = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let secure = SecureSource { child: child.spawn().unwrap(), address, folder };
        eventually("openssl listens", || TcpStream::connect(address).is_ok());
        Some(secure)
    }
}

impl Drop for SecureSource {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ------------------------------------------------------------------------------- operation

/// Precedes the address of the management port in the log.
const ADMIN: &str = "health and metrics on http://";

#[test]
fn a_crowd_of_clients_cannot_starve_the_management_port() {
    let server = Server::start_with_limit("-n 128", &Source::start(), &["--admin", "127.0.0.1:0"]);
    let admin = server.logged_address(ADMIN);
    let get = |path: &str| Connection::to(admin).get(path);
    let most = get("/metrics").metric("btc_ticker_clients_max");
    let mut streams: Vec<_> = (0..most as usize).map(|_| server.stream("/stream")).collect();
    streams[0].update();
    let mut crowd = Vec::new();
    for _ in 0..30 {
        // Half a request each.
        for _ in 0..20 {
            let mut connection = server.connect();
            let _ = connection.write_all(b"GET /healthz HT");
            crowd.push(connection);
        }
        assert_eq!(get("/healthz").status, 200);
    }
    assert_eq!(get("/metrics").metric("btc_ticker_clients"), most);
}

#[test]
fn health_and_metrics_are_served_at_the_management_port_alone() {
    let source = Source::start();
    let server = Server::start(&source, &["--admin", "127.0.0.1:0"]);
    let admin = server.logged_address(ADMIN);
    let get = |path: &str| Connection::to(admin).get(path);
    server.stream("/stream").update();
    for path in ["/healthz", "/metrics"] {
        let public = server.get(path);
        assert_eq!((public.status, get(path).status), (404, 200), "{path}");
        assert!(public.error().contains("--admin"));
    }
    for path in ["/", "/price", "/stream", "/history"] {
        let management = get(path);
        assert_eq!(management.status, 404, "{path}");
        assert!(management.error().contains("--listen"));
    }
    assert!(!server.get("/nowhere").error().contains("/metrics"));
    // The probe follows, by option and by variable.
    let (public, admin) = (server.address.to_string(), admin.to_string());
    let probe = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut probe = Server::command();
        probe.envs(environment.iter().copied()).arg("--check-health").args(arguments);
        probe.output().unwrap().status.code()
    };
    assert_eq!(probe(&[], &["--listen", &public, "--admin", &admin]), Some(0));
    assert_eq!(probe(&[("BTC_TICKER_ADMIN", &admin)], &["--listen", &public]), Some(0));
    assert_eq!(probe(&[], &["--listen", &public]), Some(1));
    // Old prices are no reason to restart the service.
    source.say(Say::Nothing);
    eventually("stale", || get("/healthz").json()["status"] == "stale");
    assert_eq!(probe(&[], &["--admin", &admin]), Some(0));
}

#[test]
fn the_log_says_how_long_updates_are_really_kept() {
    for (interval, retention, line) in [
        ("5s", "30m", "every 5s, kept for 30m"),
        ("5s", "2w", "every 5s, kept for 5d 18h 53m 20s"),
        ("15s", "2w", "every 15s, kept for 14d"),
        ("1500ms", "90m", "every 1s 500ms, kept for 1h 30m"),
        ("1ms", "366d", "every 1ms, kept for 1m 40s"),
        ("366d", "366d", "every 366d, kept for 366d"),
    ] {
        let server = Server::demo(&["--interval", interval, "--retention", retention]);
        await_price(&server);
        eventually(line, || server.log().contains(line));
    }
}

// ------------------------------------------------------------------------------- clocks

#[test]
fn a_client_continues_after_a_gap_when_a_wrong_clock_is_corrected() {
    let source = Source::start();
    // It was three days ahead and is right after a restart; it is an hour behind after a restart.
    for (before, after) in [("+3d", "+0"), ("+0", "-1h")] {
        let start = |clock, address: &str| Server::start_with_clock(clock, address, &source, &[]);
        let Some(server) = start(before, "127.0.0.1:0") else { return };
        let last = server.stream("/stream").update().id.unwrap();
        let address = server.address.to_string();
        drop(server);
        let server = start(after, &address).unwrap();
        server.stream("/stream").update();
        let mut client = server.resume(last);
        assert_eq!(client.named("gap")["since"].as_u64(), Some(last), "{before}, {after}");
        let mut updates = client.updates(3);
        // It reconnects once more, and misses nothing.
        let newest = updates[2].id.unwrap();
        assert!(newest < last);
        let mut client = server.resume(newest);
        updates.extend(client.updates(3));
        server.assert_complete(&updates);
    }
}

#[test]
fn a_clock_that_is_set_while_the_service_runs_costs_no_update() {
    let Some(faketime) = crate::common::faketime() else { return };
    let source = Source::start();
    let clock = folder("clock").join("offset");
    fs::write(&clock, "+0").unwrap();
    let file = clock.display();
    let line = format!(
        "{faketime} FAKETIME_TIMESTAMP_FILE=\"{file}\" FAKETIME_NO_CACHE=1 exec \"$0\" \"$@\""
    );
    let server = Server::start_by_shell(&line, &source, &[]);
    let mut stream = server.stream("/stream?since=0");
    let mut updates = stream.updates(3);
    for offset in ["-1h", "+3d", "+0"] {
        // At once, because the service reads it at any moment.
        let next = clock.with_extension("next");
        fs::write(&next, offset).unwrap();
        fs::rename(next, &clock).unwrap();
        updates.extend(stream.updates(10));
    }
    for pair in updates.windows(2) {
        assert_eq!(pair[1].price(), pair[0].price() + 1.0);
    }
    server.assert_complete(&updates);
}
