//! The service's output while nothing reads it: its standard streams are pipes that are full, as with a hung
//! log driver or a paused terminal, or closed.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write, pipe};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus, Stdio, id};
use std::thread;

use crate::common::{Say, Server, Source, eventually, free_address};
use btc_ticker::system::logging;
use nix::libc::O_NONBLOCK;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Fills a pipe to the last byte. A write to it blocks until the reader reads.
fn fill(writer: &PipeWriter) {
    // Reopened, because the flag belongs to the open file and the service must not inherit it.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filler = File::options().write(true).custom_flags(O_NONBLOCK).open(path).unwrap();
    while filler.write(&[b'\n'; 4096]).is_ok() {}
    while filler.write(b"\n").is_ok() {}
}

fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    fill(&writer);
    (reader, writer)
}

fn closed_pipe() -> PipeWriter {
    let (_, writer) = pipe().unwrap();
    writer
}

/// Starts the service with its log in this pipe.
fn start_with_log(writer: &PipeWriter, level: &str, source: &Source, more: &[&str]) -> Server {
    let log = format!("/proc/{}/fd/{}", id(), writer.as_raw_fd());
    let line = format!("RUST_LOG={level} exec \"$0\" \"$@\" 2>{log}");
    Server::start_by_shell(&line, source, more)
}

/// Waits until the process exits.
fn end_of(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the process exits", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn a_log_that_is_not_read_blocks_neither_prices_nor_the_shutdown() {
    let source = Source::start();
    let (_reader, writer) = pipe().unwrap();
    let mut server = start_with_log(&writer, "info", &source, &[]);
    let mut stream = server.stream("/stream");
    stream.update();
    fill(&writer);
    source.say(Say::status(500));
    while stream.named("status")["reason"] != "HTTP 500" {}
    source.say(Say::Prices);
    stream.updates(2);
    server.signal(Signal::SIGTERM);
    assert_eq!(end_of(&mut server.child).code(), Some(0));
}

#[test]
fn a_log_that_is_read_again_reports_the_number_of_dropped_lines() {
    let source = Source::start();
    let (reader, writer) = pipe().unwrap();
    let mut server = start_with_log(&writer, "debug", &source, &["--interval", "5ms"]);
    drop(writer);
    let dropped = || server.metric("btc_ticker_log_lines_dropped_total");
    eventually("lines are dropped", || dropped() > 0.0);
    source.say(Say::Nothing);
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    let report = lines.find(|line| line.contains("log lines because nothing read them")).unwrap();
    assert!(report.contains("ERROR"), "{report}");
    let number = report.split_whitespace().find_map(|word| word.parse().ok());
    assert!(number.is_some_and(|number: f64| number > 0.0), "{report}");
    server.signal(Signal::SIGTERM);
    assert!(lines.any(|line| line.contains("served 0 streams")), "the last line is flushed");
    assert_eq!(end_of(&mut server.child).code(), Some(0));
}

#[test]
fn the_service_starts_and_stops_while_nothing_reads_its_output() {
    let (_reader, full) = full_pipe();
    for output in [full, closed_pipe()] {
        let address = free_address().to_string();
        let command = || {
            let mut command = Server::command();
            command.args(["--source", "demo", "--listen", &address]);
            command.stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
            command
        };
        let mut server = command().spawn().unwrap();
        eventually("it listens", || TcpStream::connect(&address).is_ok());
        let refused = end_of(&mut command().spawn().unwrap());
        assert_eq!(refused.code(), Some(1), "the address is taken");
        kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(end_of(&mut server).code(), Some(0));
    }
}

#[test]
fn check_health_probes_the_service_and_does_not_depend_on_its_own_output() {
    let source = Source::start();
    source.ration();
    let server = Server::start(&source, &[]);
    let check = || {
        let mut command = Server::command();
        command.args(["--check-health", "--listen", &server.address.to_string()]);
        command
    };
    assert_eq!(check().output().unwrap().status.code(), Some(1), "there is no price yet");
    source.allow(u64::MAX);
    server.stream("/stream").update();
    let output = check().output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("\"status\":\"ok\""));
    let (_reader, full) = full_pipe();
    for stdout in [full, closed_pipe()] {
        let mut process = check().stdout(stdout).stderr(Stdio::null()).spawn().unwrap();
        assert_eq!(end_of(&mut process).code(), Some(0));
    }
}

#[test]
fn an_invalid_rust_log_changes_nothing() {
    // Two are reported, one could be the name of a crate.
    for (level, report) in [("btc_ticker=much", "'much'"), ("=3", "'3'"), ("infoo", "")] {
        let source = Source::start();
        let mut command = Server::command();
        command.env("RUST_LOG", level);
        let log = Server::poll(command, &source, &[]).stop_cleanly(Signal::SIGTERM);
        assert!(log.contains(report) && log.contains("INFO"), "{level}: {log}");
    }
}

#[test]
#[ignore = "run by a_panic_is_logged_and_never_blocks"]
fn a_thread_that_panics() {
    let _log = logging::start();
    let panics = thread::Builder::new().name("fragile".into());
    let joined = panics.spawn(|| panic!("this panic is part of a test")).unwrap().join();
    assert!(joined.is_err());
}

#[test]
fn a_panic_is_logged_and_never_blocks() {
    let this = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["log::a_thread_that_panics", "--exact", "--ignored", "--nocapture"]);
        command.stdout(Stdio::null());
        command
    };
    let (mut reader, writer) = pipe().unwrap();
    let mut process = this().stderr(writer).spawn().unwrap();
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert_eq!(end_of(&mut process).code(), Some(0));
    for word in ["ERROR", "fragile", "tests/log.rs:", "this panic is part of a test"] {
        assert!(log.contains(word), "{word} is not in {log:?}");
    }
    let (_reader, writer) = full_pipe();
    assert_eq!(end_of(&mut this().stderr(writer).spawn().unwrap()).code(), Some(0));
}
