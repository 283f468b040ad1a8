//! Where prices come from: what a source consists of, and the ones that are known. The one in use is
//! made once, by `Config::source`. This room knows the feed, to which it publishes, and nothing of clients.

mod client;
pub mod demo;
mod error;
mod fetch;
pub mod follow;
mod origin;
mod outage;
pub mod poller;

use ureq::http::Uri;

/// The header of made-up prices, and what it says.
pub const PRICE_SOURCE: &str = "X-Price-Source";
pub const MADE_UP: &str = "demo (made up)";

/// Prices are stale when the source was not heard for so many intervals. (In a replica also when the
/// origin says so; and an origin that is connected may be quiet for three heartbeats, if that is longer.)
pub const STALE_AFTER: u32 = 3;

/// What a source consists of.
pub struct Source {
    /// What people are told; never the URL, which may have secrets.
    pub name: &'static str,
    pub url: String,
    /// JSON pointer into the answer.
    pub price_at: String,
    /// Sent as `Authorization: Apikey …` and shown nowhere.
    pub key: Option<String>,
    /// What to do where the source refuses us.
    pub advice: &'static str,
    /// Whether its prices are made up.
    pub made_up: bool,
    /// Whether it is another btc-ticker, whose stream is followed.
    pub is_followed: bool,
}

const COINDESK_ADVICE: &str = "CoinDesk's Data API needs the key of a paid plan: get one at \
    https://developers.coindesk.com and set COINDESK_API_KEY, or use --source coinbase";

impl Source {
    pub fn coindesk(key: Option<String>) -> Source {
        let url = "https://data-api.coindesk.com/index/cc/v1/latest/tick\
            ?market=cadli&instruments=BTC-USD&apply_mapping=true";
        let open = Source::open("CoinDesk", url, "/Data/BTC-USD/VALUE");
        Source { key, advice: COINDESK_ADVICE, ..open }
    }

    pub fn coinbase() -> Source {
        let url = "https://api.coinbase.com/v2/prices/BTC-USD/spot";
        Source::open("Coinbase", url, "/data/amount")
    }

    /// Any other JSON API, whose URL the operator gives. The pointer is Coinbase's, unless that is
    /// given too. It gets nobody's key.
    pub fn custom() -> Source {
        Source { name: "custom source", ..Source::coinbase() }
    }

    /// Made-up prices in CoinDesk's shape, from the endpoint that `main` starts.
    pub fn demo() -> Source {
        Source { made_up: true, ..Source::open("demo", "", "/Data/BTC-USD/VALUE") }
    }

    /// Another btc-ticker.
    pub fn origin(url: &str) -> Source {
        Source { is_followed: true, ..Source::open("origin", url, "") }
    }

    fn open(name: &'static str, url: &str, price_at: &str) -> Source {
        Source {
            name,
            url: url.to_owned(),
            price_at: price_at.to_owned(),
            key: None,
            advice: "the source wants credentials",
            made_up: false,
            is_followed: false,
        }
    }

    /// What may be shown of its URL: the rest may have secrets.
    pub fn host(&self) -> String {
        match self.url.parse::<Uri>() {
            Ok(uri) => uri.host().unwrap_or("?").to_owned(),
            Err(_) => "?".to_owned(),
        }
    }
}
