//! A real nginx with `deploy/nginx.conf` in front of the real binary.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::common::{
    Connection, PATIENCE, Say, Server, Source, eventually, folder, free_address, make_certificate,
    own_address,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;
use ureq::tls::TlsConfig;

#[test]
fn the_proxy_limits_clients_and_refuses_what_the_service_need_not_see() {
    let Some(nginx) = nginx() else { return };
    let (source, silent) = (Source::start(), Source::start());
    silent.say(Say::Nothing);
    let (server, starting) = (Server::start(&source, &[]), Server::start(&silent, &[]));
    server.stream("/stream").update();
    let proxy = Proxy::start(nginx, &[server.address, starting.address]);
    let agent = agent();
    let status = |path: &str| status_of(agent.get(proxy.url(path)).call().unwrap());
    // One service has no price yet, so nginx retries with the other.
    (0..4).for_each(|_| assert_eq!(status("/price"), 200));
    assert_eq!(status("/"), 200);
    assert_eq!(status("/metrics"), 404);
    // nginx answers a body differently over HTTP/2, which ureq does not speak.
    for version in ["--http1.1", "--http2"] {
        let mut curl = Command::new("curl");
        curl.args(["-sk", version, "--data", &"x".repeat(2_000), &proxy.url("/price")]);
        let answer = String::from_utf8(curl.output().unwrap().stdout).unwrap();
        assert!(answer.starts_with(r#"{"error":"no request here has a body"#), "{answer}");
    }
    assert_refusals(&proxy);

    let plain = agent.get(format!("http://{}/stream?since=0", proxy.plain)).call().unwrap();
    assert_eq!(plain.status(), 301);
    let location = format!("https://{}/stream?since=0", proxy.plain.ip());
    assert_eq!(plain.headers()["Location"], location);

    let stream = || agent.get(proxy.url("/stream")).call().unwrap();
    let streams: Vec<_> = (0..100).map(|_| stream()).collect();
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(status_of(stream()), 429);
    assert_eq!(status("/price"), 429);
    drop(streams);
    eventually("places are free", || stream().status() == 200);

    server.stop(Signal::SIGKILL);
    // 503 if nginx tries the service without a price last.
    assert!([502, 503].contains(&status("/price")));
    starting.stop(Signal::SIGKILL);
    assert_eq!(status("/price"), 502);
    // A browser reconnects after a broken connection, but not after a 502.
    agent.get(proxy.url("/stream")).call().expect_err("a broken connection");
}

/// Asserts that each error of the proxy says what was wrong.
fn assert_refusals(proxy: &Proxy) {
    let long = "x".repeat(20_000);
    // Without TLS, which nginx checks last.
    for (request, status, words) in [
        ("GET /price HTTP/1.1\r\nHost: x".to_owned(), 400, "use https"),
        ("GET /stream HTTP/1.1\r\nHost: x".to_owned(), 400, "use https"),
        ("GET /price HTTP/1.1".to_owned(), 400, "not a valid HTTP request"),
        ("hello".to_owned(), 400, "not a valid HTTP request"),
        (format!("GET /price HTTP/1.1\r\nHost: x\r\nX: {long}"), 431, "header is too long"),
        (format!("GET /{long} HTTP/1.1\r\nHost: x"), 414, "path and the query are too long"),
        ("TRACE /price HTTP/1.1\r\nHost: x".to_owned(), 405, "method"),
        ("POST /price HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip".to_owned(), 501, "encoding"),
        ("GET /price HTTP/3.0\r\nHost: x".to_owned(), 505, "version of HTTP"),
    ] {
        let answer = Connection::to(proxy.secure).ask(&format!("{request}\r\n\r\n"));
        assert_eq!(answer.status, status, "{words}");
        assert_eq!(answer.header("Content-Type"), Some("application/json"), "{words}");
        assert!(answer.error().contains(words), "{words}: {}", answer.error());
    }
}

/// Returns the status. Asserts that an error of the proxy has the format of the service's errors.
fn status_of(mut response: Response<ureq::Body>) -> u16 {
    let status = response.status().as_u16();
    if status >= 400 {
        assert_eq!(response.headers()["Content-Type"], "application/json", "{status}");
        let text = response.body_mut().read_to_string().unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert!(json["error"].as_str().unwrap().len() > 20, "{status}: {text}");
    }
    status
}

/// Returns a client that accepts any certificate.
fn agent() -> Agent {
    let config = Agent::config_builder()
        .tls_config(TlsConfig::builder().disable_verification(true).build())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_per_read(Some(PATIENCE))
        .proxy(None);
    config.build().into()
}

/// nginx with the configuration of `deploy/`. Stopped on drop.
struct Proxy {
    child: Child,
    folder: PathBuf,
    plain: SocketAddr,
    secure: SocketAddr,
}

/// Returns the command that runs nginx. `None` if something is not installed: then the test is skipped.
fn nginx() -> Option<&'static str> {
    let exists = |program: &&str| Command::new(program).arg("-v").output().is_ok();
    let found = ["nginx", "/usr/sbin/nginx"].into_iter().find(exists);
    if let Some(nginx) = found.filter(|_| exists(&"openssl") && exists(&"curl")) {
        return Some(nginx);
    }
    crate::common::skipped(
        "deploy/nginx.conf was not tested: it takes nginx, openssl and curl \
         (on Debian: nginx-light openssl curl)",
    );
    None
}

impl Proxy {
    fn start(nginx: &str, services: &[SocketAddr]) -> Proxy {
        let folder = folder("nginx");
        std::fs::create_dir(folder.join("tls")).unwrap();
        make_certificate(&folder, "tls/key.pem", "tls/certificate.pem", "-subj /CN=localhost");
        let deployed = include_str!("../deploy/processes.conf");
        let tested = |it: &SocketAddr| deployed.replace("127.0.0.1:8080", &it.to_string());
        let processes: String = services.iter().map(tested).collect();
        std::fs::write(folder.join("processes.conf"), processes).unwrap();
        let own = |second| SocketAddr::from((own_address(second), free_address().port()));
        let (plain, secure) = (own(57), own(58));
        let mut config = include_str!("../deploy/nginx.conf").to_owned();
        for (deployed, tested) in [
            ("listen 80;", format!("listen {plain};")),
            ("listen 443 ssl", format!("listen {secure} ssl")),
            ("http {", format!("http {{\n{OWN_FILES}")),
        ] {
            assert_eq!(config.matches(deployed).count(), 1, "{deployed}");
            config = config.replace(deployed, &tested);
        }
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let mut command = Command::new(nginx);
        command.arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf"));
        command.args(["-e", "error.log", "-g", "daemon off; pid nginx.pid;"]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let proxy = Proxy { child, folder, plain, secure };
        // nginx writes the file after it has bound its ports.
        eventually("nginx listens", || proxy.folder.join("nginx.pid").exists());
        proxy
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.secure)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Not SIGKILL, which the workers would survive.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
        if thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("error.log")).unwrap_or_default();
            eprintln!("nginx logged:\n{log}");
        }
    }
}

/// Replaces the system's directories, which may belong to root.
const OWN_FILES: &str = "access_log off; client_body_temp_path body; proxy_temp_path proxy; \
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;";
