//! The load benchmark: how many clients one process can serve. See `cargo bench --bench load -- --help`.
//!
//! Starts the real server with a simulated source, runs all clients on one thread, and measures what they
//! receive and what the server uses. With `--peer`, other servers are measured in turn, so that other load on
//! the machine affects all of them alike.

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

/// Descriptors that are not clients.
const OTHER_DESCRIPTORS: usize = 200;

const EXPLANATION: &str = "\
fan-out   age of an update when a client receives it, from the source's response; `last client` and
          `worst` are the median and the maximum, over all updates, of its age at the last client
catch-up  all clients request a backlog of 720 updates at once
burst     all clients connect at once; time to the first byte of each stream
churn     half of the clients connect and disconnect; before, during and after
price     keep-alive connections request /price in a closed loop
idle      no clients; the source is polled every 5 s

CPU is that of the server; `load` is that of the clients, on the same machine. `machine` is the
decrease of available memory, which includes the clients' end of each connection. `missed` counts
updates that one client received and another did not; `retries`, connections that failed before the
stream began.";

#[derive(Parser)]
#[command(about = "Measures btc-ticker under load", bin_name = "cargo bench --bench load --")]
#[command(after_help = EXPLANATION)]
struct Arguments {
    /// Scenarios to measure [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,

    /// Numbers of clients [default: several for each scenario, up to the descriptor limit]
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,

    /// Servers to compare with, in the same run; they are built first
    #[arg(long, value_enum)]
    peer: Vec<Kind>,

    /// Runs of each measurement; the tables show medians
    #[arg(long, default_value_t = 1)]
    runs: usize,

    /// Updates in each fan-out
    #[arg(long, default_value_t = 20)]
    updates: usize,

    /// Duration of the churn, in seconds
    #[arg(long, default_value_t = 30)]
    churn_for: u64,

    /// Print JSON with every run, instead of tables
    #[arg(long)]
    json: bool,

    /// Also plot the fan-out: time to the last client, and memory, by number of clients
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Set by `cargo bench`, but not by `cargo test`, which only checks that the benchmark builds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing measured; run cargo bench --bench load");
        return Ok(());
    }
    server::kill_on_interrupt()?;
    let settings = Settings {
        updates: arguments.updates,
        churn_for: Duration::from_secs(arguments.churn_for),
    };
    let kinds = [&[Kind::BtcTicker], &arguments.peer[..]].concat();
    let mut rows = plan(&arguments, &kinds, raise_descriptor_limit()?);
    // A wrong path fails now, not after an hour.
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
    // Written before the tables, because a closed stdout ends the program. An error is reported after them.
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

/// Returns the number of clients that the new limit allows, both here and in a server that reserves one
/// connection in 32 for other requests.
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
    let _ = stderr().flush();
}
