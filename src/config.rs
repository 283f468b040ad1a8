//! The command line and the environment, checked. Read once, by `main`.

use std::env::{self, VarError};
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, FromArgMatches, Parser, ValueEnum};
use ureq::Proxy;
use ureq::http::{HeaderValue, Uri};

use crate::source::store::Store;
use crate::source::{Endpoint, Source};
use crate::system::parse_duration;

/// CoinDesk's key. Not an option, because `ps` shows options to every user.
const KEY_VARIABLE: &str = "COINDESK_API_KEY";
/// The URL of a proxy, as other programs read it too. The first that is set takes precedence.
const PROXY_VARIABLES: [&str; 6] =
    ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// Streams the live bitcoin price in USD and replays what a client missed.
///
/// Try it: btc-ticker --source demo, then open http://127.0.0.1:8080 or
/// curl -N http://127.0.0.1:8080/stream
#[derive(Parser)]
#[command(version, verbatim_doc_comment, args_override_self = true)]
pub struct Config {
    /// Address and port to serve; port 0 picks a free one
    #[arg(long, env = "BTC_TICKER_LISTEN", default_value = "127.0.0.1:8080", value_parser = address)]
    pub listen: SocketAddr,

    /// Management address for /healthz and /metrics, which are then not served at --listen
    #[arg(long, env = "BTC_TICKER_ADMIN", value_name = "ADDRESS", value_parser = address)]
    pub admin: Option<SocketAddr>,

    /// Where prices come from; auto is CoinDesk if COINDESK_API_KEY is set, else Coinbase; with
    /// --source-url it is that URL, and no key is sent
    #[arg(long, env = "BTC_TICKER_SOURCE", default_value = "auto", value_enum)]
    source: Preset,

    // Checked by `contradiction`: clap would print the value, which may contain a password.
    /// Another URL for the source, or that of any other JSON API
    #[arg(long, env = "BTC_TICKER_SOURCE_URL", value_name = "URL", hide_env_values = true)]
    source_url: Option<String>,

    /// JSON pointer to the price in the answer, such as /data/amount
    #[arg(long, env = "BTC_TICKER_PRICE_AT", value_name = "POINTER", value_parser = pointer)]
    price_at: Option<String>,

    // Parsed by `Store::new`: clap would print the value, and the password in it.
    /// Redis stream that keeps updates and is shared by several processes; without it, updates are
    /// kept in memory. A password belongs in the environment variable: ps shows options to every user
    #[arg(long, env = "BTC_TICKER_STORE", value_name = "REDIS_URL", hide_env_values = true)]
    store: Option<String>,

    // Hyphens are allowed so that -5s gets the error about durations, not one about an option -5.
    /// How often to fetch the price
    #[arg(long, env = "BTC_TICKER_INTERVAL", default_value = "5s", allow_hyphen_values = true, value_parser = duration)]
    pub interval: Duration,

    /// How long to keep an update for clients that were away
    #[arg(long, env = "BTC_TICKER_RETENTION", default_value = "1h", allow_hyphen_values = true, value_parser = duration)]
    pub retention: Duration,

    /// How long a stream may be idle before it gets a keep-alive comment
    #[arg(long, env = "BTC_TICKER_HEARTBEAT", default_value = "15s", allow_hyphen_values = true, value_parser = duration)]
    pub heartbeat: Duration,

    /// How many streams may be open at once [default: as many as this machine allows]
    #[arg(long, env = "BTC_TICKER_MAX_CLIENTS", value_name = "NUMBER", allow_hyphen_values = true, value_parser = client_count)]
    pub max_clients: Option<u64>,

    /// Probe the service that runs at --admin or --listen, and exit with 0 if it is healthy
    #[arg(long)]
    pub check_health: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Preset {
    Auto,
    Coindesk,
    Coinbase,
    /// Simulated prices, for a machine without internet
    Demo,
}

impl Config {
    /// Parses and checks the command line and the environment. On an error, prints what to write instead and
    /// exits with 2.
    pub fn read() -> Config {
        let command = Config::command().mut_args(ignore_empty_variable);
        let parsed = command.clone().try_get_matches();
        let config = match parsed.and_then(|matches| Config::from_arg_matches(&matches)) {
            Ok(config) => config,
            Err(error) => exit(&command, &error),
        };
        if let Some(wrong) = config.contradiction() {
            Config::command().error(ErrorKind::ValueValidation, wrong).exit();
        }
        if config.source != Preset::Demo
            && let Some(name) = wrong_proxy()
        {
            let wrong = format!(
                "{name} is not the URL of a proxy; write http://host:port or socks5h://host:port, or unset it"
            );
            Config::command().error(ErrorKind::ValueValidation, wrong).exit();
        }
        config
    }

    /// Returns the first conflict between options.
    fn contradiction(&self) -> Option<&'static str> {
        if self.retention < self.interval {
            return Some(
                "--retention must be at least --interval; otherwise only the latest update is kept",
            );
        }
        if self.source_url.as_ref().is_some_and(|url| !is_url(url)) {
            return Some(
                "--source-url must be an absolute URL, such as https://api.example.com/btc",
            );
        }
        if key().is_some_and(|key| HeaderValue::from_str(&key).is_err()) {
            return Some(
                "COINDESK_API_KEY contains a character that a header cannot; copy it again",
            );
        }
        let has_own_url = self.source_url.is_some() || self.price_at.is_some();
        if self.source == Preset::Demo && has_own_url {
            return Some("--source demo has its own URL: leave out --source-url and --price-at");
        }
        self.store().err()
    }

    /// Returns the source that the options describe.
    pub fn source(&self) -> Source {
        let key = key();
        match self.source {
            Preset::Demo => Source::Demo,
            Preset::Coinbase => Source::Coinbase,
            Preset::Coindesk => Source::CoinDesk { key },
            Preset::Auto if self.source_url.is_some() => Source::Custom,
            Preset::Auto if key.is_some() => Source::CoinDesk { key },
            Preset::Auto => {
                log::info!(
                    "{KEY_VARIABLE} is not set, so prices come from Coinbase; for CoinDesk, get a \
                     key of a paid plan at https://developers.coindesk.com and set {KEY_VARIABLE}"
                );
                Source::Coinbase
            }
        }
    }

    /// Returns the endpoint of that source. (The demo has its URL once it is started.)
    pub fn endpoint(&self, source: &Source) -> Endpoint {
        let usual = source.endpoint();
        Endpoint {
            url: self.source_url.clone().unwrap_or(usual.url),
            pointer: self.price_at.clone().unwrap_or(usual.pointer),
        }
    }

    /// Returns the shared store, if there is one. The error is for the operator.
    pub fn store(&self) -> Result<Option<Store>, &'static str> {
        let Some(url) = &self.store else { return Ok(None) };
        let store = Store::new(url, self.source == Preset::Demo)?;
        Ok(Some(store))
    }
}

fn key() -> Option<String> {
    let key = env::var_os(KEY_VARIABLE)?.to_string_lossy().trim().to_owned();
    if key.is_empty() { None } else { Some(key) }
}

/// An empty environment variable counts as unset.
fn ignore_empty_variable(arg: Arg) -> Arg {
    let value = arg.get_env().and_then(env::var_os);
    match value {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    }
}

/// Prints the error and, if an environment variable has the wrong value, its name. Exits the process.
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

/// Returns the variable that should be the URL of a proxy and is not. ureq ignores such a variable and would
/// ask the source directly. The value may contain a password, so no error shows it.
fn wrong_proxy() -> Option<&'static str> {
    PROXY_VARIABLES.into_iter().find(|name| match env::var(name) {
        Ok(url) => !url.is_empty() && Proxy::new(&url).is_err(),
        Err(error) => error != VarError::NotPresent,
    })
}

/// Bounds of every duration. A shorter one makes no sense over a network; a longer one may overflow an
/// `Instant`.
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

fn client_count(text: &str) -> Result<u64, &'static str> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err("write a number from 1 to 1000000"),
    }
}

fn is_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    // The parser ignores a port that is no number up to 65535.
    let host_and_port = authority.as_str().rsplit('@').next().unwrap_or_default();
    let has_port = host_and_port.len() > authority.host().len();
    let has_valid_port = !has_port || authority.port_u16().is_some();
    matches!(uri.scheme_str(), Some("http" | "https")) && has_valid_port
}

fn pointer(text: &str) -> Result<String, &'static str> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("write a JSON pointer, such as /data/amount")
    }
}
