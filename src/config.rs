//! The command line and the environment, checked: what comes out of here makes sense.
//! Read once, by `main`.

use std::env;
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, FromArgMatches, Parser, ValueEnum, value_parser};
use ureq::http::Uri;

use crate::source::Source;
use crate::system::parse_duration;

/// Where CoinDesk's key is taken from. Not an option: options are seen by every `ps`.
const KEY_VARIABLE: &str = "COINDESK_API_KEY";

/// Tells what a bitcoin costs in USD, now, and what you missed while you were away.
///
/// Try it: btc-ticker --source demo, then open http://127.0.0.1:8080 or
/// curl -N http://127.0.0.1:8080/stream
#[derive(Parser)]
#[command(version, verbatim_doc_comment, args_override_self = true)]
pub struct Config {
    /// Address and port to serve; port 0 takes a free one
    #[arg(long, env = "BTC_TICKER_LISTEN", default_value = "127.0.0.1:8080", value_parser = address)]
    pub listen: SocketAddr,

    /// Where prices come from; auto is CoinDesk where COINDESK_API_KEY is set, else Coinbase; with
    /// --source-url it is that URL, and gets no key
    #[arg(long, env = "BTC_TICKER_SOURCE", default_value = "auto", value_enum)]
    source: Preset,

    /// Another URL for the source, or that of any other JSON API
    #[arg(long, env = "BTC_TICKER_SOURCE_URL", value_name = "URL", value_parser = url)]
    source_url: Option<String>,

    /// JSON pointer to the price in the answer, such as /data/amount
    #[arg(long, env = "BTC_TICKER_PRICE_AT", value_name = "POINTER", value_parser = pointer)]
    price_at: Option<String>,

    /// Another btc-ticker whose stream is followed, instead of a source: this is a replica of it
    #[arg(long, env = "BTC_TICKER_FOLLOW", value_name = "URL", value_parser = url)]
    #[arg(conflicts_with_all = ["source", "source_url", "price_at"])]
    follow: Option<String>,

    // Hyphens are allowed so that -5s is told what a duration looks like, and not that there is no option -5.
    /// How often the source is asked; in a replica, the same as at its origin
    #[arg(long, env = "BTC_TICKER_INTERVAL", default_value = "5s", allow_hyphen_values = true, value_parser = duration)]
    pub interval: Duration,

    /// How long an update is kept for clients that were away
    #[arg(long, env = "BTC_TICKER_RETENTION", default_value = "1h", allow_hyphen_values = true, value_parser = duration)]
    pub retention: Duration,

    /// A file that keeps updates across restarts; without one a restart forgets them
    #[arg(long, env = "BTC_TICKER_JOURNAL", value_name = "FILE")]
    pub journal: Option<PathBuf>,

    /// A stream that was quiet for so long gets a comment; in a replica, the same as at its origin
    #[arg(long, env = "BTC_TICKER_HEARTBEAT", default_value = "15s", allow_hyphen_values = true, value_parser = duration)]
    pub heartbeat: Duration,

    /// How many streams may be open at once [default: as many as this machine allows]
    #[arg(long, env = "BTC_TICKER_MAX_CLIENTS", value_name = "NUMBER", value_parser = value_parser!(u64).range(1..=1_000_000))]
    pub max_clients: Option<u64>,

    /// Ask the service that runs at --listen how it is, and exit with 0 if it is well
    #[arg(long)]
    pub check_health: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Preset {
    Auto,
    Coindesk,
    Coinbase,
    /// Made-up prices, for a machine without internet
    Demo,
}

impl Config {
    /// Reads and checks. Where a value makes no sense it says what would, and ends the process with 2.
    pub fn read() -> Config {
        let command = Config::command().mut_args(without_empty_variable);
        let parsed = command.clone().try_get_matches();
        let config = match parsed.and_then(|matches| Config::from_arg_matches(&matches)) {
            Ok(config) => config,
            Err(error) => exit(&command, &error),
        };
        if let Some(wrong) = config.contradiction() {
            Config::command().error(ErrorKind::ValueValidation, wrong).exit();
        }
        config
    }

    /// What makes no sense together.
    fn contradiction(&self) -> Option<&'static str> {
        if self.retention < self.interval {
            return Some(
                "--retention must be at least --interval, or nothing but the latest update is kept",
            );
        }
        let has_own_url = self.source_url.is_some() || self.price_at.is_some();
        if self.source == Preset::Demo && has_own_url {
            return Some("--source demo has its own URL: leave out --source-url and --price-at");
        }
        None
    }

    /// The source that the options describe. That of a demo has no URL yet.
    pub fn source(&self) -> Source {
        if let Some(origin) = &self.follow {
            return Source::origin(origin);
        }
        let key = match env::var(KEY_VARIABLE) {
            Ok(key) if !key.trim().is_empty() => Some(key.trim().to_owned()),
            _ => None,
        };
        let mut source = match self.source {
            Preset::Demo => Source::demo(),
            Preset::Coinbase => Source::coinbase(),
            Preset::Coindesk => Source::coindesk(key),
            Preset::Auto if self.source_url.is_some() => Source::custom(),
            Preset::Auto if key.is_some() => Source::coindesk(key),
            Preset::Auto => {
                log::warn!(
                    "{KEY_VARIABLE} is not set, so prices come from Coinbase; for CoinDesk, get a \
                     key of a paid plan at https://developers.coindesk.com and set {KEY_VARIABLE}"
                );
                Source::coinbase()
            }
        };
        if let Some(url) = &self.source_url {
            source.url.clone_from(url);
        }
        if let Some(price_at) = &self.price_at {
            source.price_at.clone_from(price_at);
        }
        source
    }
}

/// An environment variable that is empty counts as unset.
fn without_empty_variable(arg: Arg) -> Arg {
    let value = arg.get_env().and_then(env::var_os);
    match value {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    }
}

/// Says what is wrong, and which environment variable has the wrong value, if one has, and ends the
/// process.
fn exit(command: &Command, error: &clap::Error) -> ! {
    let _ = error.print();
    if let Some(ContextValue::String(wrong)) = error.get(ContextKind::InvalidValue) {
        for variable in command.get_arguments().filter_map(Arg::get_env) {
            if env::var(variable).as_ref() == Ok(wrong) {
                let name = variable.display();
                let _ = writeln!(io::stderr(), "The environment variable {name} has this value.");
            }
        }
    }
    std::process::exit(error.exit_code())
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    const FORM: &str = "write an address and a port, such as 127.0.0.1:8080";
    let mut found = text.to_socket_addrs().map_err(|_| FORM)?;
    found.next().ok_or(FORM)
}

/// Bounds of every duration. A shorter one makes no sense over a network; with a longer one an `Instant`
/// may overflow.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

fn duration(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "write a duration from 1ms to 366d, such as 5s, 1m 30s, 1h, 7d or 2w";
    let Some(parsed) = parse_duration(text) else { return Err(FORM) };
    let Ok(duration) = Duration::try_from(parsed) else { return Err(FORM) };
    if duration < SHORTEST || duration > LONGEST {
        return Err(FORM);
    }
    Ok(duration)
}

fn url(text: &str) -> Result<String, &'static str> {
    const FORM: &str =
        "write a whole URL, such as http://origin:8080 or https://api.example.com/btc";
    let uri: Uri = text.parse().map_err(|_| FORM)?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some() => Ok(text.to_owned()),
        _ => Err(FORM),
    }
}

fn pointer(text: &str) -> Result<String, &'static str> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("write a JSON pointer, such as /data/amount")
    }
}
