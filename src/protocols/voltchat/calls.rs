//! What a local backend, the command line or the admin API asks for (`fed.do.voltchat.<method>`).
//!
//! | method | body | answer |
//! | --- | --- | --- |
//! | `peer.list` | – | all peers |
//! | `peer.get` | `{peer}`: id or host | one |
//! | `peer.inspect` | `{peer}` | one, what its server says of itself, warnings |
//! | `peer.request` | `{name, host and/or url}` | the peer, asked |
//! | `peer.handshake` | `{peer}` | the peer, asked again with the same secret |
//! | `peer.accept`, `peer.reject` | `{peer}` | the peer afterwards |
//! | `peer.remove` | `{peer}` | `{removed}` |
//! | `invite.*`, `server.*` | | see [`invites::calls`] |
//!
//! A peer is shown as `GET /peers/:id` does, with `state` beside `status`: it tells `requested` from
//! `pending`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::acts;
use super::record::Peer;
use super::{ID, VoltChat, invites};
use crate::protocol::Refusal;

/// Answers one call.
pub async fn call(v: &VoltChat, method: &str, body: Bytes) -> Result<Value, Refusal> {
    match method {
        "peer.list" => {
            let all = v.book.all();
            Ok(all.iter().map(|peer| peer.shown_to_operator()).collect())
        }
        "peer.get" => Ok(named(v, &body)?.shown_to_operator()),
        "peer.inspect" => Ok(acts::inspect(v, &*named(v, &body)?).await),
        "peer.request" => {
            let body = object(&body)?;
            let asked = acts::request(v, body.get("name"), body.get("host"), body.get("url"));
            Ok(asked.await?.shown_to_operator())
        }
        "peer.handshake" => {
            let peer = named(v, &body)?;
            Ok(acts::handshake_again(v, &peer).await?.shown_to_operator())
        }
        "peer.accept" => {
            let peer = named(v, &body)?;
            Ok(acts::accept(v, &peer).await?.shown_to_operator())
        }
        "peer.reject" => {
            let peer = named(v, &body)?;
            Ok(acts::reject(v, &peer).await?.shown_to_operator())
        }
        "peer.remove" => {
            let peer = named(v, &body)?;
            let removed = acts::remove(v, &peer).await?;
            Ok(json!({"id": peer.id, "host": peer.host.as_str(), "removed": removed}))
        }
        _ => match invites::calls::call(v, method, &body).await {
            Some(answer) => answer,
            None => Err(Refusal::new(
                "unknown_method",
                format!(
                    "{ID} has peer.list, peer.get, peer.inspect, peer.request, peer.handshake, \
                     peer.accept, peer.reject, peer.remove, {}",
                    invites::calls::METHODS
                ),
            )),
        },
    }
}

fn object(body: &[u8]) -> Result<Value, Refusal> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(Refusal::new("bad_request", "expected a JSON object")),
    }
}

/// The peer that a body names.
fn named(v: &VoltChat, body: &[u8]) -> Result<std::sync::Arc<Peer>, Refusal> {
    let body = object(body)?;
    let said = body.get("peer").and_then(Value::as_str);
    let said = said.ok_or_else(|| {
        Refusal::new(
            "bad_request",
            "expected {\"peer\"}: the id or host of a peer",
        )
    })?;
    Ok(acts::find(v, said)?)
}
