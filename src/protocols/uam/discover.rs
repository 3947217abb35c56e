//! Finding a relay (sheet, section 5.1): SRV, else the well-known file at the domain.
//!
//! The limits on time and number, the cache and the single flight are the core's; the guard against
//! private addresses is in the client. Here is only which names are asked in which order, and what of
//! the answers is believed.

use std::time::Duration;

use ::http::{HeaderMap, Method, Uri};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::http::client::{Client, SrvTarget};
use crate::identity::PublicKey;
use crate::protocol::{Answer, PeerName, Request, TransportError, TransportKind};

use super::relay_request::Form;

/// One look-up.
const LOOKUP: Duration = Duration::from_secs(2);
/// The core allows 5 s for everything, so the time is shared: the well-known file at the domain is
/// asked for too when SRV has not led to a key by then, ...
const HEAD_START: Duration = Duration::from_millis(1_500);
/// ... SRV counts no more from then on (what the fallback found is taken instead), ...
const SRV_END: Duration = Duration::from_millis(3_500);
/// ... and the question for the wire form, which can stay open, has this long.
const DIALECT: Duration = Duration::from_secs(1);
/// Largest answer of a look-up, bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// SRV targets tried at most.
const MAX_TARGETS: usize = 4;
/// Longest endpoint URL.
const MAX_URL: usize = 2048;
/// Path of the delivery route.
pub const DELIVER_PATH: &str = "/api/v1/federation/deliver";
/// Path of the relay's own description.
pub const WELL_KNOWN_PATH: &str = "/.well-known/uam-relay.json";

/// The look-ups that UAM makes, so that tests can answer them.
pub trait Net: Send + Sync + 'static {
    /// GET of an absolute URL.
    fn get<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Answer, TransportError>>;
    /// SRV records, best first; empty: there is none.
    fn srv<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<SrvTarget>, TransportError>>;
    /// The client behind it, for a probe; a stub has none.
    fn client(&self) -> Option<&Client> {
        None
    }
}

impl Net for Client {
    fn get<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Answer, TransportError>> {
        let request = Request {
            method: Method::GET,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        Box::pin(self.send(request, LOOKUP, MAX_ANSWER))
    }

    fn srv<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<SrvTarget>, TransportError>> {
        Box::pin(Client::srv(self, name))
    }

    fn client(&self) -> Option<&Client> {
        Some(self)
    }
}

/// Where a relay is and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// URL that takes deliveries.
    pub endpoint: String,
    /// The same at further SRV targets.
    pub alternatives: Vec<String>,
    /// Its key.
    pub public_key: [u8; 32],
    /// `dns-srv`, `well-known` or `config`.
    pub via: &'static str,
    /// Which wire form it speaks, if it said.
    pub dialect: Option<Form>,
}

/// What the configuration pins for a relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pin {
    /// Base URL, without a slash at its end.
    pub base: Option<String>,
    /// Its key.
    pub public_key: Option<[u8; 32]>,
}

/// Looks a relay up.
pub async fn discover(net: &dyn Net, name: &PeerName, pin: &Pin) -> Result<Found, TransportError> {
    if let Pin {
        base: Some(base),
        public_key: Some(public_key),
    } = pin
    {
        // Nothing is left to ask; the wire form shows itself at the first delivery.
        return Ok(pinned(base, *public_key));
    }
    let mut found = locate(net, name, pin).await?;
    let asked = tokio::time::timeout(DIALECT, dialect(net, &found.endpoint)).await;
    found.dialect = asked.ok().flatten();
    Ok(found)
}

async fn locate(net: &dyn Net, name: &PeerName, pin: &Pin) -> Result<Found, TransportError> {
    if let Some(base) = &pin.base {
        return Ok(pinned(base, well_known(net, base).await?.public_key));
    }
    let end = Instant::now() + SRV_END;
    let mut srv = std::pin::pin!(by_srv(net, name, end));
    let fallback = async {
        let found = by_domain(net, name).await;
        found.map(|found| with_pinned_key(found, pin))
    };
    match tokio::time::timeout(HEAD_START, &mut srv).await {
        Ok(Some(found)) => return Ok(with_pinned_key(found, pin)),
        Ok(None) => return fallback.await,
        Err(_) => {}
    }
    // Slow name servers or targets: both ways at once from here, so that the second has its chance.
    let srv = async { tokio::time::timeout_at(end, srv).await.ok().flatten() };
    match tokio::join!(srv, fallback) {
        (Some(found), _) => Ok(with_pinned_key(found, pin)),
        (None, found) => found,
    }
}

/// By the well-known file at the domain itself.
async fn by_domain(net: &dyn Net, name: &PeerName) -> Result<Found, TransportError> {
    let file = well_known(net, &format!("https://{name}")).await?;
    let endpoint = checked_endpoint(&file.endpoint).ok_or_else(|| {
        failed(format!(
            "the well-known file of {name} names no usable federation_endpoint"
        ))
    })?;
    Ok(Found {
        endpoint,
        alternatives: Vec::new(),
        public_key: file.public_key,
        via: "well-known",
        dialect: None,
    })
}

fn pinned(base: &str, public_key: [u8; 32]) -> Found {
    Found {
        endpoint: format!("{base}{DELIVER_PATH}"),
        alternatives: Vec::new(),
        public_key,
        via: "config",
        dialect: None,
    }
}

fn with_pinned_key(mut found: Found, pin: &Pin) -> Found {
    if let Some(key) = pin.public_key {
        found.public_key = key;
    }
    found
}

/// The first SRV target that shows a key; the others stay as alternatives. Those not yet asked share
/// the time until `end`.
async fn by_srv(net: &dyn Net, name: &PeerName, end: Instant) -> Option<Found> {
    // A name with a port, or an address, says itself where to go.
    if name.as_str().contains([':', '[']) || name.as_str().parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    let targets = match net.srv(&format!("_uam._tcp.{name}")).await {
        Ok(targets) => targets,
        Err(error) => {
            tracing::debug!(peer = %name, %error, "no SRV answer; trying the well-known file");
            return None;
        }
    };
    let bases: Vec<String> = targets
        .iter()
        .filter_map(base_of)
        .take(MAX_TARGETS)
        .collect();
    for (n, base) in bases.iter().enumerate() {
        let left = u32::try_from(bases.len() - n).unwrap_or(u32::MAX);
        let share = end.saturating_duration_since(Instant::now()) / left;
        let asked = tokio::time::timeout(share, well_known(net, base)).await;
        match asked.unwrap_or_else(|_| Err(failed("it did not answer in its share of time".into())))
        {
            Ok(file) => {
                tracing::info!(
                    "DNS SRV for {name} resolved to {}",
                    base.trim_start_matches("https://")
                );
                let alternatives = bases
                    .iter()
                    .enumerate()
                    .filter(|(m, _)| *m != n)
                    .map(|(_, base)| format!("{base}{DELIVER_PATH}"))
                    .collect();
                return Some(Found {
                    endpoint: format!("{base}{DELIVER_PATH}"),
                    alternatives,
                    public_key: file.public_key,
                    via: "dns-srv",
                    dialect: None,
                });
            }
            Err(error) => {
                tracing::info!(peer = %name, target = %base, %error, "SRV target gives no key");
            }
        }
    }
    None
}

/// `https://target:port`; `None` for the root target (no such service) and for what is no host name.
pub(super) fn base_of(target: &SrvTarget) -> Option<String> {
    let host = target.target.trim_end_matches('.').to_ascii_lowercase();
    let name = PeerName::parse(&host).ok()?;
    if name.as_str().contains(':') || target.port == 0 {
        return None;
    }
    Some(format!("https://{name}:{}", target.port))
}

struct WellKnown {
    endpoint: String,
    public_key: [u8; 32],
}

/// Reads `BASE/.well-known/uam-relay.json`.
async fn well_known(net: &dyn Net, base: &str) -> Result<WellKnown, TransportError> {
    let url = format!("{base}{WELL_KNOWN_PATH}");
    let answer = net.get(&url).await?;
    if answer.status != 200 {
        return Err(failed(format!("{url} answered {}", answer.status)));
    }
    #[derive(serde::Deserialize)]
    struct File {
        federation_endpoint: String,
        public_key: String,
    }
    let file: File = serde_json::from_slice(&answer.body).map_err(|_| {
        failed(format!(
            "{url} is no JSON object with federation_endpoint and public_key"
        ))
    })?;
    let public_key = PublicKey::from_base64(&file.public_key)
        .map_err(|_| failed(format!("{url} names no usable Ed25519 key")))?
        .to_bytes();
    Ok(WellKnown {
        endpoint: file.federation_endpoint,
        public_key,
    })
}

/// A relay that has `/api/v1/versions` speaks the form with nonce; one that has not, the older one.
async fn dialect(net: &dyn Net, endpoint: &str) -> Option<Form> {
    let url = format!("{}/api/v1/versions", origin_of(endpoint)?);
    match net.get(&url).await {
        Ok(answer) if answer.status == 200 => Some(Form::Nonce),
        Ok(answer) if answer.status == 404 => Some(Form::Legacy),
        Ok(answer) => {
            tracing::debug!(url, status = answer.status, "the wire form stays unknown");
            None
        }
        Err(error) => {
            tracing::debug!(url, %error, "the wire form stays unknown");
            None
        }
    }
}

/// Scheme and authority of a URL.
pub fn origin_of(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

/// An absolute URL without user name; which addresses it may lead to is the client's to say.
pub(super) fn checked_endpoint(url: &str) -> Option<String> {
    if url.len() > MAX_URL {
        return None;
    }
    let uri: Uri = url.parse().ok()?;
    let scheme = matches!(uri.scheme_str(), Some("https" | "http"));
    let authority = uri.authority()?;
    let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
    (scheme && plain).then(|| url.to_owned())
}

fn failed(detail: String) -> TransportError {
    TransportError {
        kind: TransportKind::Discovery,
        detail,
    }
}
