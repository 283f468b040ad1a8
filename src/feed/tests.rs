//! The feed as its callers see it.

use super::*;

const STARTED: u64 = 1_000;
const HOUR: Duration = Duration::from_secs(3600);
/// Timestamps here are long ago; the retention is longer.
const FOREVER: Duration = Duration::from_secs(1_000_000 * 3600);

struct Fixture {
    publisher: Publisher,
    feed: Arc<Feed>,
}

fn update(timestamp: u64) -> Update {
    Update { timestamp, price: timestamp as f64 }
}

fn fixture(complete_since: Option<u64>, retention: Duration, capacity: usize) -> Fixture {
    let (publisher, feed) = new(History::new(complete_since, retention, capacity), false);
    Fixture { publisher, feed }
}

fn fixture_with(timestamps: &[u64], capacity: usize) -> Fixture {
    let mut fixture = fixture(Some(STARTED), FOREVER, capacity);
    for &timestamp in timestamps {
        fixture.publish(timestamp);
    }
    fixture
}

impl Fixture {
    fn publish(&mut self, timestamp: u64) {
        self.publisher.publish(&[update(timestamp)]);
    }

    /// The ids and the gap of the first page.
    fn ask(&self, from: Cursor) -> (Vec<u64>, Option<String>) {
        let page = self.feed.subscribe(from).unwrap().page;
        let text = page.wire.as_str();
        let ids: Vec<u64> = text.lines().filter_map(read_id).collect();
        assert_eq!((ids.len(), ids.last().copied()), (page.updates, page.last));
        let gap = text.split_inclusive("\n\n").find(|event| event.starts_with("event: gap"));
        assert_eq!(gap.is_some(), page.has_gap);
        (ids, gap.map(str::to_owned))
    }
}

fn read_id(line: &str) -> Option<u64> {
    line.strip_prefix("id: ")?.parse().ok()
}

fn gap(since: u64, oldest: Option<u64>) -> Option<String> {
    Some(Gap { oldest, since: Some(since) }.encode())
}

fn live(subscription: &Subscription) -> String {
    let channel = subscription.channel.as_ref().expect("this was the last page");
    channel.live.try_iter().map(|event| event.wire.to_string()).collect()
}

#[test]
fn since_is_exclusive_and_the_latest_is_one() {
    let fixture = fixture_with(&[2_000, 3_000, 4_000], 10);
    assert_eq!(fixture.ask(Cursor::Latest), (vec![4_000], None));
    assert_eq!(fixture.ask(Cursor::After(2_000)), (vec![3_000, 4_000], None));
    assert_eq!(fixture.ask(Cursor::After(1_999)), (vec![2_000, 3_000, 4_000], None));
    assert_eq!(fixture.ask(Cursor::After(4_000)), (vec![], None));
    assert_eq!(fixture.ask(Cursor::After(9_000)), (vec![], None));
    let foreign = fixture.ask(Cursor::Foreign(Some(9_000)));
    assert_eq!(foreign, (vec![4_000], gap(9_000, Some(4_000))));
}

#[test]
fn before_the_first_update_nothing_is_missing() {
    let fixture = fixture_with(&[], 10);
    for from in [Cursor::Latest, Cursor::Beginning, Cursor::After(STARTED)] {
        assert_eq!(fixture.ask(from), (vec![], None));
    }
    assert_eq!(fixture.ask(Cursor::After(STARTED - 1)), (vec![], gap(999, None)));
}

#[test]
fn a_gap_is_reported_exactly_when_something_is_missing() {
    let fixture = fixture_with(&[2_000, 3_000, 4_000, 5_000], 2);
    assert_eq!(fixture.ask(Cursor::After(3_000)), (vec![4_000, 5_000], None));
    let told = fixture.ask(Cursor::After(2_999));
    assert_eq!(told, (vec![4_000, 5_000], gap(2_999, Some(4_000))));
    assert_eq!(fixture.ask(Cursor::Beginning), (vec![4_000, 5_000], None));
    assert_eq!(fixture.ask(Cursor::Latest), (vec![5_000], None));
}

#[test]
fn updates_older_than_the_retention_expire_except_the_newest() {
    let mut fixture = fixture(Some(STARTED), Duration::ZERO, 10);
    fixture.publish(2_000);
    fixture.feed.expire();
    assert_eq!(fixture.feed.latest(), Some(update(2_000)));
    fixture.publish(3_000);
    fixture.feed.expire();
    assert_eq!(fixture.ask(Cursor::After(2_000)), (vec![3_000], None));
    assert_eq!(fixture.ask(Cursor::After(1_500)), (vec![3_000], gap(1_500, Some(3_000))));
    assert_eq!(fixture.ask(Cursor::Latest), (vec![3_000], None));
}

#[test]
fn timestamps_are_the_present_and_rise_when_the_clock_steps_back() {
    let before = unix_millis();
    let mut now = fixture_with(&[], 10);
    assert!((before..=unix_millis()).contains(&now.feed.next_timestamp()));
    let ahead = before + 3_600_000;
    now.publish(ahead);
    assert_eq!(now.feed.next_timestamp(), ahead + 1);
    let started_ahead = fixture(Some(ahead), HOUR, 10);
    assert_eq!(started_ahead.feed.next_timestamp(), ahead + 1);
}

#[test]
fn while_the_past_is_unknown_no_gap_is_reported() {
    let mut fixture = fixture(None, FOREVER, 10);
    let early = fixture.feed.subscribe(Cursor::After(300)).unwrap();
    assert_eq!(early.page.wire, "");
    fixture.publisher.start_over(400, &[update(400), update(2_000)]);
    assert_eq!(early.channel.unwrap().live.recv().ok().map(|event| event.wire.clone()), None);
    assert_eq!(fixture.ask(Cursor::After(300)), (vec![400, 2_000], gap(300, Some(400))));
    assert_eq!(fixture.ask(Cursor::After(400)), (vec![2_000], None));
    assert_eq!(fixture.ask(Cursor::Beginning), (vec![400, 2_000], None));
}

#[test]
fn starting_over_reports_a_gap_to_every_client_before_it() {
    let mut fixture = fixture_with(&[2_000, 3_000], 10);
    let here = fixture.feed.subscribe(Cursor::After(3_000)).unwrap();
    fixture.publisher.start_over(5_000, &[update(5_000)]);
    fixture.publish(6_000);
    assert_eq!(live(&here), "", "its channel has ended: it subscribes again");
    for since in [2_000, 3_000, 4_999] {
        let told = fixture.ask(Cursor::After(since));
        assert_eq!(told, (vec![5_000, 6_000], gap(since, Some(5_000))));
    }
    assert_eq!(fixture.ask(Cursor::Beginning), (vec![5_000, 6_000], None));
    assert_eq!(fixture.ask(Cursor::After(5_000)), (vec![6_000], None));
}

#[test]
fn a_batch_ends_every_channel_and_comes_as_a_page() {
    let mut fixture = fixture_with(&[2_000], 10);
    let here = fixture.feed.subscribe(Cursor::After(2_000)).unwrap();
    fixture.publisher.publish(&[update(3_000), update(4_000)]);
    assert!(here.channel.unwrap().live.recv().is_err());
    assert_eq!(fixture.ask(Cursor::After(2_000)), (vec![3_000, 4_000], None));
}

#[test]
fn a_long_backlog_comes_in_pages_and_the_channel_with_the_last_one() {
    const COUNT: u64 = 5_000;
    let timestamps: Vec<u64> = (1..=COUNT).map(|number| STARTED + number).collect();
    let fixture = fixture_with(&timestamps, COUNT as usize);
    let (mut position, mut pages, mut updates) = (STARTED, 0, 0);
    loop {
        let subscription = fixture.feed.subscribe(Cursor::After(position)).unwrap();
        let page = subscription.page;
        assert_eq!(page.wire.lines().find_map(read_id), Some(position + 1));
        assert!(page.wire.len() < 65 * 1024, "{}", page.wire.len());
        assert_eq!(page.is_last, subscription.channel.is_some());
        pages += 1;
        updates += page.updates as u64;
        position = page.last.unwrap();
        if page.is_last {
            break;
        }
    }
    assert_eq!((position, updates), (STARTED + COUNT, COUNT));
    assert!(pages >= 4, "{pages}");
}

#[test]
fn a_limit_cuts_off_after_a_cursor_or_before_the_latest() {
    let fixture = fixture_with(&[2_000, 3_000, 4_000, 5_000, 6_000], 4);
    let find = |from, limit| {
        let found = fixture.feed.find(from, limit);
        let times: Vec<u64> = found.updates.iter().map(|update| update.timestamp).collect();
        (times, found.gap.map(|gap| gap.encode()))
    };
    assert_eq!(find(Cursor::Latest, 10), (vec![3_000, 4_000, 5_000, 6_000], None));
    assert_eq!(find(Cursor::Latest, 2), (vec![5_000, 6_000], None));
    assert_eq!(find(Cursor::Beginning, 2), (vec![3_000, 4_000], None));
    assert_eq!(find(Cursor::After(4_000), usize::MAX), (vec![5_000, 6_000], None));
    assert_eq!(find(Cursor::After(6_000), 1), (vec![], None));
    assert_eq!(find(Cursor::After(1_999), 1), (vec![3_000], gap(1_999, Some(3_000))));
}

#[test]
fn a_client_that_falls_behind_loses_its_channel_and_nothing_else() {
    let mut fixture = fixture_with(&[], 1_000);
    let slow = fixture.feed.subscribe(Cursor::Latest).unwrap();
    for time in 0..100 {
        fixture.publish(2_000 + time);
    }
    let received = slow.channel.unwrap().live.iter().count() as u64;
    assert!(received < 100, "the channel is bounded");
    let position = Cursor::After(2_000 + received - 1);
    assert_eq!(fixture.ask(position).0.len() as u64, 100 - received);
}

#[test]
fn the_status_reaches_present_and_future_subscribers() {
    let fixture = fixture_with(&[2_000], 10);
    let here = fixture.feed.subscribe(Cursor::Latest).unwrap();
    assert_eq!((here.status.stale, here.status.latest), (false, Some(2_000)));
    fixture.feed.announce(Some("timed out".to_owned()));
    let told = live(&here);
    assert!(told.starts_with("event: status\n"), "{told}");
    assert!(told.contains(r#""stale":true,"reason":"timed out","latest":2000"#), "{told}");
    let late = fixture.feed.subscribe(Cursor::Latest).unwrap().status;
    assert_eq!((late.stale, late.reason.as_deref()), (true, Some("timed out")));
    fixture.feed.announce(None);
    assert!(live(&here).contains(r#""stale":false,"reason":null"#));
}

#[test]
fn a_client_that_leaves_costs_nothing() {
    let mut fixture = fixture_with(&[], 10);
    let first = fixture.feed.subscribe(Cursor::Latest).unwrap();
    fixture.publish(2_000);
    let second = fixture.feed.subscribe(Cursor::Latest).unwrap();
    drop((first, second));
    assert!(fixture.feed.subscribers.lock().channels.is_empty());
}

#[test]
fn the_history_is_unlocked_while_subscribers_are_served() {
    let mut fixture = fixture_with(&[2_000], 1_000);
    let feed = fixture.feed.clone();
    let all: Vec<_> = (0..20_000)
        .map(|_| feed.subscribe(Cursor::After(2_000)).unwrap().channel.unwrap())
        .collect();
    // At the right moment the update is in the history and not yet in the last channel.
    let mut is_seen_early = |time: u64| {
        std::thread::scope(|scope| {
            scope.spawn(|| fixture.publish(time));
            while feed.latest() != Some(update(time)) {}
            let is_early = all[all.len() - 1].live.is_empty();
            scope.spawn(|| all.iter().for_each(|channel| drop(channel.live.recv())));
            is_early
        })
    };
    assert!((2_001..2_200).any(&mut is_seen_early), "only after all were served");
}

#[test]
fn an_event_is_encoded_once_and_shared() {
    let mut fixture = fixture_with(&[], 10);
    let subscribe = || fixture.feed.subscribe(Cursor::Latest).unwrap().channel.unwrap();
    let [one, other] = [subscribe(), subscribe()];
    fixture.publish(2_000);
    assert!(Arc::ptr_eq(&one.live.recv().unwrap(), &other.live.recv().unwrap()));
}

#[test]
fn closing_ends_every_subscription_and_admits_no_other() {
    let mut fixture = fixture_with(&[], 10);
    let here = fixture.feed.subscribe(Cursor::Latest).unwrap().channel.unwrap();
    fixture.publish(2_000);
    fixture.feed.close();
    assert_eq!(here.live.iter().count(), 1, "what was sent still arrives");
    assert!(fixture.feed.subscribe(Cursor::Latest).is_none());
}
