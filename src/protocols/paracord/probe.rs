//! Examining a server from outside, step by step: would events pass?
//!
//! The way is the one that a push goes: where the server stands with us, addresses, TLS, its description,
//! the clocks, its keys, and a signed read of a room that nobody has, which tells whether it trusts us
//! and knows our key. It needs the configuration, our key file and the server's record; no running
//! bridge. Nothing is delivered, and nothing is kept of what is found.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method};
use bytes::Bytes;
use serde_json::Value;

use super::description::{self, Description};
use super::own_keys::ActiveKey;
use super::record::{Peer, PeerKey, Status};
use super::{ID, Own, Paracord, WELL_KNOWN, discover, signing};
use crate::clock::Clock;
use crate::http::client::Client;
use crate::identity::PublicKey;
use crate::protocol::{Answer, PeerName, Refusal, Tell, TransportError};
use crate::protocols::examine::{Found, Reach, Report, clocks, skew};
use crate::protocols::plain;
use crate::trust::Standing;

/// A server is waited for as long as published ones wait.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer, bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// How far a request's time may be off, seconds.
const MAX_SKEW_S: i64 = 60;

/// What a probe goes by.
pub struct Probe {
    pub client: Client,
    pub clock: Clock,
    /// Who we are and what we sign with; `None`: nothing can be signed.
    pub own: Option<(Own, Arc<ActiveKey>)>,
    /// Where `[[peers]]` says that it is.
    pub base: Option<String>,
    /// What is kept of the server.
    pub peer: Option<Arc<Peer>>,
    /// What the trust rules say of it.
    pub standing: Standing,
}

/// [`crate::protocol::Protocol::probe`].
pub async fn of(p: &Paracord, name: &PeerName, tell: Tell<'_>) -> Result<(), Refusal> {
    let Some(client) = p.net.client() else {
        return Err(Refusal::new("no_probe", "there is no client to probe with"));
    };
    let pin = p.peers.pin(ID, name);
    let probe = Probe {
        client: client.clone(),
        clock: p.clock.clone(),
        own: Some((p.own.clone(), p.keys.active())),
        base: pin.and_then(|pin| pin.endpoint.clone()),
        peer: p.book.get(name),
        standing: p.trust.standing(ID, name.as_str()),
    };
    probe.run(name, tell).await
}

impl Probe {
    /// Examines a server. `Err`: the fault.
    pub async fn run(&self, name: &PeerName, tell: Tell<'_>) -> Result<(), Refusal> {
        let mut report = Report::new(tell);
        self.examine(name, &mut report).await;
        report.end()
    }

    async fn examine(&self, name: &PeerName, report: &mut Report<'_>) {
        standing(name, self.peer.as_deref(), self.standing, report);
        let base = match (&self.base, &self.peer) {
            (Some(base), _) => base.trim_end_matches('/').to_owned(),
            (None, Some(peer)) => peer.base.clone(),
            (None, None) if self.client.speaks_plain(name) => format!("http://{name}"),
            (None, None) => discover::usual_base(name),
        };
        let reach = Reach {
            client: &self.client,
            clock: &self.clock,
        };
        let mut seen = HashSet::new();
        if !reach.reach(&base, &mut seen, report).await {
            let why = "not asked: the server is out of reach";
            return report.info("description, keys, read", why);
        }
        let known = self.peer.as_deref();
        let described = self.describe(name, &base, report).await;
        let (endpoint, domain) = match (&described, known) {
            (Some(found), _) => (found.endpoint.clone(), found.domain.clone()),
            (None, Some(peer)) => (peer.endpoint.clone(), peer.domain.clone()),
            (None, None) => return,
        };
        if !reach.reach(&endpoint, &mut seen, report).await {
            return report.info("keys, read", "not asked: the endpoint is out of reach");
        }
        self.keys(name, &endpoint, report).await;
        self.read(name, &endpoint, &domain, report).await;
    }

    async fn describe(
        &self,
        name: &PeerName,
        base: &str,
        report: &mut Report<'_>,
    ) -> Option<Description> {
        let url = format!("{base}{WELL_KNOWN}");
        let answer = match self.get(&url).await {
            Ok(answer) => answer,
            Err(error) => {
                let found = Found::blocks(error.kind.code(), format!("{url}: {error}"));
                report.fault("description", found);
                return None;
            }
        };
        let skew_s = skew(&answer.headers, self.clock.now_ms());
        let described = match answer.status {
            200 => description::description(base, name, &answer.body),
            status => Err(format!("{url} answers {status}")),
        };
        let described = match described {
            Ok(found) => {
                let said = format!(
                    "{name}, domain {:?}, endpoint {}",
                    description::shown(&found.domain),
                    found.endpoint
                );
                match told_otherwise(name, self.peer.as_deref(), &found) {
                    None => report.pass("description", said),
                    Some(fault) => report.fault("description", fault),
                }
                Some(found)
            }
            Err(why) => {
                report.fault("description", Found::blocks("no_server", why));
                None
            }
        };
        clocks(skew_s, MAX_SKEW_S, report);
        described
    }

    async fn keys(&self, name: &PeerName, endpoint: &str, report: &mut Report<'_>) {
        let url = format!("{endpoint}/keys");
        let answer = match self.get(&url).await {
            Ok(answer) => answer,
            Err(error) => {
                let found = Found::blocks(error.kind.code(), format!("{url}: {error}"));
                return report.fault("keys", found);
            }
        };
        let ours: Vec<PublicKey> = self
            .own
            .iter()
            .map(|(_, active)| active.key.public())
            .collect();
        let listed = match answer.status {
            200 => description::keys(name, &answer.body, &ours, self.clock.now_ms()),
            status => Err(format!("{url} answers {status}")),
        };
        match listed {
            Err(why) => report.fault("keys", Found::blocks("no_keys", why)),
            Ok(listed) => {
                for key in &listed {
                    report.info("key", described_key(key, self.clock.now_ms()));
                }
                match compared(name, self.peer.as_deref(), &listed) {
                    Ok(said) => report.pass("keys", said),
                    Err(found) => report.fault("keys", found),
                }
            }
        }
    }

    /// A signed read: whoever answers it trusts us and knows our key.
    async fn read(&self, name: &PeerName, endpoint: &str, domain: &str, report: &mut Report<'_>) {
        if self.own.is_none() {
            let why = "not tried: paracord.server_name is not set, or there is no key file yet";
            return report.info("read", why);
        }
        let url = format!("{endpoint}/events?room_id=!0:{domain}&since_depth=0&limit=1");
        match read(name, &self.get(&url).await) {
            Ok(said) => report.pass("read", said),
            Err(found) => report.fault("read", found),
        }
    }

    async fn get(&self, url: &str) -> Result<Answer, TransportError> {
        let request = match &self.own {
            Some((own, active)) => {
                let now = self.clock.now_ms();
                signing::signed(own, active, Method::GET, url, Bytes::new(), now)
            }
            None => crate::protocol::Request {
                method: Method::GET,
                url: url.to_owned(),
                headers: HeaderMap::new(),
                body: Bytes::new(),
            },
        };
        self.client.send(request, PATIENCE, MAX_ANSWER).await
    }
}

/// Where a server stands with us.
fn standing(name: &PeerName, peer: Option<&Peer>, standing: Standing, report: &mut Report<'_>) {
    let accept = format!("`drawbridge peers accept paracord {name}`");
    match peer.map(|peer| peer.status) {
        None => report.info(
            "trust",
            format!("not known here; `drawbridge peers add paracord {name}` looks it up"),
        ),
        Some(Status::Trusted) => report.pass("trust", "we trust it"),
        Some(Status::Pending) => {
            let why = format!("we do not trust it yet; {accept} trusts it");
            report.fault("trust", Found::blocks("not_trusted_here", why));
        }
        Some(Status::Rejected) => {
            let why = format!("we rejected it; {accept} trusts it after all");
            report.fault("trust", Found::blocks("rejected", why));
        }
    }
    match standing {
        Standing::Blocked => {
            let why = format!("a trust rule blocks {name}: nothing of it is taken");
            report.fault("rules", Found::blocks("blocked", why));
        }
        Standing::Quarantined => {
            let why = format!("{name} is under quarantine: its events are held back");
            report.fault("rules", Found::hurts("quarantined", why));
        }
        _ => {}
    }
}

/// Where a server's description is not what it should be.
fn told_otherwise(name: &PeerName, peer: Option<&Peer>, found: &Description) -> Option<Found> {
    if !found.enabled {
        let why = format!("{name} has switched federation off");
        return Some(Found::blocks("federation_disabled", why));
    }
    let peer = peer.filter(|peer| peer.domain_fixed)?;
    let other = !peer.domain.eq_ignore_ascii_case(&found.domain);
    other.then(|| {
        Found::hurts(
            "other_domain",
            format!(
                "it calls its domain {:?} now, and here it is known as {:?}: what its users of the new \
                 domain send is refused until it is removed and added again",
                description::shown(&found.domain),
                peer.domain
            ),
        )
    })
}

fn described_key(key: &PeerKey, now: i64) -> String {
    let until = match key.valid_until_ms {
        at if at < now => ", expired by its own word (published servers never renew it)",
        _ => "",
    };
    format!(
        "{} {}{until}",
        description::shown(&key.key_id),
        key.public.fingerprint()
    )
}

/// The keys that a server lists beside those known here.
fn compared(name: &PeerName, peer: Option<&Peer>, listed: &[PeerKey]) -> Result<String, Found> {
    let count = format!("{} listed", listed.len());
    let Some(peer) = peer else { return Ok(count) };
    if let Some(pin) = &peer.pinned_key {
        let there = listed.iter().any(|key| key.public == pin.public);
        return match there {
            true => Ok(format!("{count}, the pinned one among them")),
            false => Err(Found::blocks(
                "other_key",
                format!(
                    "{name} does not list the key that [[peers]] pins ({}); if it has changed its key, \
                     pin the new one",
                    pin.public.fingerprint()
                ),
            )),
        };
    }
    let known = |key: &PeerKey| peer.keys.iter().any(|k| k.public == key.public);
    match listed.iter().filter(|key| !known(key)).count() {
        0 => Ok(format!("{count}, all of them known here")),
        new => Ok(format!(
            "{count}, {new} of them new to us: fetched within paracord.keys_refresh, or when a \
             signature does not hold"
        )),
    }
}

/// What the answer to a signed read says.
fn read(name: &PeerName, answer: &Result<Answer, TransportError>) -> Result<String, Found> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let why = format!("a signed read failed: {error}");
            return Err(Found::blocks(error.kind.code(), why));
        }
    };
    let body = plain::json(&answer.body).unwrap_or_default();
    let code = body.get("code").and_then(Value::as_str).unwrap_or_default();
    match (answer.status, code) {
        (200, _) | (404, "NOT_FOUND") => {
            Ok("taken: it trusts us, and our signature holds there".to_owned())
        }
        (401, _) => Err(Found::blocks(
            "unauthorized",
            format!("{name} answers 401 to a signed read: the clocks are more than 60 s apart"),
        )),
        (403, _) => Err(Found::blocks(
            "not_trusted_there",
            format!(
                "{name} answers 403 to a signed read: it does not trust us, holds another key of ours \
                 (published servers never fetch keys again), or blocks us. Its operator must add us \
                 with our server name, domain and endpoint, trusted and with discovery; if we are there \
                 already, delete our row from federation_server_keys first"
            ),
        )),
        (429, _) => Err(Found::hurts(
            "rate_limited",
            format!("{name} answers 429: it takes no more for the moment"),
        )),
        (status, code) => Err(Found::blocks(
            "read_failed",
            format!(
                "{name} answers a signed read with {status} {}",
                description::shown(code)
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::identity::SigningKey;

    const NOW: i64 = 1_795_246_080_000;

    fn name() -> PeerName {
        PeerName::parse("para-b.example").unwrap()
    }

    fn key(seed: u8) -> PeerKey {
        PeerKey {
            key_id: "k".to_owned(),
            public: SigningKey::from_seed([seed; 32]).public(),
            valid_until_ms: NOW,
            first_seen_ms: NOW,
            listed_ms: NOW,
        }
    }

    fn peer(status: Status) -> Peer {
        Peer {
            status,
            domain_fixed: true,
            keys: vec![key(1)],
            ..Peer::new(name(), "https://para-b.example/x".to_owned(), NOW)
        }
    }

    fn answer(status: u16, body: Value) -> Result<Answer, TransportError> {
        Ok(Answer {
            status,
            headers: HeaderMap::new(),
            body: Bytes::from(body.to_string()),
            elapsed: Duration::ZERO,
        })
    }

    #[test]
    fn a_signed_read_says_whether_they_trust_us() {
        for (status, code, expected) in [
            (200, "", None),
            (404, "NOT_FOUND", None),
            (404, "", Some("read_failed")),
            (401, "UNAUTHORIZED", Some("unauthorized")),
            (403, "FORBIDDEN", Some("not_trusted_there")),
            (429, "RATE_LIMITED", Some("rate_limited")),
            (502, "", Some("read_failed")),
        ] {
            let found = read(&name(), &answer(status, json!({"code": code})));
            let found = found.err().map(|found| found.refusal.code);
            assert_eq!(found, expected, "{status} {code}");
        }
    }

    #[test]
    fn where_it_stands_with_us_comes_first_and_ends_in_the_fault() {
        for (peer, rules, expected) in [
            (None, Standing::Ordinary, None),
            (Some(Status::Trusted), Standing::Ordinary, None),
            (
                Some(Status::Pending),
                Standing::Ordinary,
                Some("not_trusted_here"),
            ),
            (Some(Status::Rejected), Standing::Ordinary, Some("rejected")),
            (Some(Status::Trusted), Standing::Blocked, Some("blocked")),
            (
                Some(Status::Trusted),
                Standing::Quarantined,
                Some("quarantined"),
            ),
        ] {
            let mut ignore = |_| {};
            let mut report = Report::new(&mut ignore);
            let known = peer.map(self::peer);
            standing(&name(), known.as_ref(), rules, &mut report);
            let fault = report.end().err().map(|fault| fault.code);
            assert_eq!(fault, expected);
        }
    }

    #[test]
    fn a_pinned_key_that_is_not_listed_and_another_domain_are_faults() {
        let mut known = peer(Status::Trusted);
        let listed = [key(1), key(2)];
        let said = compared(&name(), Some(&known), &listed).unwrap();
        assert!(said.contains("1 of them new"), "{said}");
        let pinned = |seed| super::super::record::PinnedKey {
            key_id: None,
            public: SigningKey::from_seed([seed; 32]).public(),
        };
        known.pinned_key = Some(pinned(2));
        assert!(compared(&name(), Some(&known), &listed).is_ok());
        known.pinned_key = Some(pinned(3));
        let fault = compared(&name(), Some(&known), &listed).unwrap_err();
        assert_eq!(fault.refusal.code, "other_key");
        let found = |domain: &str, enabled| Description {
            domain: domain.to_owned(),
            endpoint: String::new(),
            enabled,
        };
        let code = |found: &Description| {
            told_otherwise(&name(), Some(&known), found).map(|found| found.refusal.code)
        };
        assert_eq!(code(&found("PARA-B.example", true)), None);
        assert_eq!(code(&found("c.example", true)), Some("other_domain"));
        assert_eq!(
            code(&found("para-b.example", false)),
            Some("federation_disabled")
        );
    }
}
