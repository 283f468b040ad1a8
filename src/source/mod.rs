//! Where prices come from: the known sources, fetching, polling, and the shared store. This module publishes
//! to the feed and does not depend on `http`.

pub mod demo;
mod error;
mod fetch;
mod outage;
pub mod poller;
pub mod reader;
mod standing;
pub mod store;
pub mod turns;

use ureq::http::Uri;

pub use standing::Standing;

/// The header of a response with simulated prices, and its value.
pub const PRICE_SOURCE: &str = "X-Price-Source";
pub const SIMULATED: &str = "demo (simulated)";

/// A source of prices.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// CoinDesk's Data API. The key is sent as `Authorization: Apikey …` and shown nowhere.
    CoinDesk {
        key: Option<String>,
    },
    Coinbase,
    /// Any other JSON API.
    Custom,
    /// Simulated prices, from a server that this process runs itself.
    Demo,
}

/// The URL to request, and where the price is in the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub url: String,
    /// A JSON pointer.
    pub pointer: String,
}

impl Source {
    /// The name that clients see.
    pub fn name(&self) -> &'static str {
        match self {
            Source::CoinDesk { .. } => "CoinDesk",
            Source::Coinbase => "Coinbase",
            Source::Custom => "custom source",
            Source::Demo => "demo",
        }
    }

    pub fn is_simulated(&self) -> bool {
        *self == Source::Demo
    }

    /// The default endpoint. That of a custom source, or of a demo that is not started, has no URL yet.
    pub fn endpoint(&self) -> Endpoint {
        let (url, pointer) = match self {
            Source::CoinDesk { .. } => (
                "https://data-api.coindesk.com/index/cc/v1/latest/tick\
                 ?market=cadli&instruments=BTC-USD&apply_mapping=true",
                "/Data/BTC-USD/VALUE",
            ),
            Source::Coinbase => ("https://api.coinbase.com/v2/prices/BTC-USD/spot", "/data/amount"),
            Source::Custom => ("", "/data/amount"),
            Source::Demo => ("", "/Data/BTC-USD/VALUE"),
        };
        Endpoint { url: url.to_owned(), pointer: pointer.to_owned() }
    }

    /// What to do if the source answers 401 or 403.
    fn advice(&self) -> &'static str {
        match self {
            Source::CoinDesk { .. } => {
                "CoinDesk's Data API needs the key of a paid plan: get one at \
                 https://developers.coindesk.com and set COINDESK_API_KEY, or use --source coinbase"
            }
            _ => "the source requires credentials",
        }
    }
}

impl Endpoint {
    /// The parts of the URL that may be secret: user and password, and the query.
    fn secrets(&self) -> Vec<String> {
        let Ok(uri) = self.url.parse::<Uri>() else { return Vec::new() };
        let mut secrets = Vec::new();
        if let Some((user, _)) = uri.authority().and_then(|it| it.as_str().rsplit_once('@')) {
            secrets.push(user.to_owned());
        }
        if let Some(query) = uri.query() {
            secrets.push(query.to_owned());
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets
    }

    /// The host, which is safe to log: the rest of the URL may contain secrets.
    pub fn host(&self) -> String {
        match self.url.parse::<Uri>() {
            Ok(uri) => uri.host().unwrap_or("?").to_owned(),
            Err(_) => "?".to_owned(),
        }
    }
}
