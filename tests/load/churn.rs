//! The scenario churn: half of the clients stay connected; the others disconnect, half of the time with a
//! reset, and reconnect. Measures what leaks.

use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::Result;
use crate::crowd::Crowd;
use crate::report::Figures;
use crate::trial::Trial;

const LONGEST_VISIT: Duration = Duration::from_secs(3);
const LONGEST_ABSENCE: Duration = Duration::from_secs(1);

pub fn run(trial: &Trial) -> Result<Figures> {
    trial.first_update()?;
    let stay = trial.clients / 2;
    let mut crowd = Crowd::new(trial.server.address, "/stream", trial.clients)?;
    // All connect once before the baseline: memory that a server keeps for reuse is not a leak, but growth
    // with each further visit is.
    crowd.open(0..trial.clients)?;
    trial.next_update(&mut crowd, trial.clients)?;
    for index in stay..trial.clients {
        leave(&mut crowd, index, false)?;
    }
    let before = trial.settle(&mut crowd)?;
    let (retries, lost) = (crowd.retries, crowd.lost);

    let (mut visits, mut most_threads) = (0_usize, before.threads);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let start = Instant::now();
    let mut changes: Vec<Instant> =
        (stay..trial.clients).map(|_| start + random.up_to(LONGEST_VISIT)).collect();
    while start.elapsed() < trial.settings.churn_for {
        crowd.pump_until(Duration::from_millis(10), |_| false)?;
        most_threads = most_threads.max(trial.server.usage()?.threads);
        let now = Instant::now();
        for (index, change) in (stay..).zip(&mut changes).filter(|(_, change)| **change <= now) {
            if crowd.is_wanted(index) {
                leave(&mut crowd, index, visits % 2 == 0)?;
                *change = now + random.up_to(LONGEST_ABSENCE);
            } else {
                crowd.open([index])?;
                visits += 1;
                *change = now + random.up_to(LONGEST_VISIT);
            }
        }
    }
    for index in stay..trial.clients {
        leave(&mut crowd, index, false)?;
    }
    let after = trial.settle(&mut crowd)?;
    let last = trial.next_update(&mut crowd, stay)?;

    let missed = crowd.missed(0..stay, Some(last)) + crowd.missed(stay..trial.clients, None);
    Ok(vec![
        ("visits", visits as f64),
        ("threads before", before.threads as f64),
        ("threads during", most_threads as f64),
        ("threads after", after.threads as f64),
        ("fds before", before.descriptors as f64),
        ("fds after", after.descriptors as f64),
        ("MB before", before.resident as f64 / 1024.0),
        ("MB after", after.resident as f64 / 1024.0),
        ("missed", missed as f64),
        ("repeated", crowd.repeated() as f64),
        ("lost", (crowd.lost - lost) as f64),
        ("retries", (crowd.retries - retries) as f64),
    ])
}

fn leave(crowd: &mut Crowd, index: usize, abruptly: bool) -> Result<()> {
    if let Some(stream) = crowd.close(index)
        && abruptly
    {
        // Makes close send a reset instead of FIN.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

/// Xorshift: the same visits in every run and for every server.
struct Random(u64);

impl Random {
    fn up_to(&mut self, longest: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        longest.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}
