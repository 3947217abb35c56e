//! What an operator does with peers, by HTTP, NATS or command line alike: ask, send the handshake
//! again, accept, reject, remove, look closely.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::answer::Fail;
use super::book::{BookError, Change};
use super::handshake::{self, OTHER_SECRET_THERE, may_peer, named};
use super::record::{Peer, Status};
use super::state::{self, Ask};
use super::{ID, Limits, VoltChat, fetch, heartbeat, host, ids, judge, text};
use crate::identity::hmac::SharedSecret;
use crate::protocol::{PeerName, Refusal};
use crate::protocols::plain;
use crate::store::StoreErrorKind;
use crate::trust::Standing;

/// How long a server has to say who it is.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes of that which are read.
const MAX_INFO: usize = 64 * 1024;

/// Why something is not done.
#[derive(Debug)]
pub enum No {
    /// Federation is switched off.
    Disabled,
    /// Name, or both host and url, are missing.
    Incomplete,
    BadHost,
    Policy,
    BadUrl,
    /// There is a record for this host.
    Exists(Arc<Peer>),
    BadId,
    Unknown,
    /// A handshake can be sent again only while it may still be needed.
    NotOpen(Status),
    /// The record cannot be kept.
    Book(BookError),
    /// The system gives no random numbers.
    Random(getrandom::Error),
}

impl From<BookError> for No {
    fn from(error: BookError) -> Self {
        Self::Book(error)
    }
}

impl From<No> for Fail {
    fn from(no: No) -> Self {
        match no {
            No::Disabled => Self::disabled(),
            No::Incomplete => Self::bad("Name and host/url are required"),
            No::BadHost => Self::bad("Invalid host"),
            No::Policy => Self::policy(),
            No::BadUrl => Self::bad("Invalid URL (HTTPS required)"),
            No::Exists(peer) => {
                Self::new(StatusCode::CONFLICT, "Peer already exists").with("peer", peer.shown())
            }
            No::BadId => Self::bad("Invalid peer id"),
            No::Unknown => Self::not_found("Peer not found"),
            No::NotOpen(_) => Self::new(StatusCode::CONFLICT, "Peer is not waiting for an answer"),
            No::Book(error) => handshake::unkept(&error),
            No::Random(error) => Self::unavailable(&error.to_string(), 5),
        }
    }
}

impl From<No> for Refusal {
    fn from(no: No) -> Self {
        let (code, detail) = match no {
            No::Disabled => (
                "disabled",
                "federation is switched off: set voltchat.enabled = true".to_owned(),
            ),
            No::Incomplete => (
                "bad_request",
                "\"name\" and \"host\" or \"url\" are required".to_owned(),
            ),
            No::BadHost => (
                "bad_host",
                "the host is no host name, optionally with a port".to_owned(),
            ),
            No::Policy => (
                "not_allowed",
                "this host may not be a peer: voltchat.allowed_servers does not admit it (private \
                 addresses need an entry of their own), a trust rule blocks it, or it is ourselves"
                    .to_owned(),
            ),
            No::BadUrl => (
                "bad_url",
                "the url must be https://HOST of just this host, without a path (http:// only for \
                 hosts named in http.plain_hosts)"
                    .to_owned(),
            ),
            No::Exists(peer) => (
                "peer_exists",
                format!(
                    "{} is a peer already ({}); {}",
                    peer.host,
                    peer.status.name(),
                    match peer.status {
                        Status::Pending => "it has asked us: accept it",
                        Status::Rejected => "accept it, or remove it and ask again",
                        _ => "remove it first to ask again",
                    }
                ),
            ),
            No::BadId => ("bad_request", "that is no peer's id or host".to_owned()),
            No::Unknown => ("unknown_peer", "there is no such peer".to_owned()),
            No::NotOpen(status) => (
                "not_requested",
                format!(
                    "the handshake is sent again only while our request is open or the peer fails; it \
                     is {}",
                    status.name()
                ),
            ),
            No::Book(BookError::Store(error)) if error.kind == StoreErrorKind::Unavailable => {
                ("store_unavailable", error.to_string())
            }
            No::Book(error) => ("not_kept", error.to_string()),
            No::Random(error) => ("no_random", error.to_string()),
        };
        Refusal::new(code, detail)
    }
}

/// Asks a host for peering: a record, then the handshake. A handshake that fails leaves the record
/// with the reason; it is sent again by [`handshake_again`].
pub async fn request(
    v: &VoltChat,
    name: Option<&Value>,
    host: Option<&Value>,
    url: Option<&Value>,
) -> Result<Arc<Peer>, No> {
    if !v.config.enabled {
        return Err(No::Disabled);
    }
    let said = |value| text::field(value, usize::MAX);
    let name = text::field(name, handshake::MAX_NAME).ok_or(No::Incomplete)?;
    let (host, url) = (said(host), said(url));
    let claimed = host.as_deref().or(url.as_deref()).ok_or(No::Incomplete)?;
    let host = named(claimed).ok_or(No::BadHost)?;
    if !may_peer(v, &host) {
        return Err(No::Policy);
    }
    let url = url.unwrap_or_else(|| format!("https://{host}"));
    let url = host::normal_url(&url, host.as_str(), !v.takes_plain(&host)).ok_or(No::BadUrl)?;
    let now_ms = v.clock.now_ms();
    let ask = Ask {
        id: ids::fresh("peer", now_ms),
        name,
        host: host.clone(),
        url,
        secret: SharedSecret::generate().map_err(No::Random)?,
        now_ms,
    };
    let asked = v.book.change(&host, move |known, _| {
        let next = state::request(known, ask);
        let new = next.is_some();
        (Change::to(next), new)
    });
    match asked.await? {
        (true, Some(peer)) => sent(v, &peer).await,
        (_, Some(peer)) => Err(No::Exists(peer)),
        (_, None) => Err(No::Unknown),
    }
}

/// Sends our handshake again, with the same secret: while our request is open, or when a peer that
/// had accepted us fails (it may have forgotten us).
pub async fn handshake_again(v: &VoltChat, peer: &Peer) -> Result<Arc<Peer>, No> {
    if !v.config.enabled {
        return Err(No::Disabled);
    }
    if !matches!(peer.status, Status::Requested | Status::Error) {
        return Err(No::NotOpen(peer.status));
    }
    if !may_peer(v, &peer.host) {
        return Err(No::Policy);
    }
    sent(v, peer).await
}

async fn sent(v: &VoltChat, peer: &Peer) -> Result<Arc<Peer>, No> {
    handshake::send(v, peer).await?.ok_or(No::Unknown)
}

/// Accepts a peer in whatever state: connected, then one ping to the stored url, then its messages go
/// out. A ping that fails leaves `error`, in which the peer is still authenticated.
pub async fn accept(v: &VoltChat, peer: &Peer) -> Result<Arc<Peer>, No> {
    let (id, now_ms) = (peer.id.clone(), v.clock.now_ms());
    let accepted = v.book.change(&peer.host, move |known, _| {
        let next = known.filter(|known| known.id == id);
        (Change::to(next.map(|next| state::accept(next, now_ms))), ())
    });
    let accepted = accepted
        .await?
        .1
        .filter(|now| now.id == peer.id)
        .ok_or(No::Unknown)?;
    if v.config.enabled && may_peer(v, &peer.host) {
        let settled = !accepted.candidates.is_empty() && heartbeat::prove(v, &accepted).await;
        if !settled {
            heartbeat::call(v, &accepted).await;
            v.opened(&peer.host);
        }
    }
    let now = v.book.get(&peer.host).filter(|now| now.id == peer.id);
    now.ok_or(No::Unknown)
}

/// Rejects a peer; nobody is told.
pub async fn reject(v: &VoltChat, peer: &Peer) -> Result<Arc<Peer>, No> {
    let (id, now_ms) = (peer.id.clone(), v.clock.now_ms());
    let rejected = v.book.change(&peer.host, move |known, _| {
        let next = known.filter(|known| known.id == id);
        (Change::to(next.map(|next| state::reject(next, now_ms))), ())
    });
    let now = rejected.await?.1.filter(|now| now.id == peer.id);
    now.ok_or(No::Unknown)
}

/// Removes a peer and what waits for it; nobody is told. Whoever has the name next is another: nothing
/// of this one's reaches it. False: there was none (any more).
pub async fn remove(v: &VoltChat, peer: &Peer) -> Result<bool, No> {
    let id = peer.id.clone();
    let removed = v.book.change(&peer.host, move |known, _| match known {
        Some(known) if known.id == id => (Change::Remove, true),
        _ => (Change::Keep, false),
    });
    let removed = removed.await?.0;
    if removed {
        forget(v, &peer.host).await;
    }
    Ok(removed)
}

/// What waits for a removed peer is given up, and what was learnt of it is forgotten.
async fn forget(v: &VoltChat, host: &PeerName) {
    v.peers
        .learn(ID, host, &[judge::nothing(), fetch::nothing()].concat());
    let why = "the peer was removed before it was delivered";
    match v.mailbox.empty(ID, host, "peer_removed", why).await {
        Ok(None) => {}
        Ok(Some(first)) => v.peers.given_up(ID, host, first),
        // Each is refused at its next attempt.
        Err(error) => {
            tracing::warn!(peer = %host, %error, "what waits for a removed peer is still there")
        }
    }
}

/// A peer by its id or host, as an operator writes it.
pub fn find(v: &VoltChat, said: &str) -> Result<Arc<Peer>, No> {
    let by_id = ids::id(said).and_then(|id| v.book.by_id(id));
    if let Some(peer) = by_id {
        return Ok(peer);
    }
    let host = named(said).ok_or(No::BadId)?;
    v.book.get(&host).ok_or(No::Unknown)
}

/// What an operator should see before accepting: the record, what the server at its url says of
/// itself, and what is odd about it.
pub async fn inspect(v: &VoltChat, peer: &Peer) -> Value {
    let limits = Limits {
        time: PATIENCE,
        answer: MAX_INFO,
    };
    let asked = v.ask(
        Method::GET,
        &peer.url,
        "/info",
        HeaderMap::new(),
        None,
        limits,
    );
    let info: Result<Value, String> = match asked.await {
        Ok(answer) if answer.status == 200 => plain::json(&answer.body)
            .map_err(|_| "GET /info answers something that is no JSON".to_owned()),
        Ok(answer) => Err(format!("GET /info answers status {}", answer.status)),
        Err(error) => Err(format!("GET /info has no answer: {error}")),
    };
    let warnings = warnings(v, peer, info.as_ref().ok());
    let (info, error) = match info {
        Ok(info) => (info, None),
        Err(error) => (Value::Null, Some(error)),
    };
    json!({
        "peer": peer.shown_to_operator(),
        "info": info,
        "infoError": error,
        "warnings": warnings,
    })
}

fn warnings(v: &VoltChat, peer: &Peer, info: Option<&Value>) -> Vec<String> {
    let mut found = Vec::new();
    if peer.last_error.as_deref() == Some(OTHER_SECRET_THERE) {
        found.push(format!(
            "dangling peer: {} holds another secret for us, perhaps since somebody followed a \
             cross-host invite there; a moderator there must delete its entry for us first",
            peer.host
        ));
    }
    if let Some(at) = peer.refused_secret_ms {
        found.push(format!(
            "changed secret: at {} a handshake in this host's name with another secret was refused; \
             either somebody else speaks in its name, or the server has lost our secret and must be \
             removed here before it can ask again",
            text::iso(at)
        ));
    }
    if !peer.candidates.is_empty() {
        found.push(
            "the server, or somebody in its name, has asked us while we asked it; that is settled by \
             itself once the server takes a ping under its own secret"
                .to_owned(),
        );
    }
    if peer.url.starts_with("http://") {
        found.push("the url is not https: the shared secret and all tokens travel in clear".into());
    }
    if !v.allow.admits(peer.host.as_str()) {
        found.push(
            "voltchat.allowed_servers does not admit this host: its requests are refused".into(),
        );
    }
    if v.trust.standing(ID, peer.host.as_str()) == Standing::Blocked {
        found.push("a trust rule blocks this host: its requests are refused".into());
    }
    if let Some(info) = info {
        found.extend(told_otherwise(peer, info));
    } else {
        found.push("nothing at the url says that it is a VoltChat server".into());
    }
    found
}

/// Where a server's own words differ from the record.
fn told_otherwise(peer: &Peer, info: &Value) -> Vec<String> {
    let said = |name: &str| text::field(info.get(name), handshake::MAX_NAME);
    let mut found = Vec::new();
    if let Some(host) = said("host")
        && named(&host).is_none_or(|host| host != peer.host)
    {
        found.push(format!(
            "the server at {} calls itself {:?}, not {}",
            peer.url,
            shown(&host),
            peer.host
        ));
    }
    if let Some(name) = said("name")
        && name != peer.name
    {
        found.push(format!(
            "the server calls itself {:?}; the name here is {:?}",
            shown(&name),
            shown(&peer.name)
        ));
    }
    if info.get("federationEnabled") == Some(&Value::Bool(false)) {
        found.push("the server says that federation is switched off there".into());
    }
    found
}

/// Foreign text in a sentence: printable and bounded.
fn shown(text: &str) -> String {
    let printable = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    printable.take(handshake::MAX_NAME).collect()
}
