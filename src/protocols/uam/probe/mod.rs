//! Examining a relay from outside, step by step: would a delivery reach it, and would it be believed?
//!
//! The way is the one that a delivery and its receiver go: SRV, addresses, TLS, the well-known file,
//! the key, the clocks, the wire form, and a request with our real signature. It needs our key and
//! the configuration, no running bridge and no store.
//!
//! | file | steps |
//! | --- | --- |
//! | `srv` | `srv`; `address` and `tls` are every protocol's ([`examine`](crate::protocols::examine)) |
//! | `page` | `well-known`, `key`, `clock`, `wire form`: what pages say |
//! | `signed` | `signed request`: a proof of our signature that delivers nothing |

mod page;
mod signed;
mod srv;

use std::collections::HashSet;
use std::time::Duration;

use ::http::{HeaderMap, Method};
use bytes::Bytes;

use crate::clock::{Clock, UnixMs};
use crate::http::client::Client;
use crate::identity::{PublicKey, SigningKey};
use crate::protocol::{Answer, PeerName, Refusal, Request, Tell, TransportError};
use crate::protocols::examine::{Found, Place, Reach, Report, clocks};

use super::discover::{DELIVER_PATH, Net, Pin, WELL_KNOWN_PATH, checked_endpoint, origin_of};
use super::relay_request::Form;
use page::Page;

/// A page is waited for as long as a real relay waits.
const PAGE: Duration = Duration::from_secs(10);
/// Largest page, bytes.
const MAX_PAGE: usize = 64 * 1024;

/// What a probe goes by.
pub struct Probe {
    pub client: Client,
    pub clock: Clock,
    /// Our domain and key, for the signed request; `None`: it is passed over.
    pub own: Option<Own>,
    /// What the configuration pins.
    pub pin: Pin,
    /// The key we knew before, from wherever.
    pub known_key: Option<[u8; 32]>,
    /// How far two clocks may be apart (`uam.timestamp_max_age`), seconds.
    pub max_skew_s: i64,
    /// Prove the signature even to a relay of the older form, which charges us for it.
    pub spend: bool,
}

/// Who asks.
#[derive(Clone)]
pub struct Own {
    pub domain: PeerName,
    pub key: SigningKey,
}

impl Probe {
    /// Examines a relay. `Err`: the fault.
    pub async fn run(&self, name: &PeerName, tell: Tell<'_>) -> Result<(), Refusal> {
        let mut report = Report::new(tell);
        self.examine(name, &mut report).await;
        report.end()
    }

    async fn examine(&self, name: &PeerName, report: &mut Report<'_>) {
        let mut seen = HashSet::new();
        let domain = format!("https://{name}");
        let targets = match &self.pin.base {
            Some(base) => {
                report.info("srv", format!("not asked: {base} is pinned in [[peers]]"));
                vec![base.clone()]
            }
            None => self.srv(name, report).await,
        };
        let by_srv = self.pin.base.is_none() && !targets.is_empty();
        let bases = if targets.is_empty() {
            vec![domain.clone()]
        } else {
            targets
        };
        let mut page = None;
        for base in &bases {
            if self.reaching().reach(base, &mut seen, report).await {
                let found = self.page(base, name, report).await;
                if page.is_none() {
                    page = found.map(|page| (base.clone(), page));
                }
            }
        }
        if by_srv {
            self.bare_domain(name, &domain, page.as_ref().map(|(_, page)| page), report)
                .await;
        }
        let Some((base, page)) = page else {
            report.info(
                "key, clock, wire form",
                "not looked at: no relay described itself",
            );
            return;
        };
        self.key(&page, report);
        clocks(page.skew_s, self.max_skew_s, report);
        let endpoint = if by_srv || self.pin.base.is_some() {
            format!("{base}{DELIVER_PATH}")
        } else {
            match checked_endpoint(&page.endpoint) {
                Some(endpoint) => endpoint,
                None => {
                    let found = Found::blocks(
                        "bad_endpoint",
                        format!(
                            "the well-known file names {:?} as federation_endpoint, which is no URL to \
                             deliver to",
                            page.endpoint
                        ),
                    );
                    report.fault("endpoint", found);
                    return;
                }
            }
        };
        self.endpoint(&endpoint, report);
        if !self.reaching().reach(&endpoint, &mut seen, report).await {
            report.info("wire form", "not asked: the endpoint is out of reach");
            return;
        }
        let form = self.form(&endpoint, report).await;
        self.signed(name, &endpoint, &page, form, report).await;
    }

    /// Where deliveries go, and whether real relays may go there too.
    fn endpoint(&self, endpoint: &str, report: &mut Report<'_>) {
        match Place::of(endpoint) {
            Some(place) if place.tls && !matches!(place.port, 443 | 8443) => report.info(
                "endpoint",
                format!("{endpoint} (relays of 1.0 deliver to ports 443 and 8443 only)"),
            ),
            _ => report.info("endpoint", endpoint),
        }
    }

    /// A relay found by SRV must be found at its bare domain as well: receivers look there for its key.
    async fn bare_domain(
        &self,
        name: &PeerName,
        domain: &str,
        by_srv: Option<&Page>,
        report: &mut Report<'_>,
    ) {
        let url = format!("{domain}{WELL_KNOWN_PATH}");
        let read = match self.get(&url).await {
            Ok(answer) => page::read(&url, name, &answer, self.clock.now_ms()).map_err(|f| f.1),
            Err(error) => Err(error.to_string()),
        };
        match (read, by_srv) {
            (Ok(page), Some(other)) if page.key != other.key => {
                let found = Found::hurts(
                    "two_keys",
                    format!(
                        "{url} shows another key ({}) than the SRV target ({}): whoever checks its \
                         messages takes the one, whoever discovers it the other",
                        page.key.fingerprint(),
                        other.key.fingerprint()
                    ),
                );
                report.fault("bare domain", found);
            }
            (Ok(_), _) => report.pass("bare domain", format!("{url} shows the same key")),
            (Err(why), _) => {
                let found = Found::hurts(
                    "bare_domain",
                    format!(
                        "its messages cannot be checked by relays that have not discovered it: they \
                         fetch its key from {url}, never by SRV ({why})"
                    ),
                );
                report.fault("bare domain", found);
            }
        }
    }

    fn key(&self, page: &Page, report: &mut Report<'_>) {
        let shown = page.key.fingerprint();
        let of = |bytes: &[u8; 32]| {
            PublicKey::parse(bytes).map_or_else(|_| "no usable key".into(), |key| key.fingerprint())
        };
        match (&self.pin.public_key, &self.known_key) {
            (Some(pinned), _) if *pinned != page.key.to_bytes() => {
                let found = Found::blocks(
                    "key_not_pinned",
                    format!(
                        "the relay shows key {shown}, [[peers]] pins {}: its messages are refused \
                         until its operator confirms the new key and the pin is changed to it",
                        of(pinned)
                    ),
                );
                report.fault("key", found);
            }
            (Some(_), _) => report.pass("key", format!("{shown}, as pinned")),
            (None, Some(known)) if *known != page.key.to_bytes() => report.info(
                "key",
                format!(
                    "{shown}; before it was {}: it is taken up at the first message signed with it",
                    of(known)
                ),
            ),
            (None, Some(_)) => report.pass("key", format!("{shown}, as known before")),
            (None, None) => report.pass("key", format!("{shown}, not known before")),
        }
    }

    async fn page(&self, base: &str, name: &PeerName, report: &mut Report<'_>) -> Option<Page> {
        let url = format!("{base}{WELL_KNOWN_PATH}");
        let answer = match self.get(&url).await {
            Ok(answer) => answer,
            Err(error) => {
                let found = Found::blocks(error.kind.code(), format!("{url}: {error}"));
                report.fault("well-known", found);
                return None;
            }
        };
        match page::read(&url, name, &answer, self.clock.now_ms()) {
            Ok(page) => {
                report.pass("well-known", format!("{url}: {}", page.seen));
                if page.domain.as_deref().is_some_and(|d| d != name.as_str()) {
                    let found = Found::hurts(
                        "other_domain",
                        format!(
                            "the relay calls itself {:?}: it refuses messages to agents at {name}",
                            page.domain.as_deref().unwrap_or_default()
                        ),
                    );
                    report.fault("relay domain", found);
                }
                Some(page)
            }
            Err((code, detail)) => {
                report.fault("well-known", Found::blocks(code, detail));
                None
            }
        }
    }

    async fn form(&self, endpoint: &str, report: &mut Report<'_>) -> Option<Form> {
        let url = format!("{}/api/v1/versions", origin_of(endpoint)?);
        let (form, said) = match self.get(&url).await {
            Ok(answer) => page::form(&answer),
            Err(error) => (None, error.to_string()),
        };
        match form {
            Some(_) => report.pass("wire form", format!("{said} ({url})")),
            None => report.info("wire form", format!("{url}: {said}")),
        }
        form
    }

    async fn get(&self, url: &str) -> Result<Answer, TransportError> {
        let request = Request {
            method: Method::GET,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        self.client.send(request, PAGE, MAX_PAGE).await
    }

    fn reaching(&self) -> Reach<'_> {
        Reach {
            client: &self.client,
            clock: &self.clock,
        }
    }
}

/// Every reading of this answer.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn readings(name: &PeerName, answer: &Answer) {
    let _ = page::read("https://relay", name, answer, crate::fuzzing::NOW);
    let _ = page::form(answer);
}

/// The key that the well-known file below a base URL shows; the error is a sentence.
pub(super) async fn shown_key(
    net: &dyn Net,
    base: &str,
    name: &PeerName,
    now: UnixMs,
) -> Result<PublicKey, String> {
    let url = format!("{base}{WELL_KNOWN_PATH}");
    let answer = net
        .get(&url)
        .await
        .map_err(|error| format!("{url}: {error}"))?;
    match page::read(&url, name, &answer, now) {
        Ok(page) => Ok(page.key),
        Err((_, detail)) => Err(detail),
    }
}
