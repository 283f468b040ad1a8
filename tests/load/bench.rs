//! How much of a crowd one process can carry: `cargo bench --bench load -- --help`.
//!
//! It starts the real server against a source of its own, plays all its clients on one thread, and
//! measures what they see and what the server uses. With `--peer` it does the same to another
//! server, turn by turn, so that whatever else the machine does meanwhile falls on all of them.

mod calm;
mod catch_up;
mod churn;
mod client;
mod crowd;
mod fan_out;
mod plot;
mod price;
mod report;
mod server;
mod source;
mod sse;
mod trial;

use std::io::{IsTerminal, Write, stderr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use report::Row;
use server::Kind;
use trial::{Scenario, Settings, Trial};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Descriptors that are no clients.
const OTHER_DESCRIPTORS: usize = 200;

const EXPLANATION: &str = "\
fan-out   how old an update is when clients have it, counted from when the source answered;
          `last client` and `worst` are the median and the maximum, over all updates, of its age
          when the last client had it
catch-up  all clients at once ask for a backlog of 720 updates
burst     all clients connect at once: until something is streamed to them
churn     half of the clients come and go; before, meanwhile and after
price     connections ask for /price, each as soon as it has the answer before
idle      no client, a source polled every 5 s

CPU is that of the server, `load` that of the clients, which share the machine with it. `machine` is
what the machine has less of, which includes the clients' end of each connection. `missed` counts
updates that some client had and another had not, `retries` connections that came to nothing.";

#[derive(Parser)]
#[command(about = "Measures btc-ticker under load", bin_name = "cargo bench --bench load --")]
#[command(after_help = EXPLANATION)]
struct Arguments {
    /// What to measure [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,

    /// How many clients [default: several numbers, up to what the descriptors allow]
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,

    /// A server to compare with, in the same run; it is built first
    #[arg(long, value_enum)]
    peer: Vec<Kind>,

    /// How often to measure each; medians are shown
    #[arg(long, default_value_t = 1)]
    runs: usize,

    /// How many updates a fan-out is measured over
    #[arg(long, default_value_t = 20)]
    updates: usize,

    /// How long clients come and go, in seconds
    #[arg(long, default_value_t = 30)]
    churn_for: u64,

    /// JSON instead of tables, with every run
    #[arg(long)]
    json: bool,

    /// Draw the fan-out too: time to the last client, and memory, over the number of clients
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// What cargo says when it means it, and does not just test that benchmarks build.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing measured: this is for cargo bench --bench load");
        return Ok(());
    }
    server::kill_on_interrupt()?;
    let settings = Settings {
        updates: arguments.updates,
        churn_for: Duration::from_secs(arguments.churn_for),
    };
    let kinds = [&[Kind::BtcTicker], &arguments.peer[..]].concat();
    let mut rows = plan(&arguments, &kinds, raise_descriptor_limit()?);
    // A path that is wrong is told now, not after an hour.
    let plot = match &arguments.plot {
        Some(path) => Some(plot::open(path, &rows)?),
        None => None,
    };
    for kind in &kinds {
        kind.build()?;
    }

    let total = rows.len() * arguments.runs;
    for run in 0..arguments.runs {
        for (nth, row) in rows.iter_mut().enumerate() {
            let (scenario, kind) = (row.scenario.name(), row.kind.name());
            let done = total / arguments.runs * run + nth;
            progress(&format!("{}/{total} {scenario}: {kind}, {} clients", done + 1, row.clients));
            let figures = Trial::run(row.scenario, row.kind, row.clients, settings);
            row.runs.push(figures.map_err(|error| error.to_string()));
        }
    }
    progress("");
    // Before the tables, because printing ends the program if nobody reads on; it fails only after them.
    let drawn = match plot {
        Some(mut file) => plot::write(&mut file, &rows, arguments.runs),
        None => Ok(()),
    };
    if arguments.json {
        println!("{:#}", report::json(&rows, arguments.runs));
    } else {
        print!("{}", report::tables(&rows, arguments.runs));
    }
    drawn
}

fn plan(arguments: &Arguments, kinds: &[Kind], most: usize) -> Vec<Row> {
    let scenarios = match &arguments.scenario[..] {
        [] => Scenario::value_variants(),
        chosen => chosen,
    };
    let mut rows = Vec::new();
    for &scenario in scenarios {
        let sizes = match &arguments.clients[..] {
            chosen @ [_, ..] if scenario != Scenario::Idle => chosen.to_vec(),
            _ => scenario.sizes(most),
        };
        for clients in sizes {
            rows.extend(kinds.iter().map(|&kind| Row {
                scenario,
                clients,
                kind,
                runs: Vec::new(),
            }));
        }
    }
    rows
}

/// Returns how many clients that leaves room for, here and in a server that keeps one connection in 32
/// for others.
fn raise_descriptor_limit() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok((hard as usize).saturating_sub(OTHER_DESCRIPTORS) / 32 * 31)
}

fn progress(text: &str) {
    if !stderr().is_terminal() {
        if !text.is_empty() {
            eprintln!("{text}");
        }
        return;
    }
    eprint!("\r\x1b[K{text}");
    // A progress line that cannot be written is no reason to stop.
    let _ = stderr().flush();
}
