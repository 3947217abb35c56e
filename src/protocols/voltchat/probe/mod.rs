//! Examining a server from outside, step by step: would an exchange with it work?
//!
//! The way is the one that a heartbeat goes: the allow list, addresses, TLS, `GET /info`, the clocks,
//! the peering, a ping with a token, and a push that delivers nothing. It needs the configuration and,
//! for the last two, the peer's record; no running bridge. Nothing is kept of what is found. A server
//! that waits for our operator is never pinged: our first ping is how it learns of its acceptance.
//!
//! | file | what it holds |
//! | --- | --- |
//! | this one | the steps, one after another |
//! | `reading` | what answers say: pure |

mod reading;

use std::collections::HashSet;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method};
use bytes::Bytes;
use serde_json::{Value, json};

use super::allow::AllowList;
use super::record::{Peer, Status};
use super::{BASE, Own, dressed, host, send, token};
use crate::clock::Clock;
use crate::http::client::Client;
use crate::protocol::{Answer, PeerName, Refusal, Request, Tell, TransportError};
use crate::protocols::examine::{Found, Reach, Report, skew};
use reading::Reading;

/// A server is waited for as long as a mainline waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer, bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// What a probe goes by.
pub struct Probe {
    pub client: Client,
    pub clock: Clock,
    /// Who we are; `None`: no token can be made.
    pub own: Option<Own>,
    pub allow: AllowList,
    /// What is kept of the peer.
    pub peer: Option<Peer>,
}

impl Probe {
    /// Examines a server. `Err`: the fault.
    pub async fn run(&self, name: &PeerName, tell: Tell<'_>) -> Result<(), Refusal> {
        let mut report = Report::new(tell);
        self.examine(name, &mut report).await;
        report.end()
    }

    async fn examine(&self, name: &PeerName, report: &mut Report<'_>) {
        self.allowed(name, report);
        let base = match &self.peer {
            Some(peer) => peer.url.clone(),
            None if self.client.speaks_plain(name) => format!("http://{name}"),
            None => format!("https://{name}"),
        };
        let reach = Reach {
            client: &self.client,
            clock: &self.clock,
        };
        if !reach.reach(&base, &mut HashSet::new(), report).await {
            report.info("info, ping, push", "not asked: the server is out of reach");
            return;
        }
        let is_server = self.info(&base, name, report).await;
        let Some((peer, own)) = self.peering(name, report) else {
            return;
        };
        if is_server && self.ping(&base, peer, own, report).await {
            self.push(&base, peer, own, report).await;
        }
    }

    fn allowed(&self, name: &PeerName, report: &mut Report<'_>) {
        if self.allow.admits(name.as_str()) {
            return report.pass("allowed_servers", format!("admits {name}"));
        }
        let why = if host::is_private(name.as_str()) {
            "it is a private host, which needs its exact entry"
        } else {
            "no entry admits it"
        };
        let found = Found::blocks(
            "not_allowed",
            format!("voltchat.allowed_servers keeps {name} out: {why}"),
        );
        report.fault("allowed_servers", found);
    }

    /// Whether a VoltChat server answers there.
    async fn info(&self, base: &str, name: &PeerName, report: &mut Report<'_>) -> bool {
        let url = format!("{base}{BASE}/info");
        let answer = match self
            .send(Method::GET, base, "/info", HeaderMap::new(), None)
            .await
        {
            Ok(answer) => answer,
            Err(error) => {
                let found = Found::blocks(error.kind.code(), format!("{url}: {error}"));
                report.fault("info", found);
                return false;
            }
        };
        let is_server = match reading::info(&url, name, &answer) {
            Ok((seen, faults)) => {
                report.pass("info", seen);
                for found in faults {
                    report.fault("info", found);
                }
                true
            }
            Err(found) => {
                report.fault("info", found);
                false
            }
        };
        let skew_s = skew(&answer.headers, self.clock.now_ms());
        match reading::clocks(skew_s) {
            Reading::Held(said) => report.pass("clock", said),
            Reading::Note(said) => report.info("clock", said),
            Reading::Fault(found) => report.fault("clock", found),
        }
        is_server
    }

    /// The record and ourselves, where a token can be made and may be shown.
    fn peering(&self, name: &PeerName, report: &mut Report<'_>) -> Option<(&Peer, &Own)> {
        let Some(own) = &self.own else {
            report.info("peering", "not looked at: voltchat.url is not set");
            return None;
        };
        if own.host == *name {
            report.info("peering", "this is our own host");
            return None;
        }
        let Some(peer) = &self.peer else {
            report.info(
                "peering",
                format!("none here; `drawbridge peers add voltchat {name}` asks it"),
            );
            return None;
        };
        match peer.status {
            Status::Connected => report.pass("peering", "connected"),
            Status::Error => report.info(
                "peering",
                format!(
                    "accepted, but the last exchange failed: {}",
                    peer.last_error.as_deref().unwrap_or("no reason is kept")
                ),
            ),
            Status::Requested => report.info(
                "peering",
                match &peer.last_error {
                    Some(why) => format!("we asked, and that failed: {why}"),
                    None => "we asked; its first ping will say that it has accepted".into(),
                },
            ),
            Status::Pending => {
                let found = Found::blocks(
                    "waits_for_us",
                    format!(
                        "{name} asked us and waits: `drawbridge peers accept voltchat {name}` accepts \
                         it (it is not pinged here, for our first ping tells it that it is accepted)"
                    ),
                );
                report.fault("peering", found);
                return None;
            }
            Status::Rejected => {
                let found = Found::blocks(
                    "rejected",
                    format!(
                        "we rejected {name}; `drawbridge peers accept voltchat {name}` accepts it \
                         after all"
                    ),
                );
                report.fault("peering", found);
                return None;
            }
        }
        Some((peer, own))
    }

    /// A ping with a token. True: it was taken.
    async fn ping(&self, base: &str, peer: &Peer, own: &Own, report: &mut Report<'_>) -> bool {
        let Some(token) = self.token(peer, own) else {
            report.info("ping", "not tried: the system gives no random bytes");
            return false;
        };
        let body = json!({"host": own.host.as_str(), "token": token});
        let answer = self
            .send(Method::POST, base, "/ping", HeaderMap::new(), Some(&body))
            .await;
        match reading::ping(peer, &answer) {
            Reading::Held(said) => {
                report.pass("ping", said);
                return true;
            }
            Reading::Note(said) => report.info("ping", said),
            Reading::Fault(found) => report.fault("ping", found),
        }
        false
    }

    /// A push without a message: whoever takes pushes says that it lacks one.
    async fn push(&self, base: &str, peer: &Peer, own: &Own, report: &mut Report<'_>) {
        let token = self.token(peer, own);
        let token = token.and_then(|token| HeaderValue::from_str(&token).ok());
        let host = HeaderValue::from_str(own.host.as_str());
        let (Some(mut token), Ok(host)) = (token, host) else {
            return report.info("push", "not tried: the token could not be made");
        };
        token.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(send::TOKEN, token);
        headers.insert(send::HOST, host);
        let answer = self
            .send(Method::POST, base, "/relay/push", headers, Some(&json!({})))
            .await;
        match reading::push(&answer) {
            Reading::Held(said) => report.pass("push", said),
            Reading::Note(said) => report.info("push", said),
            Reading::Fault(found) => report.fault("push", found),
        }
    }

    fn token(&self, peer: &Peer, own: &Own) -> Option<String> {
        let from = token::Sender {
            peer_id: &peer.id,
            host: own.host.as_str(),
            name: &own.name,
        };
        let nonce = token::fresh_nonce().ok()?;
        Some(token::make(
            &peer.secret,
            &from,
            self.clock.now_ms(),
            &nonce,
        ))
    }

    async fn send(
        &self,
        method: Method,
        base: &str,
        path: &str,
        headers: HeaderMap,
        body: Option<&Value>,
    ) -> Result<Answer, TransportError> {
        let request = Request {
            method,
            url: format!("{base}{BASE}{path}"),
            headers: dressed(headers),
            body: body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string())),
        };
        self.client.send(request, PATIENCE, MAX_ANSWER).await
    }
}

/// Every reading of this answer.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn readings(name: &PeerName, answer: &Answer) {
    let _ = reading::info("https://server", name, answer);
    let _ = reading::push(&Ok(answer.clone()));
}
