//! A restart loses nothing: with `--journal`, whatever a client has seen is still there when the
//! process is killed at any instant and started again.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use btc_ticker::system::unix_millis;
use common::{
    Event, PATIENCE, Say, Server, Source, Stream, assert_in_order, eventually, folder,
    journal_header,
};
use nix::sys::signal::Signal;

fn start(address: &str, source: &Source, journal: &Path, arguments: &[&str]) -> Server {
    let journal = ["--journal", journal.to_str().unwrap()];
    Server::start_at(address, source, &[&journal[..], arguments].concat())
}

fn line(timestamp: u64, price: u64) -> String {
    format!("{{\"timestamp\":{timestamp},\"price\":{price}.5}}\n")
}

fn header(complete_since: u64) -> String {
    journal_header(false, complete_since)
}

/// The lines of the updates in a file.
fn lines(journal: &Path) -> Vec<String> {
    let text = fs::read_to_string(journal).unwrap();
    text.lines().skip(1).map(str::to_owned).collect()
}

/// Checks that the file has each of these updates, whoever has seen them.
fn assert_written(journal: &Path, seen: &[Event]) {
    let lines = lines(journal);
    for update in seen {
        let data = update.data.as_deref().unwrap();
        assert!(lines.iter().any(|line| line == data), "{data} was seen, and is not in the file");
    }
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
        assert_written(&journal, &followed);
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
        assert!(fs::read_to_string(&journal).unwrap().starts_with("{\"journal\":\"btc-ticker\""));
        // What was seen last may have expired by now, but not what came after it.
        let lines = lines(&journal);
        let whole = lines.iter().rfind(|line| line.ends_with('}')).expect("a whole line");
        let last: serde_json::Value = serde_json::from_str(whole).unwrap();
        assert!(last["timestamp"].as_u64() >= seen.last().unwrap().id, "{whole} is not the last");
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
    let updates: String = expired.iter().chain(&kept).map(|time| line(*time, 7)).collect();
    fs::write(&journal, header(expired[0]) + &updates).unwrap();
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
    fs::write(&journal, header(1_000) + &line(future - 1, 5) + &line(future, 6)).unwrap();
    let source = Source::start();
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    let mut stream = server.stream(&format!("/stream?since={future}"));
    let ids: Vec<u64> = stream.updates(3).iter().map(|event| event.id.unwrap()).collect();
    assert_eq!(ids, [future + 1, future + 2, future + 3]);
    assert_eq!(server.stream("/stream?since=0").update().id, Some(future - 1));
    drop(server);
    // Nor where the end of the file is lost: no timestamp that somebody may have seen is given again.
    fs::write(&journal, header(1_000) + &line(future, 6) + "gibberish\n").unwrap();
    for _ in 0..2 {
        let server = start("127.0.0.1:0", &source, &journal, &[]);
        let mut stream = server.stream(&format!("/stream?since={future}"));
        stream.named("gap");
        let event = stream.update();
        assert!(event.id > Some(future), "{event:?}");
    }
}

#[test]
fn a_line_that_was_not_finished_is_cut_off_and_costs_nothing_else() {
    let journal = folder("end").join("journal");
    let source = Source::start();
    source.say(Say::Nothing);
    let now = unix_millis();
    let next = line(now - 1_000, 6);
    let kept = header(now - 5_000) + &line(now - 2_000, 5);
    for length in [0, 1, 20, next.len() - 1] {
        fs::write(&journal, kept.clone() + &next[..length]).unwrap();
        let server = start("127.0.0.1:0", &source, &journal, &[]);
        // A stream has a gap before its updates, if at all.
        let mut stream = server.stream(&format!("/stream?since={}", now - 5_000));
        assert_eq!(stream.update().id, Some(now - 2_000), "{length}");
        assert_eq!(server.get("/price").json()["price"], 5.5);
        assert_eq!(fs::read_to_string(&journal).unwrap(), kept, "it is cut off");
    }
}

#[test]
fn damage_at_the_end_is_told() {
    let journal = folder("damaged-end").join("journal");
    let source = Source::start();
    source.say(Say::Nothing);
    let now = unix_millis();
    let next = line(now - 1_000, 6);
    for damage in [
        next.replace("price", "prize"),
        next.replace('\n', "x\n") + &line(now, 5)[..7],
        "{\"timestamp\":17\0\0\0\n\0\0".to_owned(),
        "\0".repeat(100_000),
        line(now + 2 * 86_400_000, 5),
    ] {
        fs::write(&journal, header(now - 5_000) + &line(now - 2_000, 5) + &damage).unwrap();
        for restart in ["the first", "the second"] {
            let server = start("127.0.0.1:0", &source, &journal, &[]);
            let mut stream = server.stream(&format!("/stream?since={}", now - 2_000));
            let gap = stream.named("gap");
            assert_eq!(gap["since"].as_u64(), Some(now - 2_000), "{damage:?}, {restart} start");
            assert_eq!(lines(&journal).len(), 0, "nothing before it is believed");
            if restart == "the first" {
                eventually("it is in the log", || server.log().contains("line 3 is damaged"));
            }
        }
    }
}

#[test]
fn damage_in_the_middle_is_told_and_the_good_lines_after_it_are_kept() {
    let journal = folder("damaged").join("journal");
    let source = Source::start();
    source.say(Say::Nothing);
    let now = unix_millis();
    let times = [now - 5_000, now - 4_000, now - 3_000, now - 2_000];
    let [a, b, c, d] = times.map(|time| line(time, 5));
    for (damage, what) in [
        (String::new(), "nothing is missing"),
        ("gibberish\n".into(), "a line of another kind"),
        ("\n".into(), "an empty line"),
        (b[..20].to_owned(), "a line without its end"),
        ("\0".repeat(5_000), "zeros"),
        (a.clone(), "a line twice"),
        (line(u64::MAX, 5), "a time that is none"),
        (line(now * 9, 5), "a time of the far future"),
        (format!("{{\"timestamp\":{},\"price\":-5}}\n", now - 3_500), "no price"),
        (format!("{{\"timestamp\":{},\"price\":5,\"x\":1}}\n", now - 3_500), "a third field"),
    ] {
        fs::write(&journal, header(now - 9_000) + &a + &b + &damage + &c + &d).unwrap();
        let server = start("127.0.0.1:0", &source, &journal, &[]);
        let mut stream = server.stream(&format!("/stream?since={}", times[0]));
        if damage.is_empty() {
            assert_eq!(stream.update().id, Some(times[1]));
            continue;
        }
        eventually(what, || server.log().contains("line 4 is damaged"));
        // What has run into the damage is lost with it.
        let after = if damage.ends_with('\n') { &times[2..] } else { &times[3..] };
        assert_eq!(stream.named("gap")["oldest"].as_u64(), Some(after[0]), "{what}");
        for time in after {
            assert_eq!(stream.update().id, Some(*time), "{what}");
        }
        let header = header(after[0]);
        assert!(fs::read_to_string(&journal).unwrap().starts_with(&header), "{what}");
    }
}

#[test]
fn only_what_is_retained_is_read_and_kept() {
    let journal = folder("anew").join("journal");
    let source = Source::start();
    source.say(Say::Nothing);
    let now = unix_millis();
    let kept = now - 20_000;
    let mut text = header(1_000);
    text.extend((0..60).map(|i| line(now - 7_200_000 + i, 5)));
    let price = "57720.534022286476";
    text.extend((1..=10).map(|i| format!("{{\"timestamp\":{},\"price\":{price}}}\n", kept + i)));
    fs::write(&journal, &text).unwrap();
    for _ in 0..2 {
        let server = start("127.0.0.1:0", &source, &journal, &[]);
        let known = all(&server);
        let ids: Vec<_> = known.iter().map(|update| update.id.unwrap()).collect();
        assert_eq!(ids, (1..=10).map(|i| kept + i).collect::<Vec<_>>());
        assert_eq!(lines(&journal).len(), 10);
        let data = known[9].data.as_deref().unwrap();
        assert!(data.ends_with(&format!("\"price\":{price}}}")), "to the last digit: {data}");
        server.stop(Signal::SIGKILL);
    }
}

#[test]
fn a_file_that_may_be_somebody_elses_is_not_touched() {
    let folder = folder("foreign");
    let journal = folder.join("journal");
    for text in [
        "hello\n",
        "hello",
        "\n",
        "{\"timestamp\":1700000000000,\"price\":5.5}\n",
        "{\"journal\":\"mine\",\"made_up\":true,\"complete_since\":5}\n",
        "{\"journal\":\"btc-ticker\",\"made_up\":true,\"complete_since\":5,\"version\":2}\n",
    ] {
        fs::write(&journal, text).unwrap();
        let error = refused(&journal);
        assert!(error.contains("first line") && error.contains("another file"), "{text}: {error}");
        assert_eq!(fs::read_to_string(&journal).unwrap(), text, "untouched");
    }
    for place in [&folder, &folder.join("nowhere/journal"), Path::new("/dev/null")] {
        let error = refused(place);
        assert!(error.contains("folder that exists"), "{error}");
        assert!(error.contains(place.to_str().unwrap()), "{error}");
    }
    assert!(!Path::new("/dev/null.btc-ticker-lock").exists());
}

#[test]
fn a_folder_in_which_it_cannot_be_kept_small_is_found_out_at_the_start() {
    let journal = folder("beside").join("journal");
    fs::create_dir(journal.with_file_name("journal.btc-ticker-new")).unwrap();
    let now = unix_millis();
    let text = journal_header(true, now) + &line(now, 5);
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
    eventually("it is told", || server.log().contains("File exists"));
    let errors = server.metric("btc_ticker_journal_errors_total");
    assert!((1.0..100.0).contains(&errors), "{errors}: not at every update");
    assert_written(&journal, &seen);
    let length = fs::metadata(&journal).unwrap().len();
    fs::remove_dir(&beside).unwrap();
    eventually("it is written anew", || {
        stream.update();
        fs::metadata(&journal).unwrap().len() < length / 2
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
fn what_somebody_else_does_to_the_file_is_made_good() {
    let folder = folder("outside");
    let (journal, other) = (folder.join("journal"), folder.join("other"));
    let source = Source::start();
    let server = start("127.0.0.1:0", &source, &journal, &["--interval", "20ms"]);
    let mut stream = server.stream("/stream?since=0");
    let mut seen = stream.updates(5);
    for what in ["cut", "copied over", "moved", "deleted"] {
        match what {
            "cut" => fs::write(&journal, "").unwrap(),
            "copied over" => assert!(fs::copy("Cargo.toml", &journal).is_ok()),
            "moved" => fs::rename(&journal, &other).unwrap(),
            _ => fs::remove_file(&journal).unwrap(),
        }
        eventually(what, || {
            seen.extend(stream.updates(1));
            let text = fs::read_to_string(&journal).unwrap_or_default();
            text.contains(seen[0].data.as_deref().unwrap())
        });
        seen.extend(stream.updates(3));
    }
    assert!(fs::read_to_string(&other).unwrap().contains(seen[0].data.as_deref().unwrap()));
    server.stop(Signal::SIGKILL);
    assert_written(&journal, &seen);
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    assert_eq!(all(&server)[..seen.len()], seen);
}

#[test]
fn made_up_prices_and_real_ones_refuse_each_other() {
    let folder = folder("made-up");
    let (journal, link) = (folder.join("journal"), folder.join("link"));
    let demo = || {
        let mut command = Server::command();
        command.args(["--source", "demo", "--interval", "50ms", "--listen", "127.0.0.1:0"]);
        Server::run(command.arg("--journal").arg(&journal))
    };
    let server = demo();
    let seen = server.stream("/stream?since=0").updates(3);
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
    let error = refused(&journal);
    assert!(error.contains("real prices") && error.contains("another file"), "{error}");
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
        let error = refused(&journal);
        assert!(error.contains("another process"), "{error}");
        stream.updates(10);
    }
    assert_eq!(server.metric("btc_ticker_journal_errors_total"), 0.0);
}

#[test]
fn a_full_disk_stops_nobody_and_what_it_missed_is_written_when_there_is_room() {
    let journal = folder("full").join("journal");
    let source = Source::start();
    let (server, mut stream, mut seen) = on_a_full_disk(&journal, &source);
    // It goes on as without a journal.
    seen.extend(stream.updates(100));
    let log = server.log();
    assert_eq!(log.matches("journal: File too large").count(), 1, "{log}");
    end_limit(&server);
    eventually("it has caught up", || {
        seen.extend(stream.updates(1));
        let last = seen.last().unwrap().data.as_deref().unwrap();
        lines(&journal).iter().any(|line| line == last)
    });
    assert_written(&journal, &seen);
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
    let mut prlimit = Command::new("prlimit");
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
    // A second restart has to know it as well.
    for restart in ["the first", "the second"] {
        let server = start("127.0.0.1:0", &source, &journal, &["--interval", "1s"]);
        for since in [seen[0].id, seen.last().unwrap().id] {
            let mut stream = server.stream(&format!("/stream?since={}", since.unwrap()));
            let gap = stream.named("gap");
            assert_eq!(gap["since"].as_u64(), since, "{restart} restart");
            assert!(stream.update().id > seen.last().unwrap().id);
        }
        server.stop(Signal::SIGKILL);
    }
}

#[test]
fn a_start_on_a_full_disk_is_a_start() {
    let journal = folder("start").join("journal");
    let now = unix_millis();
    let updates: String = (1..=200).map(|i| line(now - 1_000 + i, i)).collect();
    fs::write(&journal, header(now - 1_000) + &updates).unwrap();
    let source = Source::start();
    let arguments = ["--journal", journal.to_str().unwrap()];
    let server = Server::start_with_limit("-S -f 4", &source, &arguments);
    let mut stream = server.stream(&format!("/stream?since={}", now - 1_000 + 1));
    assert_eq!(stream.updates(210)[198].price(), 200.5);
    let new = journal.with_file_name("journal.btc-ticker-new");
    eventually("what did not fit is not left there", || !new.exists());
    end_limit(&server);
    eventually("it is written", || lines(&journal).len() > 210);
}

#[test]
fn a_folder_that_was_moved_away_and_back_is_not_believed() {
    let folder = folder("moved-folder");
    let (here, away) = (folder.join("here"), folder.join("away"));
    fs::create_dir(&here).unwrap();
    let journal = here.join("journal");
    let source = Source::start();
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    let mut stream = server.stream("/stream");
    let first = stream.updates(2).remove(1);
    fs::rename(&here, &away).unwrap();
    // What comes now is in no file.
    let seen = stream.updates(3);
    server.stop(Signal::SIGKILL);
    fs::rename(&away, &here).unwrap();
    let server = start("127.0.0.1:0", &source, &journal, &["--interval", "1s"]);
    let mut stream = server.stream(&format!("/stream?since={}", first.id.unwrap()));
    assert_eq!(stream.named("gap")["since"].as_u64(), first.id);
    assert!(stream.update().id > seen[2].id);
}

#[test]
fn a_clean_end_leaves_a_whole_file_and_a_new_start_goes_on() {
    let journal = folder("clean").join("journal");
    let source = Source::start();
    let mut before = Vec::new();
    for _ in 0..3 {
        let server = start("127.0.0.1:0", &source, &journal, &["--interval", "10ms"]);
        server.stream("/stream").updates(10);
        let (status, log) = server.stop(Signal::SIGTERM);
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("torn"), "{log}");
        assert!(fs::read_to_string(&journal).unwrap().ends_with("}\n"));
        let lines = lines(&journal);
        assert!(lines.starts_with(&before), "what was there is there");
        before = lines;
    }
}

#[test]
fn a_disk_that_hangs_holds_up_the_next_price_and_nobody_else() {
    let folder = folder("hangs");
    let journal = folder.join("journal");
    let Some(disk) = Frozen::make(&folder) else {
        return common::skipped(
            "a disk that hangs was not tested: it takes mkfs.ext4, mount and fsfreeze, as root",
        );
    };
    let source = Source::start();
    let server = start("127.0.0.1:0", &source, &journal, &["--heartbeat", "100ms"]);
    let mut stream = server.stream("/stream?since=0");
    let mut seen = stream.updates(3);
    disk.freeze("-f");
    // The poller waits for it; who tells that prices have stopped does not.
    let told = loop {
        let event = stream.event();
        match event.name {
            Some(_) => break event.json(),
            None => seen.push(event),
        }
    };
    assert_eq!((&told["stale"], &told["reason"]), (&true.into(), &"no new price".into()));
    assert_eq!(stream.line(), ":", "and the stream is kept open");
    assert_eq!(server.get("/healthz").json()["status"], "stale");
    assert_eq!(server.get("/price").status, 200);
    disk.freeze("-u");
    seen.extend(stream.updates(3));
    server.stop(Signal::SIGKILL);
    assert_written(&journal, &seen);
    assert_in_order(&seen);
}

/// A file system of its own in a folder, which can be made to hang. Taken away when it is dropped.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn make(folder: &'a Path) -> Option<Frozen<'a>> {
        let image = folder.with_extension("image");
        File::create(&image).unwrap().set_len(8 * 1024 * 1024).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            output.is_ok_and(|output| output.status.success())
        };
        let (image, folder_name) = (image.to_str().unwrap(), folder.to_str().unwrap());
        let is_made = run("/sbin/mkfs.ext4", &["-q", "-F", image])
            && run("mount", &["-o", "loop", image, folder_name]);
        let disk = Frozen(folder);
        is_made.then_some(disk)
    }

    fn freeze(&self, how: &str) {
        assert!(Command::new("fsfreeze").arg(how).arg(self.0).status().unwrap().success());
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(self.0).output();
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

#[test]
fn a_disk_that_cannot_be_written_does_not_keep_it_from_starting() {
    let folder = folder("read-only");
    let disk = ReadOnly::mount(&folder);
    let Some(disk) = disk else {
        return common::skipped("a read-only disk was not tested: it takes mount, as root");
    };
    let journal = folder.join("journal");
    let now = unix_millis();
    disk.remount("rw");
    fs::write(&journal, header(now - 5_000) + &line(now - 1_000, 5)).unwrap();
    fs::write(folder.join("journal.btc-ticker-lock"), "").unwrap();
    fs::write(folder.join("foreign"), "hello\n").unwrap();
    fs::write(folder.join("foreign.btc-ticker-lock"), "").unwrap();
    disk.remount("ro");
    let error = refused(&folder.join("foreign"));
    assert!(error.contains("first line"), "{error}");
    let error = refused(&folder.join("new"));
    assert!(error.contains("Read-only") && error.contains("another file"), "{error}");
    let source = Source::start();
    let server = start("127.0.0.1:0", &source, &journal, &[]);
    // What a disk like this has not taken before, nobody knows.
    let mut stream = server.stream(&format!("/stream?since={}", now - 1_000));
    stream.named("gap");
    let seen = stream.update();
    assert!(server.log().contains("Read-only"), "{}", server.log());
    disk.remount("rw");
    eventually("it is written when it can be", || {
        lines(&journal).iter().any(|line| Some(line) == seen.data.as_ref())
    });
    drop(server);
}

/// A small disk of its own in a folder. Taken away when it is dropped.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    fn mount(folder: &'a Path) -> Option<ReadOnly<'a>> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder);
        let output = mount.output().ok()?;
        output.status.success().then_some(ReadOnly(folder))
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
