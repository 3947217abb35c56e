//! `fed.do.voltchat.invite.*` and `server.*`: what a local backend, the admin API and the command line
//! ask. Each answers the JSON that the HTTP route of the same purpose answers.
//!
//! | method | body | answer |
//! | --- | --- | --- |
//! | `invite.share` | `{code, serverId, serverName?, targetPeerId?, maxUses?, expiresAt?}` | the invite |
//! | `invite.list` | – | every invite, oldest first |
//! | `invite.public` | `{host?}` | what that host may see |
//! | `invite.use` | `{id}`, an id or a code | the invite, one use more |
//! | `invite.remove` | `{id}` | `{success}` |
//! | `invite.browse` | `{peer}`, a host or a peer's id | `{peer, fetchedAt, cached, error, leftOut, invites}` |
//! | `server.put` | `{id, name?}` | the same |
//! | `server.remove` | `{id}` | `{id, removed}` |
//! | `server.list` | – | `[{id, name}]` |

use bytes::Bytes;
use serde_json::{Value, json};

use super::refused::Refused;
use crate::protocol::{PeerName, Refusal};
use crate::protocols::voltchat::{VoltChat, host};

/// Methods, for the refusal of an unknown one.
pub const METHODS: &str = "invite.share, invite.list, invite.public, invite.use, invite.remove, \
                           invite.browse, server.put, server.remove and server.list";

/// Answers one call; `None`: there is no such method here.
pub async fn call(v: &VoltChat, method: &str, body: &Bytes) -> Option<Result<Value, Refusal>> {
    let answer = match method {
        "invite.share" => match object(body) {
            Ok(body) => share(v, body).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        },
        "invite.list" => list(v).map_err(Refusal::from),
        "invite.public" => match object(body) {
            Ok(body) => {
                public(v, body.get("host").filter(|host| !host.is_null())).map_err(Refusal::from)
            }
            Err(refusal) => Err(refusal),
        },
        "invite.use" => match named(body, "id") {
            Ok(id) => spend(v, &id).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        },
        "invite.remove" => match named(body, "id") {
            Ok(id) => remove(v, &id).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        },
        "invite.browse" => match named(body, "peer") {
            Ok(peer) => super::browse::browse(v, &peer).await,
            Err(refusal) => Err(refusal),
        },
        "server.put" => match object(body) {
            Ok(body) => v.invites.put_server(body).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        },
        "server.remove" => match object(body) {
            Ok(body) => v.invites.remove_server(body).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        },
        "server.list" => Ok(v.invites.servers()),
        _ => return None,
    };
    Some(answer)
}

/// Shares an invite. The target may be a peer's host as well as its id.
pub async fn share(v: &VoltChat, body: Value) -> Result<Value, Refused> {
    enabled(v)?;
    let book = v.book.clone();
    let peer = move |named: &str| {
        let by_host = || book.get(&PeerName::parse(&host::strict(named)?).ok()?);
        let peer = book.by_id(named).or_else(by_host)?;
        Some(peer.id.clone())
    };
    v.invites.share(body, peer).await
}

/// Every invite.
pub fn list(v: &VoltChat) -> Result<Value, Refused> {
    enabled(v)?;
    Ok(v.invites.list())
}

/// What somebody sees who claims to be a host; `None`: claims nothing. Works with federation off.
pub fn public(v: &VoltChat, claimed: Option<&Value>) -> Result<Value, Refused> {
    let peer = match claimed {
        None => None,
        Some(host) => {
            let host = host
                .as_str()
                .and_then(host::strict)
                .ok_or(Refused::BadHost)?;
            let known = PeerName::parse(&host).ok();
            known.and_then(|host| v.book.get(&host))
        }
    };
    Ok(v.invites.public(peer.as_ref().map(|peer| peer.id.as_str())))
}

/// Counts one use.
pub async fn spend(v: &VoltChat, id_or_code: &str) -> Result<Value, Refused> {
    enabled(v)?;
    v.invites.spend(id_or_code).await
}

/// Deletes one.
pub async fn remove(v: &VoltChat, id: &str) -> Result<Value, Refused> {
    enabled(v)?;
    v.invites.remove(id).await
}

fn enabled(v: &VoltChat) -> Result<(), Refused> {
    if v.config.enabled {
        Ok(())
    } else {
        Err(Refused::Disabled)
    }
}

/// The body as an object; none at all is an empty one.
fn object(body: &[u8]) -> Result<Value, Refusal> {
    if body.trim_ascii().is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_slice(body) {
        Ok(object @ Value::Object(_)) => Ok(object),
        Ok(Value::Null) => Ok(json!({})),
        Ok(_) => Err(Refusal::new("bad_request", "expected a JSON object")),
        Err(error) => Err(Refusal::new(
            "bad_request",
            format!("expected a JSON object: {error}"),
        )),
    }
}

/// One text of it.
fn named(body: &[u8], name: &str) -> Result<String, Refusal> {
    match object(body)?.get(name).and_then(Value::as_str) {
        Some(text) => Ok(text.to_owned()),
        None => Err(Refusal::new(
            "bad_request",
            format!("expected a JSON object {{{name:?}: TEXT}}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_or_nothing() {
        assert_eq!(object(b" \n").unwrap(), json!({}));
        assert_eq!(object(b"null").unwrap(), json!({}));
        assert_eq!(object(b"[]").unwrap_err().code, "bad_request");
        assert_eq!(named(b"{\"id\":\"x\"}", "id").unwrap(), "x");
        assert!(
            named(b"{\"id\":5}", "id")
                .unwrap_err()
                .detail
                .contains("\"id\"")
        );
    }
}
