//! The command line and the environment, checked: what comes out of here makes sense.
//! Read once, by `main`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum, value_parser};
use jiff::SignedDuration;

use crate::source::Source;

/// Where CoinDesk's key is taken from. Not an option: options are seen by every `ps`.
const KEY_VARIABLE: &str = "COINDESK_API_KEY";

/// Tells what a bitcoin costs in USD, now, and what you missed while you were away.
///
/// Try it: btc-ticker --source demo, then open http://127.0.0.1:8080 or
/// curl -N http://127.0.0.1:8080/stream
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, args_override_self = true)]
pub struct Config {
    /// Address and port to serve; port 0 takes a free one
    #[arg(long, env = "BTC_TICKER_LISTEN", default_value = "127.0.0.1:8080", value_parser = address)]
    pub listen: SocketAddr,

    /// Where prices come from; auto is CoinDesk where COINDESK_API_KEY is set, else Coinbase
    #[arg(long, env = "BTC_TICKER_SOURCE", default_value = "auto", value_enum)]
    source: Preset,

    /// Another URL for the source, or that of any other JSON API
    #[arg(long, env = "BTC_TICKER_SOURCE_URL", value_name = "URL", value_parser = url)]
    source_url: Option<String>,

    /// JSON pointer to the price in the answer, such as /data/amount
    #[arg(long, env = "BTC_TICKER_PRICE_AT", value_name = "POINTER", value_parser = pointer)]
    price_at: Option<String>,

    /// JSON pointer to the time in the answer (Unix ms), to keep the source's time for an update
    #[arg(long, env = "BTC_TICKER_TIMESTAMP_AT", value_name = "POINTER", value_parser = pointer)]
    timestamp_at: Option<String>,

    /// How often the source is asked
    #[arg(long, env = "BTC_TICKER_INTERVAL", default_value = "5s", allow_hyphen_values = true, value_parser = duration)]
    pub interval: Duration,

    /// How long an update is kept for clients that were away
    #[arg(long, env = "BTC_TICKER_RETENTION", default_value = "1h", allow_hyphen_values = true, value_parser = duration)]
    pub retention: Duration,

    /// A file that keeps updates across restarts; without one a restart forgets them
    #[arg(long, env = "BTC_TICKER_JOURNAL", value_name = "FILE")]
    pub journal: Option<PathBuf>,

    /// A stream that has been quiet for so long gets a comment, to keep it open
    #[arg(long, env = "BTC_TICKER_HEARTBEAT", default_value = "15s", allow_hyphen_values = true, value_parser = duration)]
    pub heartbeat: Duration,

    /// How many streams may be open at once [default: as many as this machine allows]
    #[arg(long, env = "BTC_TICKER_MAX_CLIENTS", value_name = "NUMBER", value_parser = value_parser!(u64).range(1..=1_000_000))]
    pub max_clients: Option<u64>,

    /// Ask the service that runs at --listen how it is, and exit with 0 if it is well
    #[arg(long)]
    pub check_health: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Preset {
    Auto,
    Coindesk,
    Coinbase,
    /// Made-up prices, for a machine without internet
    Demo,
}

impl Config {
    /// Reads and checks. What makes no sense ends the process (2), with a line on what would.
    pub fn read() -> Config {
        let config = Config::parse();
        let has_own_url = config.source_url.is_some() || config.price_at.is_some();
        let wrong = if config.retention < config.interval {
            "--retention must be at least --interval, or nothing is ever kept"
        } else if config.is_demo() && has_own_url {
            "--source demo has its own URL: leave out --source-url and --price-at"
        } else {
            return config;
        };
        Config::command().error(ErrorKind::ValueValidation, wrong).exit()
    }

    /// Whether prices are made up by this process.
    pub fn is_demo(&self) -> bool {
        self.source == Preset::Demo
    }

    /// The source that the options describe. `demo_url` is where the demo endpoint listens.
    pub fn source(&self, demo_url: Option<&str>) -> Source {
        let key = std::env::var(KEY_VARIABLE).ok().map(|key| key.trim().to_owned());
        let key = key.filter(|key| !key.is_empty());
        let is_auto = self.source == Preset::Auto;
        let mut source = match self.source {
            Preset::Demo => Source::demo(demo_url.unwrap_or_default()),
            Preset::Coinbase => Source::coinbase(),
            Preset::Auto if key.is_none() => Source::coinbase(),
            Preset::Auto | Preset::Coindesk => Source::coindesk(key),
        };
        if let Some(url) = &self.source_url {
            source.url.clone_from(url);
            if is_auto {
                // Nobody said that this is CoinDesk, so it does not get CoinDesk's key.
                source = Source { name: "custom source", key: None, advice: "", ..source };
            }
        } else if is_auto && source.key.is_none() {
            log::warn!(
                "{KEY_VARIABLE} is not set, so prices come from Coinbase; for CoinDesk, get a key of \
                 a paid plan at https://developers.coindesk.com and set {KEY_VARIABLE}"
            );
        }
        let price_at = self.price_at.clone().unwrap_or(source.price_at);
        Source { price_at, timestamp_at: self.timestamp_at.clone(), ..source }
    }
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or("write an address and a port, such as 127.0.0.1:8080")
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|it| Duration::try_from(it).ok());
    let duration = parsed.filter(|duration| (SHORTEST..=LONGEST).contains(duration));
    duration.ok_or("write a duration from 1ms to 366 days, such as 5s, 1m 30s or 1h")
}

/// Bounds of every duration. Below, a network has no meaning; above, an `Instant` may not reach.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

fn url(text: &str) -> Result<String, &'static str> {
    let uri: Option<ureq::http::Uri> = text.parse().ok();
    let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    let url = uri.filter(|uri| uri.host().is_some()).map(|_| text.to_owned());
    url.ok_or("write a whole URL, such as https://api.example.com/btc")
}

fn pointer(text: &str) -> Result<String, &'static str> {
    let pointer = text.starts_with('/').then(|| text.to_owned());
    pointer.ok_or("write a JSON pointer, such as /data/amount")
}
