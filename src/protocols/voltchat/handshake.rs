//! The handshake both ways: a host asks us for peering, and we ask a host.
//!
//! Its body carries the shared secret in clear, so ours goes to the url that the operator gave and
//! nowhere else (no redirect is followed), and what another's proves is decided in [`super::state`].

use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{Fail, ok};
use super::book::{BookError, Change};
use super::record::{self, Peer, Status};
use super::request::{self, Received};
use super::state::{self, Answered, Offer, Offered};
use super::{ID, VoltChat, heartbeat, host, ids, text};
use crate::identity::hmac::SharedSecret;
use crate::protocol::{Answer, PeerName, TransportKind};
use crate::protocols::plain;
use crate::trust::Standing;

/// How long the other side has for its answer.
pub const PATIENCE: Duration = Duration::from_secs(8);
/// Where a handshake goes.
const PATH: &str = "/handshake";
/// Longest name, UTF-16 units.
pub const MAX_NAME: usize = 140;
/// Handshakes a minute under another secret than the known one, for one host.
const GUESSES_PER_HOST: u32 = 10;
/// Handshakes of ours sent again a minute, because another bridge's crossed it.
const RESENT_PER_HOST: u32 = 2;
/// What a bridge says it is, in the body of its handshake and in its features.
const BRIDGE: &str = "drawbridge";

/// Why a host refuses our handshake when it holds another secret for us.
pub const OTHER_SECRET_THERE: &str = "the server refused the handshake because it holds another \
    secret for us (401); a moderator there must delete its entry for us, then send the handshake \
    again";

/// What we say we can do.
pub fn features() -> Value {
    json!({"bridge": BRIDGE, "relayPush": true, "relayFetch": true})
}

/// Whether features say that the other side takes pushes as a bridge does.
pub fn is_bridge(features: &serde_json::Map<String, Value>) -> bool {
    features.get("bridge").and_then(Value::as_str) == Some(BRIDGE)
}

/// Whether this client may send another handshake now. Asked before its body is read.
pub fn may_try(v: &VoltChat, client: Option<&str>) -> Result<(), Fail> {
    let window = client.map(|client| format!("voltchat/handshake/{client}"));
    match window {
        Some(window) if !v.trust.admit(&window, v.config.handshakes_per_minute) => {
            Err(Fail::limited())
        }
        _ => Ok(()),
    }
}

/// `POST /handshake`.
pub async fn receive(v: &Arc<VoltChat>, r: &Received) -> Result<Response, Fail> {
    if !v.config.enabled {
        return Err(Fail::disabled());
    }
    let offer = offer(v, r)?;
    let from = offer.host.clone();
    let guesses = format!("voltchat/guess/{from}");
    if v.book.get(&from).is_some() && v.trust.full(&guesses, GUESSES_PER_HOST) {
        return Err(Fail::limited());
    }
    let own = v.own.host.clone();
    let decided = v.book.change(&from, move |known, room| {
        let decided = state::offered(known, offer, &own, room);
        let change = match &decided {
            Offered::Asked(next)
            | Offered::Repeated(next)
            | Offered::Crossing(next)
            | Offered::OursStands(next)
            | Offered::OtherSecret(next) => Change::put(next.clone()),
            Offered::Full => Change::Keep,
        };
        (change, decided)
    });
    let (decided, _) = decided.await.map_err(|error| unkept(&error))?;
    let guessed = || {
        v.trust.admit(&guesses, GUESSES_PER_HOST);
        request::charge(v, r.client.as_deref());
    };
    match decided {
        Offered::Asked(peer) | Offered::Repeated(peer) => Ok(received(v, &peer)),
        Offered::Crossing(peer) => {
            guessed();
            heartbeat::prove_soon(v, &from);
            Ok(received(v, &peer))
        }
        Offered::OursStands(peer) => {
            guessed();
            if v.trust
                .admit(&format!("voltchat/resent/{from}"), RESENT_PER_HOST)
            {
                send_soon(v, &peer);
            }
            Err(rejected())
        }
        Offered::OtherSecret(peer) => {
            guessed();
            tracing::warn!(host = %from, "a handshake under another secret was refused");
            let body = json!({
                "id": peer.id,
                "status": peer.status.name(),
                "detail": "a handshake under another secret than the known one was refused: somebody \
                           speaks in this host's name, or it has forgotten us; in that case remove the \
                           peer and let it ask again",
            });
            v.ops
                .event("peer", "refused_secret", ID, from.as_str(), body);
            Err(rejected())
        }
        Offered::Full => {
            tracing::warn!(host = %from, "a handshake was refused: too many strangers wait");
            Err(Fail::bad("Failed to register peer"))
        }
    }
}

/// What the body offers, checked in the order of sheet 6.2.
fn offer(v: &VoltChat, r: &Received) -> Result<Offer, Fail> {
    let said = |name: &str| text::field(r.member(name), usize::MAX);
    let missing = || Fail::bad("Missing required fields");
    let name = text::field(r.member("name"), MAX_NAME).ok_or_else(missing)?;
    let (claimed, url) = (said("host"), said("url"));
    let secret = r.member("sharedSecret").and_then(Value::as_str);
    let secret = secret.filter(|secret| !text::trim(secret).is_empty());
    let (Some(claimed), Some(url), Some(secret)) = (claimed, url, secret) else {
        return Err(missing());
    };
    let secret = SharedSecret::new(secret).ok_or_else(|| Fail::bad("Invalid sharedSecret"))?;
    let peer = named(&claimed).ok_or_else(|| Fail::bad("Invalid host"))?;
    if !may_peer(v, &peer) {
        return Err(Fail::policy());
    }
    let url = host::normal_url(&url, peer.as_str(), !v.takes_plain(&peer))
        .ok_or_else(|| Fail::bad("Invalid URL (HTTPS required)"))?;
    let features = record::features(r.member("features"));
    Ok(Offer {
        id: ids::fresh("peer", r.now_ms),
        bridge: is_bridge(&features) || r.member("bridge").and_then(Value::as_str) == Some(BRIDGE),
        name,
        host: peer,
        url,
        secret,
        features,
        now_ms: r.now_ms,
    })
}

/// A host in its strict form, if it can be the name of a peer.
pub fn named(said: &str) -> Option<PeerName> {
    let host = host::strict(said)?;
    // `http://h.example:443` is `h.example:443`, and that is read as `h.example`, who is another.
    let lasts = host::strict(&host).is_some_and(|again| again == host);
    lasts.then(|| PeerName::parse(&host).ok()).flatten()
}

/// Whether policy lets this host peer with us: the allow list, trust rules, and never ourselves.
pub fn may_peer(v: &VoltChat, host: &PeerName) -> bool {
    *host != v.own.host
        && v.allow.admits(host.as_str())
        && v.trust.standing(ID, host.as_str()) != Standing::Blocked
}

/// The answer to every handshake that is not refused: "received", whatever state the peer is in.
fn received(v: &VoltChat, peer: &Peer) -> Response {
    ok(&json!({
        "accepted": true,
        "peerId": peer.id,
        "host": v.own.host.as_str(),
        "name": v.own.name,
        "features": features(),
    }))
}

fn rejected() -> Fail {
    Fail::new(StatusCode::UNAUTHORIZED, "Handshake credentials rejected")
}

/// A change that could not be kept.
pub fn unkept(error: &BookError) -> Fail {
    match error {
        BookError::Store(error) => Fail::store(error),
        other => Fail::unavailable(&other.to_string(), 5),
    }
}

/// Sends our handshake and keeps what came of it. Answers the record afterwards; `None`: it was
/// removed meanwhile.
pub async fn send(v: &VoltChat, peer: &Peer) -> Result<Option<Arc<Peer>>, BookError> {
    let answered = ask(v, peer).await;
    let (id, now_ms) = (peer.id.clone(), v.clock.now_ms());
    let kept = v.book.change(&peer.host, move |known, _| {
        let next = known
            .filter(|known| known.id == id)
            .and_then(|known| state::answered(known, answered, now_ms));
        (Change::to(next), ())
    });
    kept.await.map(|((), peer)| peer)
}

/// The same beside the request at hand.
fn send_soon(v: &Arc<VoltChat>, peer: &Peer) {
    let (v, peer) = (Arc::clone(v), peer.clone());
    tokio::spawn(async move {
        // It may have been decided meanwhile.
        let still = v.book.get(&peer.host).filter(|now| now.id == peer.id);
        if still.is_some_and(|now| now.status == Status::Requested)
            && let Err(error) = send(&v, &peer).await
        {
            tracing::warn!(host = %peer.host, %error, "what came of a handshake is not kept");
        }
    });
}

/// Asks; a failure is a sentence.
async fn ask(v: &VoltChat, peer: &Peer) -> Answered {
    let body = json!({
        "name": v.own.name,
        "host": v.own.host.as_str(),
        "url": v.own.url,
        "sharedSecret": peer.secret.as_text(),
        "features": features(),
        "bridge": BRIDGE,
    });
    let answer = match v.tell(peer, PATH, &body, PATIENCE).await {
        Ok(answer) => answer,
        Err(error) => {
            return Answered::Failed(match error.kind {
                TransportKind::Timeout => format!(
                    "the server did not answer the handshake within {} s",
                    PATIENCE.as_secs()
                ),
                _ => format!("the handshake could not be sent: {error}"),
            });
        }
    };
    meaning(&answer)
}

/// What an answer to a handshake means.
pub(super) fn meaning(answer: &Answer) -> Answered {
    let said = plain::json(&answer.body).unwrap_or_default();
    let text = |name: &str| said.get(name).and_then(Value::as_str);
    match answer.status {
        200..=299 if said.get("accepted").is_some_and(request::is_truthy) => Answered::Received {
            remote_peer_id: text("peerId").and_then(ids::id).map(str::to_owned),
            features: record::features(said.get("features")),
        },
        status => Answered::Failed(refusal(status, text("error"))),
    }
}

/// What the answer to a handshake that was not taken means, in our words.
fn refusal(status: u16, error: Option<&str>) -> String {
    match (status, error) {
        (200..=299, _) => {
            "the server answered the handshake, but not that it received it; is it a \
                           VoltChat server?"
                .to_owned()
        }
        (300..=399, _) => format!(
            "the server redirects the handshake (status {status}); a secret is sent through no \
             redirect: ask for peering with the url it redirects to"
        ),
        (401, Some("Handshake credentials rejected")) => OTHER_SECRET_THERE.to_owned(),
        (403, Some("Federation is not enabled")) => {
            "the server has federation switched off (403)".to_owned()
        }
        (403, Some("Peer host is not allowed by federation policy")) => {
            "the server's allow list does not name us (403)".to_owned()
        }
        (404 | 405, _) => format!(
            "the server knows no VoltChat handshake (status {status}); is it a VoltChat server, and \
             is the url its root?"
        ),
        (429, _) => "the server takes no more handshakes now (429); send it again later".to_owned(),
        (500..=599, _) => format!("the server could not take the handshake (status {status})"),
        _ => format!("the server refused the handshake (status {status})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_reads_as_anothers_the_next_time_is_nobodys() {
        let name = |said| named(said).map(|name| name.to_string());
        assert_eq!(name("https://H.example:443"), Some("h.example".into()));
        assert_eq!(name("h.example:8443"), Some("h.example:8443".into()));
        assert_eq!(name("http://h.example:443"), None);
    }

    #[test]
    fn every_refusal_is_a_sentence_of_ours() {
        for status in [200, 302, 400, 401, 403, 404, 429, 500, 503] {
            let said = refusal(status, Some("<script>x</script>"));
            assert!(
                said.starts_with("the server ") && !said.contains("script"),
                "{said}"
            );
        }
        assert_eq!(
            refusal(401, Some("Handshake credentials rejected")),
            OTHER_SECRET_THERE
        );
    }
}
