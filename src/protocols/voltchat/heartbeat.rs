//! Heartbeats: a peer's ping says that it has accepted us and is there; ours says the same to it.
//!
//! A ping is also the only proof of a secret that crossed our own request: it goes to the url our
//! operator gave, so a stranger who speaks in the host's name cannot answer it. A server that would
//! take any ping proves nothing by taking that one; so it is first shown one that must be refused.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use serde_json::json;

use super::answer::{Fail, ok};
use super::book::Change;
use super::handshake::{self, unkept};
use super::record::{Peer, Status};
use super::request::{self, Received};
use super::state::{self, Contact};
use super::{VoltChat, text, token};
use crate::identity::hmac::SharedSecret;
use crate::protocol::{PeerName, TransportKind};

/// How long the other side has for its answer.
pub const PATIENCE: Duration = Duration::from_secs(8);
/// Where a ping goes.
const PATH: &str = "/ping";
/// When a crossing secret is tried after it was offered: the other side takes it for shared only
/// once it has read our answer. From then on the heartbeats try it.
const SOON: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
];

/// `POST /ping`.
pub async fn receive(v: &Arc<VoltChat>, r: &Received) -> Result<Response, Fail> {
    let caller = request::authenticate_as(v, r, Contact::Ping)?;
    request::spend(v, &caller.nonce, caller.client.as_deref()).await?;
    let contact = v.book.try_contact(&caller.peer, Contact::Ping, r.now_ms);
    if !contact.await.map_err(|error| unkept(&error))? {
        // Rejected or removed meanwhile.
        return Err(Fail::credentials());
    }
    v.opened(&caller.peer.host);
    Ok(ok(&json!({
        "host": v.own.host.as_str(),
        "name": v.own.name,
        "version": env!("CARGO_PKG_VERSION"),
        "features": handshake::features(),
        "timestamp": text::iso(r.now_ms),
    })))
}

/// One heartbeat: what a crossing left open is done, an accepted peer is pinged. Answers the peer if it took
/// the ping, so that more can be asked of it.
pub async fn beat(v: &VoltChat, host: &PeerName) -> Option<Arc<Peer>> {
    let peer = v.book.get(host)?;
    if !v.config.enabled || !handshake::may_peer(v, host) {
        return None;
    }
    if peer.resend && peer.status == Status::Requested {
        if let Err(error) = handshake::send(v, &peer).await {
            tracing::warn!(%host, %error, "what came of a handshake is not kept");
        }
        return None;
    }
    if !peer.candidates.is_empty() && prove(v, &peer).await {
        return v.book.get(host);
    }
    if peer.status.is_accepted() && call(v, &peer).await {
        return v.book.get(host);
    }
    None
}

/// Pings an accepted peer and keeps what came of it. True: it took the ping.
pub async fn call(v: &VoltChat, peer: &Peer) -> bool {
    match ping(v, peer, &peer.secret).await {
        Ok(()) => {
            let now_ms = v.clock.now_ms();
            v.book.contact(peer, Contact::Other, now_ms).await
        }
        Err(fault) => {
            tracing::debug!(host = %peer.host, %fault, "ping failed");
            v.book.failed_as(peer, &fault.to_string()).await;
            false
        }
    }
}

/// Why a ping was not taken: a sentence of ours.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error(
        "the server refuses our pings (401): it has not accepted us yet, or has forgotten us, or \
         our clocks are more than five minutes apart"
    )]
    Refused,
    #[error("the server has federation switched off, or does not allow us (403)")]
    Forbidden,
    #[error("the server redirects the ping (status {0}); the url of this peer is not its root")]
    Redirect(u16),
    #[error("the server knows no VoltChat ping (status {0}); is it a VoltChat server?")]
    NoRoute(u16),
    #[error("the server answered the ping with status {0}")]
    Status(u16),
    #[error("the server did not answer the ping within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error("the ping could not be sent: {0}")]
    Transport(String),
}

/// Pings a peer under this secret.
pub async fn ping(v: &VoltChat, peer: &Peer, secret: &SharedSecret) -> Result<(), Fault> {
    let from = token::Sender {
        peer_id: &peer.id,
        host: v.own.host.as_str(),
        name: &v.own.name,
    };
    let nonce = token::fresh_nonce().map_err(|error| Fault::Transport(error.to_string()))?;
    let token = token::make(secret, &from, v.clock.now_ms(), &nonce);
    let body = json!({"host": v.own.host.as_str(), "token": token});
    match v.tell(peer, PATH, &body, PATIENCE).await {
        Ok(answer) => match answer.status {
            200..=299 => Ok(()),
            status @ 300..=399 => Err(Fault::Redirect(status)),
            401 => Err(Fault::Refused),
            403 => Err(Fault::Forbidden),
            status @ (404 | 405) => Err(Fault::NoRoute(status)),
            status => Err(Fault::Status(status)),
        },
        Err(error) if error.kind == TransportKind::Timeout => Err(Fault::Timeout),
        Err(error) => Err(Fault::Transport(error.to_string())),
    }
}

/// Tries a peer's crossing secrets, newest first, and takes over the one it uses. True: one was.
pub async fn prove(v: &VoltChat, peer: &Peer) -> bool {
    // A server that takes a ping under a secret nobody has would take any.
    let nobodys = match SharedSecret::generate() {
        Ok(secret) => secret,
        Err(error) => {
            tracing::warn!(%error, "no random numbers; crossing secrets are not tried");
            return false;
        }
    };
    match ping(v, peer, &nobodys).await {
        Err(Fault::Refused) => {}
        Ok(()) => {
            tracing::warn!(host = %peer.host, "the server takes pings under any secret: nothing it takes proves one");
            return false;
        }
        Err(fault) => {
            tracing::debug!(host = %peer.host, %fault, "crossing secrets are not tried");
            return false;
        }
    }
    for candidate in peer.candidates.iter().rev() {
        if ping(v, peer, &candidate.secret).await.is_err() {
            continue;
        }
        let (id, secret, now_ms) = (peer.id.clone(), candidate.secret.clone(), v.clock.now_ms());
        let adopted = v.book.change(&peer.host, move |known, _| {
            let next = known
                .filter(|known| known.id == id)
                .and_then(|known| state::adopted(known, &secret, now_ms));
            let done = next.is_some();
            (Change::to(next), done)
        });
        match adopted.await {
            Ok((true, _)) => {
                tracing::info!(host = %peer.host, "crossing requests are settled: the peer's secret is taken over");
                v.opened(&peer.host);
                return true;
            }
            Ok((false, _)) => return false,
            Err(error) => {
                tracing::warn!(host = %peer.host, %error, "a proven secret is not kept; it is tried again");
                return false;
            }
        }
    }
    false
}

/// Tries a host's crossing secrets beside the request at hand.
pub fn prove_soon(v: &Arc<VoltChat>, host: &PeerName) {
    let (v, host) = (Arc::downgrade(v), host.clone());
    tokio::spawn(async move {
        for pause in SOON {
            tokio::time::sleep(pause).await;
            let Some(v) = v.upgrade() else { return };
            let Some(peer) = v.book.get(&host).filter(|peer| !peer.candidates.is_empty()) else {
                return;
            };
            if prove(&v, &peer).await {
                return;
            }
        }
    });
}
