//! A restart loses nothing: with `--journal`, whatever a client has seen is still there when the
//! process is killed at any instant and started again.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use btc_ticker::system::unix_millis;
use common::{Event, PATIENCE, Say, Server, Source, Stream, assert_in_order, eventually, folder};
use nix::sys::signal::Signal;

fn start(address: &str, source: &Source, journal: &Path, arguments: &[&str]) -> Server {
    let journal = ["--journal", journal.to_str().unwrap()];
    Server::start_at(address, source, &[&journal[..], arguments].concat())
}

fn line(timestamp: u64, price: u64) -> String {
    format!("{{\"timestamp\":{timestamp},\"price\":{price}.5}}\n")
}

/// Reads what is left of a stream whose server has gone.
fn rest(mut stream: Stream) -> Vec<Event> {
    let mut seen = Vec::new();
    while let Some(event) = stream.try_next() {
        assert_ne!(event.name.as_deref(), Some("gap"));
        seen.extend(Some(event).filter(|event| event.id.is_some()));
    }
    seen
}

/// So that a test that fails ends the threads that it has started, too.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All updates that a server has, up to the latest.
fn all(server: &Server) -> Vec<Event> {
    let latest = server.get("/price").json()["timestamp"].as_u64();
    let mut replay = server.stream("/stream?since=0");
    let mut updates = vec![replay.update()];
    while updates.last().unwrap().id < latest {
        updates.push(replay.update());
    }
    updates
}

#[test]
fn killed_at_any_instant_it_has_all_that_anybody_has_seen() {
    const KILLS: usize = 25;
    let journal = folder("kills").join("journal");
    let source = Source::start();
    let fast = ["--interval", "5ms"];
    let mut server = start("127.0.0.1:0", &source, &journal, &fast);
    let address = server.address.to_string();
    server.stream("/stream").update();
    let (mut followed, mut glimpsed) = (Vec::<Event>::new(), BTreeMap::new());
    for kill in 0..KILLS {
        let last = followed.last().map_or(0, |event| event.id.unwrap());
        let mut stream = server.stream_with("/stream", &format!("Last-Event-ID: {last}\r\n"));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let end_of_looker = SetWhenDropped(&stop);
            // Somebody who only looks at the price.
            let looker = scope.spawn(|| {
                let mut seen = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    seen.extend(server.try_get("/price").map(|answer| answer.json()));
                }
                seen
            });
            followed.extend(stream.updates(1 + kill * 7 % 60));
            server.signal(Signal::SIGKILL);
            drop(end_of_looker);
            for update in looker.join().unwrap() {
                let price = update["price"].as_f64();
                glimpsed.extend(update["timestamp"].as_u64().zip(price));
            }
        });
        followed.extend(rest(stream));
        drop(server);
        server = start(&address, &source, &journal, &fast);
    }
    assert_in_order(&followed);
    let known = all(&server);
    assert_in_order(&known);
    let first = known.iter().position(|event| *event == followed[0]).expect("it was journalled");
    assert_eq!(followed, known[first..first + followed.len()], "seen, and gone or doubled");
    assert!(glimpsed.len() > KILLS);
    for (timestamp, price) in glimpsed {
        let known = known.iter().find(|event| event.id == Some(timestamp));
        assert_eq!(known.map(Event::price), Some(price), "seen as the price, and gone");
    }
    assert_eq!(server.metric("btc_ticker_journal_errors_total"), 0.0);
}

#[test]
fn killed_while_it_writes_the_file_anew_it_has_one_of_the_two() {
    const KILLS: usize = 30;
    let journal = folder("rewriting").join("journal");
    let beside = journal.with_file_name("journal.btc-ticker-new");
    let source = Source::start();
    let arguments = ["--interval", "10ms", "--retention", "100ms"];
    let mut server = start("127.0.0.1:0", &source, &journal, &arguments);
    let address = server.address.to_string();
    let (mut seen, mut longest) = (Vec::<Event>::new(), 0);
    for kill in 0..KILLS {
        let mut stream = server.stream("/stream");
        seen.extend(stream.updates(10 + kill));
        longest = longest.max(fs::metadata(&journal).unwrap().len());
        if kill % 2 == 0 {
            // At the moment at which the new file is being written.
            let deadline = Instant::now() + PATIENCE;
            while !beside.exists() {
                assert!(Instant::now() < deadline, "it is never written anew");
            }
        }
        server.signal(Signal::SIGKILL);
        drop(server);
        let text = fs::read_to_string(&journal).unwrap();
        let whole = text.lines().filter(|line| line.trim_end().ends_with('}')).count();
        assert!(whole > 0 && text.lines().count() - whole <= 1, "{text}");
        let last = text.lines().rfind(|line| line.trim_end().ends_with('}')).unwrap();
        let last: serde_json::Value = serde_json::from_str(last).unwrap();
        assert!(last["timestamp"].as_u64() >= seen.last().unwrap().id, "{last} is not the last");
        server = start(&address, &source, &journal, &arguments);
    }
    // A stream begins with the latest update, which was the last one of the stream before.
    seen.dedup();
    assert_in_order(&seen);
    assert!(longest < 200 * 60, "{longest} bytes, though nearly everything has expired");
}

#[test]
fn what_was_kept_is_there_at_once_with_its_age_and_the_exact_gap() {
    let journal = folder("gap").join("journal");
    let hour = 3_600_000;
    let now = unix_millis();
    let expired = [now - 2 * hour, now - hour - 60_000];
    let kept = [now - 50_000, now - 40_000, now - 30_000];
    let text: String = expired.iter().chain(&kept).map(|time| line(*time, 7)).collect();
    fs::write(&journal, &text).unwrap();
    let source = Source::start();
    source.say(Say::Nothing);
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    eventually("its age counts", || server.get("/healthz").json()["status"] == "stale");
    let health = server.get("/healthz").json();
    assert_eq!(health["updates_retained"], 3);
    assert!(health["last_update_age_seconds"].as_f64().unwrap() >= 30.0);
    assert_eq!(server.get("/price").json()["timestamp"], kept[2]);
    let joined = server.stream("/stream").named("status");
    assert_eq!((&joined["stale"], joined["since"].as_u64()), (&true.into(), Some(kept[2])));
    assert_eq!(server.stream("/stream").update().id, Some(kept[2]), "the latest on joining");

    for (since, gap, missed) in [
        (0, false, &kept[..]),
        (expired[0] - 1, true, &kept),
        (expired[0], true, &kept),
        (expired[1] - 1, true, &kept),
        (expired[1], false, &kept),
        (kept[0] - 1, false, &kept),
        (kept[0], false, &kept[1..]),
        (kept[1], false, &kept[2..]),
    ] {
        let mut stream = server.stream(&format!("/stream?since={since}"));
        stream.named("status");
        if gap {
            let told = stream.named("gap");
            assert_eq!(told["since"].as_u64(), Some(since));
            assert_eq!(told["oldest"].as_u64(), Some(kept[0]));
        }
        for time in missed {
            assert_eq!(stream.event().id, Some(*time), "after {since}");
        }
    }
    // And on it goes.
    let mut stream = server.stream(&format!("/stream?since={}", kept[2]));
    stream.named("status");
    source.say(Say::Prices);
    assert_eq!(stream.named("status")["stale"], false);
    assert!(stream.update().id > Some(kept[2]));
    eventually("well", || server.get("/healthz").status == 200);
}

#[test]
fn a_clock_that_was_set_back_is_no_obstacle() {
    let journal = folder("future").join("journal");
    let future = unix_millis() + 3_600_000;
    fs::write(&journal, line(future - 1, 5) + &line(future, 6)).unwrap();
    let source = Source::start();
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    let mut stream = server.stream(&format!("/stream?since={future}"));
    let ids: Vec<u64> = stream.updates(3).iter().map(|event| event.id.unwrap()).collect();
    assert_eq!(ids, [future + 1, future + 2, future + 3]);
    assert_eq!(server.stream("/stream?since=0").update().id, Some(future - 1));
}

#[test]
fn a_torn_line_is_cut_off() {
    let journal = folder("torn").join("journal");
    let source = Source::start();
    source.say(Say::Nothing);
    let whole = line(unix_millis() - 2_000, 5);
    let next = line(unix_millis(), 6);
    for torn in [1, 5, 13, 20, next.len() - 2] {
        fs::write(&journal, whole.clone() + &next[..torn]).unwrap();
        let server = start("127.0.0.1:0", &source, &journal, &[]);
        assert_eq!(server.get("/price").json()["price"], 5.5, "{torn} bytes of a line");
        assert_eq!(fs::read_to_string(&journal).unwrap(), whole);
        eventually("it is in the log", || server.log().contains("torn"));
    }
    // The very first line as well.
    fs::write(&journal, &next[..20]).unwrap();
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    assert_eq!(server.get("/price").status, 503);
    drop(server);
    // Where only its end is missing nothing is.
    fs::write(&journal, whole.clone() + next.trim_end()).unwrap();
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    assert_eq!(server.get("/price").json()["price"], 6.5);
    // But what came after it may be, and who is here then is told.
    let mut stream = server.stream("/stream");
    let last = stream.update().id.unwrap();
    source.say(Say::Prices);
    let gap = stream.beyond_status().json();
    let seen = stream.updates(2);
    assert_eq!((gap["since"].as_u64(), gap["oldest"].as_u64()), (Some(last), seen[0].id));
    server.stop(Signal::SIGTERM);
    let lines: Vec<_> = [whole, next].into_iter().chain([gap.to_string()]).collect();
    let text = fs::read_to_string(&journal).unwrap();
    for (line, expected) in text.lines().zip(&lines) {
        assert_eq!(line.trim_end(), expected.trim_end());
    }
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    assert!(all(&server).iter().any(|update| *update == seen[1]));
}

#[test]
fn how_the_last_line_ends_says_whether_more_was_seen() {
    let journal = folder("ends").join("journal");
    let source = Source::start();
    for (end, is_gap) in [
        ("\n", false),
        ("\n{\"timestamp\":17", false),
        ("\n\0\0\0\0", false),
        ("", true),
        (" ", true),
        (" \n", true),
        (" \n{\"oldest\":17", true),
        ("\n{\"oldest\":null,\"since\":1795522542565}\n", true),
        ("\n{\"oldest\":null,\"since\":1795522542565}", true),
        ("\n{\"oldest\":17,\"since\":1795522542565} \n{\"timest", true),
        (" \n{\"timestamp\":1795522542565,\"pri", true),
    ] {
        source.say(Say::Nothing);
        let last = unix_millis();
        fs::write(&journal, line(last, 5).trim_end().to_owned() + end).unwrap();
        for restart in ["the first", "the second"] {
            let server = start("127.0.0.1:0", &source, &journal, &[]);
            let mut stream = server.stream(&format!("/stream?since={last}"));
            source.say(Say::Prices);
            let first = stream.beyond_status();
            assert_eq!(first.name.is_some(), is_gap, "{end:?}, {restart} start: {first:?}");
            server.stop(Signal::SIGKILL);
        }
    }
}

#[test]
fn writing_anew_loses_no_update_that_is_retained() {
    let journal = folder("anew").join("journal");
    let source = Source::start();
    source.say(Say::Nothing);
    let now = unix_millis();
    let (expired, kept) = (now - 7_200_000, now - 20_000);
    let mut text: String = (0..60).map(|i| line(expired + i, 5)).collect();
    for i in 1..=10 {
        let (since, oldest) = (kept + 10 * (i - 1), kept + 10 * i);
        text += &format!("{{\"oldest\":{oldest},\"since\":{since}}}\n");
        text += &format!("{{\"timestamp\":{oldest},\"price\":57720.534022286476}}\n");
    }
    fs::write(&journal, &text).unwrap();
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    let shorter = || fs::metadata(&journal).unwrap().len() < text.len() as u64 / 2;
    eventually("it is written anew", shorter);
    server.stop(Signal::SIGKILL);
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    let known = all(&server);
    let ids: Vec<_> = known.iter().map(|update| update.id.unwrap()).collect();
    assert_eq!(ids, (1..=10).map(|i| kept + 10 * i).collect::<Vec<_>>());
    let data = known[9].data.as_deref().unwrap();
    assert!(data.ends_with("\"price\":57720.534022286476}"), "to the last digit: {data}");
}

#[test]
fn a_file_that_may_be_somebody_elses_is_not_touched() {
    let folder = folder("foreign");
    let journal = folder.join("journal");
    let now = unix_millis();
    let good = line(now, 5);
    for (text, hint) in [
        ("hello\n".to_owned(), "line 1 "),
        ("hello".to_owned(), "line 1 "),
        ("{\"timestamp\":5}\n".to_owned(), "line 1 "),
        (good.clone() + "\n" + &line(now + 1, 5), "line 2 "),
        (good.clone() + "{\"gap\":true}\n", "line 2 "),
        ("{\"timestamp\":1700000000000,\"user\":\"alice\"}".to_owned(), "line 1 "),
        ("{\"timestamp\":1700000000000,\"us".to_owned(), "line 1 "),
        ("{\"timestamp\":\"2026-01-01\",\"items\":[1".to_owned(), "line 1 "),
        ("3.14".to_owned(), "line 1 "),
        ("{\"oldest\":\"alice\",\"people\":[\"alice\"]}".to_owned(), "line 1 "),
        ("{\"oldest\":\"alice\",\"people\":[\"alice\"]}\n".to_owned(), "line 1 "),
        (good.clone() + "{\"timestamp\":5,\"price\":1.5}", "line 2 "),
        (good.clone() + "{\"timestamp\":7,\"pri\n" + &line(now + 1, 5), "line 2 "),
        (good.clone() + &line(now, 5), "line 2 "),
        (good.clone() + &line(now + 5, 5) + &line(now + 4, 5), "line 3 "),
        (format!("{{\"timestamp\":{now},\"price\":5,\"volume\":1}}\n"), "line 1 "),
        (format!("{{\"timestamp\":{now},\"price\":-5}}\n"), "line 1 "),
        (good.clone() + &line(u64::MAX, 5), "line 2 "),
        (good + "# my notes", "line 2 "),
    ] {
        fs::write(&journal, &text).unwrap();
        let error = refused(&journal);
        assert!(error.contains(hint) && error.contains("another file"), "{text}: {error}");
        assert_eq!(fs::read_to_string(&journal).unwrap(), text, "untouched");
    }
    for place in [&folder, &folder.join("nowhere/journal"), Path::new("/dev/null")] {
        let error = refused(place);
        assert!(error.contains("folder that exists"), "{error}");
        assert!(error.contains(place.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_folder_in_which_it_cannot_be_kept_small_is_found_out_at_the_start() {
    let journal = folder("beside").join("journal");
    fs::create_dir(journal.with_file_name("journal.btc-ticker-new")).unwrap();
    let text = line(unix_millis(), 5);
    fs::write(&journal, &text).unwrap();
    let error = refused(&journal);
    assert!(error.contains("may create files"), "{error}");
    assert_eq!(fs::read_to_string(&journal).unwrap(), text);
}

#[test]
fn where_it_cannot_be_written_anew_it_grows_and_loses_nothing() {
    let folder = folder("grows");
    let (journal, beside) = (folder.join("journal"), folder.join("journal.btc-ticker-new"));
    let source = Source::start();
    let arguments = ["--interval", "5ms", "--retention", "50ms"];
    let server = start("127.0.0.1:0", &source, &journal, &arguments);
    eventually("nothing is being written anew", || fs::create_dir(&beside).is_ok());
    let mut stream = server.stream("/stream");
    let seen = stream.updates(200);
    eventually("it is told", || server.log().contains("Is a directory"));
    let errors = server.metric("btc_ticker_journal_errors_total");
    assert!(errors > 1.0 && errors < 100.0, "{errors}: not at every update");
    let text = fs::read_to_string(&journal).unwrap();
    let lines = text.lines().map(str::trim_end);
    let lines = lines.skip_while(|line| Some(*line) != seen[0].data.as_deref());
    assert!(seen.iter().map(|update| update.data.as_deref().unwrap()).eq(lines.take(seen.len())));
    fs::remove_dir(&beside).unwrap();
    eventually("it is written anew", || {
        stream.update();
        fs::metadata(&journal).unwrap().len() < text.len() as u64 / 2
    });
}

#[test]
fn a_link_stays_a_link() {
    let folder = folder("link");
    let (journal, link) = (folder.join("journal"), folder.join("link"));
    std::os::unix::fs::symlink(&journal, &link).unwrap();
    let source = Source::start();
    for _ in 0..2 {
        let server = start("127.0.0.1:0", &source, &link, &[]);
        let seen = server.stream("/stream").updates(2);
        server.stop(Signal::SIGTERM);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&journal).unwrap().contains(seen[1].data.as_deref().unwrap()));
    }
}

#[test]
fn a_file_that_somebody_cuts_goes_on() {
    let journal = folder("cut").join("journal");
    let source = Source::start();
    let server = start("127.0.0.1:0", &source, &journal, &["--interval", "20ms"]);
    let mut stream = server.stream("/stream");
    stream.updates(20);
    fs::write(&journal, "").unwrap();
    stream.updates(20);
    let (status, log) = server.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(fs::read_to_string(&journal).unwrap().starts_with("{\"timestamp\":"));
    start("127.0.0.1:0", &source, &journal, &[]);
}

#[test]
fn made_up_prices_never_pass_for_real_ones() {
    let folder = folder("made-up");
    let (journal, link) = (folder.join("journal"), folder.join("link"));
    let demo = || {
        let mut command = Server::command();
        command.args(["--source", "demo", "--interval", "50ms", "--listen", "127.0.0.1:0"]);
        Server::run(command.arg("--journal").arg(&journal))
    };
    let server = demo();
    let seen = server.stream("/stream").updates(3);
    server.stop(Signal::SIGKILL);
    // For made-up ones it is a journal as any other.
    assert_eq!(all(&demo())[..3], seen);
    std::os::unix::fs::symlink(&journal, &link).unwrap();
    for name in [&journal, &link] {
        let mut command = Server::command();
        command.args(["--source-url", "http://127.0.0.1:9/", "--listen", "127.0.0.1:0"]);
        let error = Server::refused(command.arg("--journal").arg(name));
        assert!(error.contains("made-up") && error.contains("another file"), "{error}");
    }
    // Where there is nothing in it, nothing is made up.
    fs::write(&journal, "").unwrap();
    let source = Source::start();
    for _ in 0..2 {
        start("127.0.0.1:0", &source, &journal, &[]).stream("/stream").update();
    }
}

/// What a server says that does not start with this journal.
fn refused(journal: &Path) -> String {
    let mut command = Server::command();
    command.args(["--source", "demo", "--listen", "127.0.0.1:0", "--journal"]).arg(journal);
    Server::refused(&mut command)
}

#[test]
fn a_file_belongs_to_one_process() {
    let journal = folder("two").join("journal");
    let source = Source::start();
    let server =
        start("127.0.0.1:0", &source, &journal, &["--interval", "5ms", "--retention", "50ms"]);
    let mut stream = server.stream("/stream");
    for _ in 0..20 {
        // Also while the file is written anew.
        assert!(refused(&journal).contains("another process"));
        stream.updates(10);
    }
    assert_eq!(server.metric("btc_ticker_journal_errors_total"), 0.0);
}

#[test]
fn a_full_disk_stops_nobody_and_what_it_missed_is_written_when_it_can_be() {
    let journal = folder("full").join("journal");
    let source = Source::start();
    let (server, mut stream, mut seen) = on_a_full_disk(&journal, &source);
    // It goes on as without a journal.
    seen.extend(stream.updates(100));
    let log = server.log();
    assert_eq!(log.matches("journal: File too large").count(), 1, "{log}");
    end_limit(&server);
    let lines = || fs::read_to_string(&journal).unwrap();
    eventually("it has caught up", || {
        seen.extend(stream.updates(1));
        lines().contains(&seen.last().unwrap().id.unwrap().to_string())
    });
    let written = lines();
    for (update, line) in seen.iter().zip(written.lines()) {
        assert_eq!(update.data.as_deref(), Some(line.trim_end()));
    }
    assert!(written.lines().count() >= seen.len());
    assert_in_order(&seen);
}

/// A journal that has room for about 80 lines, as on a disk that is full, and what a client has seen of
/// the server that keeps it: all that it has, and a few more.
fn on_a_full_disk(journal: &Path, source: &Source) -> (Server, Stream, Vec<Event>) {
    let arguments = ["--interval", "20ms", "--journal", journal.to_str().unwrap()];
    // No file may have more than 4 KiB: an error, and the signal is none that kills.
    let server = Server::start_with_limit("-S -f 4", source, &arguments);
    let mut stream = server.stream("/stream?since=0");
    let mut seen = stream.updates(1);
    eventually("the disk is full", || {
        seen.extend(stream.updates(1));
        server.metric("btc_ticker_journal_errors_total") > 0.0
    });
    seen.extend(stream.updates(5));
    (server, stream, seen)
}

fn end_limit(server: &Server) {
    let mut prlimit = std::process::Command::new("prlimit");
    prlimit.args(["--pid", &server.pid().to_string(), "--fsize=unlimited"]);
    assert!(prlimit.status().unwrap().success());
}

#[test]
fn what_a_full_disk_did_not_take_is_told_after_a_kill() {
    let journal = folder("hole").join("journal");
    let source = Source::start();
    let (server, stream, mut seen) = on_a_full_disk(&journal, &source);
    server.signal(Signal::SIGKILL);
    seen.extend(rest(stream));
    drop(server);
    let text = fs::read_to_string(&journal).unwrap();
    assert!(text.ends_with('}'), "it lacks its end: {text}");
    let last = text.lines().last().unwrap();
    let kept = 1 + seen.iter().position(|update| update.data.as_deref() == Some(last)).unwrap();
    assert!(kept < seen.len());
    // A second restart has to know it as well.
    let mut first = None;
    for restart in 0..2 {
        let server = start("127.0.0.1:0", &source, &journal, &["--interval", "1s"]);
        let mut latest = server.stream(&format!("/stream?since={}", seen[kept - 1].id.unwrap()));
        let told = latest.named("gap");
        assert_eq!(told["since"].as_u64(), seen[kept - 1].id, "after {restart} restarts");
        eventually("a new update", || latest.update().id > seen.last().unwrap().id);
        let known = all(&server);
        assert_eq!(known[..kept], seen[..kept], "what the disk took");
        let first = first.get_or_insert_with(|| known[kept].clone());
        assert_eq!(known[kept], *first);
        for index in [0, kept - 2, kept - 1, kept, seen.len() - 1] {
            let since = seen[index].id.unwrap();
            let mut stream = server.stream(&format!("/stream?since={since}"));
            assert_eq!(stream.named("gap")["since"].as_u64(), Some(since), "after {index}");
            let next = if index < kept { &known[index + 1] } else { &*first };
            assert_eq!(stream.update(), *next);
        }
        let mut stream = server.stream(&format!("/stream?since={}", first.id.unwrap()));
        assert!(stream.update().id > first.id, "and no gap after it");
        server.stop(Signal::SIGKILL);
    }
    let text = fs::read_to_string(&journal).unwrap();
    assert_eq!(text.matches("{\"oldest\":").count(), 1, "{text}");
}

#[test]
fn a_clean_end_writes_what_was_still_missing() {
    let journal = folder("rest").join("journal");
    let source = Source::start();
    let (server, stream, mut seen) = on_a_full_disk(&journal, &source);
    end_limit(&server);
    // It waits a second before it tries again.
    let (status, log) = server.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{log}");
    seen.extend(rest(stream));
    let text = fs::read_to_string(&journal).unwrap();
    let lines = text.lines().map(str::trim_end);
    assert!(seen.iter().map(|update| update.data.as_deref().unwrap()).eq(lines), "{text}");
}

#[test]
fn a_start_on_a_full_disk_is_a_start() {
    let journal = folder("start").join("journal");
    let now = unix_millis();
    let text: String = (1..=200).map(|i| line(now - 1_000 + i, i)).collect();
    fs::write(&journal, &text).unwrap();
    let source = Source::start();
    let arguments = ["--journal", journal.to_str().unwrap()];
    let server = Server::start_with_limit("-S -f 4", &source, &arguments);
    let mut stream = server.stream(&format!("/stream?since={}", now - 1_000 + 1));
    assert_eq!(stream.updates(210)[198].price(), 200.5);
    assert!(!journal.with_file_name("journal.btc-ticker-new").exists());
    end_limit(&server);
    let lines = || fs::read_to_string(&journal).unwrap().lines().count();
    eventually("it is written", || lines() > 210);
}

#[test]
fn a_clean_end_leaves_a_whole_file_and_a_new_start_goes_on() {
    let journal = folder("clean").join("journal");
    let source = Source::start();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let server = start("127.0.0.1:0", &source, &journal, &["--interval", "10ms"]);
        server.stream("/stream").updates(10);
        let (status, log) = server.stop(Signal::SIGTERM);
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("torn"), "{log}");
        let text = fs::read_to_string(&journal).unwrap();
        assert!(text.ends_with("}\n"));
        let ids_now: Vec<String> = text.lines().map(str::to_owned).collect();
        assert!(ids_now.starts_with(&ids), "what was there is there");
        ids = ids_now;
    }
}
