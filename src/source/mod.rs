//! Where prices come from: what makes up a source, and those that are known. Made once, by the
//! command line. This room knows the feed, to which it publishes, and nothing of clients.

pub mod demo;
pub mod fetch;
pub mod outage;
pub mod poller;

use crate::feed::Dating;

/// Said, in a response header, of every price that is not a real one.
pub const MADE_UP: (&str, &str) = ("X-Price-Source", "demo (made up)");

/// What makes up a source.
#[derive(Clone)]
pub struct Source {
    /// What people are told; never the URL, which may have secrets.
    pub name: &'static str,
    pub url: String,
    /// JSON pointers into the answer.
    pub price_at: String,
    pub timestamp_at: Option<String>,
    /// Sent as `Authorization: Apikey …` and shown nowhere.
    pub key: Option<String>,
    /// What to do where the source refuses us.
    pub advice: &'static str,
    /// Whether its prices are none of a market.
    pub made_up: bool,
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

    /// Made-up prices, from `url` in CoinDesk's shape.
    pub fn demo(url: &str) -> Source {
        Source { made_up: true, ..Source::open("demo", url, "/Data/BTC-USD/VALUE") }
    }

    fn open(name: &'static str, url: &str, price_at: &str) -> Source {
        Source {
            name,
            url: url.to_owned(),
            price_at: price_at.to_owned(),
            timestamp_at: None,
            key: None,
            advice: "the source wants credentials",
            made_up: false,
        }
    }

    /// What may be shown of its URL: the rest may have secrets.
    pub fn host(&self) -> String {
        let uri: Option<ureq::http::Uri> = self.url.parse().ok();
        uri.as_ref().and_then(|uri| uri.host()).unwrap_or("?").to_owned()
    }

    /// Where the timestamps of its updates come from.
    pub fn dating(&self) -> Dating {
        if self.timestamp_at.is_some() { Dating::Origin } else { Dating::Own }
    }
}
