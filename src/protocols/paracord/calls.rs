//! `fed.do.paracord.<method>`: what a backend or an operator asks for.
//!
//! | method | body | answer |
//! | --- | --- | --- |
//! | `peer.list` | – | all servers |
//! | `peer.get` | `{peer}`: its name | one |
//! | `peer.inspect` | `{peer}` | one, what it says of itself now, warnings |
//! | `peer.request` | `{name, url?}` | the server, looked up |
//! | `peer.accept` | `{peer, fingerprint?}` | the server, trusted |
//! | `peer.reject` | `{peer}` | the server, rejected |
//! | `peer.remove` | `{peer}` | `{removed}` |
//! | `room.*`, `invite`, `join`, `leave` | | see [`rooms::calls`] |

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::record::Peer;
use super::{ID, Paracord, peering, rooms};
use crate::protocol::Refusal;

/// Answers a call.
pub async fn call(p: &Paracord, method: &str, body: Bytes) -> Result<Value, Refusal> {
    match method {
        "peer.list" => {
            let all = p.book.all();
            Ok(all.iter().map(|peer| peering::shown(p, peer)).collect())
        }
        "peer.get" => Ok(peering::shown(p, &*named(p, &object(&body)?)?)),
        "peer.inspect" => {
            let peer = named(p, &object(&body)?)?;
            Ok(peering::inspect(p, &peer).await)
        }
        "peer.request" => {
            let body = object(&body)?;
            // The host says which server, where a name says what somebody calls it.
            let said = text(&body, "host")?.or(text(&body, "name")?);
            let said = said.ok_or_else(|| expected("{\"name\"}: the name of a server"))?;
            let name = peering::name(&said)?;
            let url = text(&body, "url")?;
            let peer = peering::request(p, &name, url.as_deref()).await?;
            Ok(peering::shown(p, &peer))
        }
        "peer.accept" => {
            let body = object(&body)?;
            let (peer, print) = (named(p, &body)?, text(&body, "fingerprint")?);
            let peer = peering::accept(p, &peer, print.as_deref()).await?;
            Ok(peering::shown(p, &peer))
        }
        "peer.reject" => {
            let peer = named(p, &object(&body)?)?;
            Ok(peering::shown(p, &*peering::reject(p, &peer).await?))
        }
        "peer.remove" => {
            let peer = named(p, &object(&body)?)?;
            let removed = peering::remove(p, &peer).await?;
            Ok(json!({"name": peer.name.as_str(), "host": peer.name.as_str(), "removed": removed}))
        }
        _ => match rooms::calls::call(p, method, &body).await {
            Some(answer) => answer,
            None => Err(Refusal::new(
                "unknown_method",
                format!(
                    "{ID} has peer.list, peer.get, peer.inspect, peer.request, peer.accept, \
                     peer.reject, peer.remove, {}",
                    rooms::calls::METHODS
                ),
            )),
        },
    }
}

fn expected(what: &str) -> Refusal {
    Refusal::new("bad_request", format!("expected {what}"))
}

fn object(body: &[u8]) -> Result<Value, Refusal> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(expected("a JSON object")),
    }
}

/// A text of a body; null and empty are none.
fn text(body: &Value, member: &str) -> Result<Option<String>, Refusal> {
    match body.get(member) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
        }
        Some(_) => Err(expected(&format!("a text as {member:?}"))),
    }
}

/// The server that a body names.
fn named(p: &Paracord, body: &Value) -> Result<Arc<Peer>, Refusal> {
    let said = text(body, "peer")?;
    let said = said.ok_or_else(|| expected("{\"peer\"}: the name of a server"))?;
    peering::find(p, &said)
}
