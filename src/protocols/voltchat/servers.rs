//! `GET /servers`, `/server-info/:id`, `/server-snapshot/:id`: what a mainline says of its own servers.
//!
//! A bridge has none, so the list is empty. Of a single server a local backend may know: it is asked on
//! `fed.ask.voltchat.server-info` (or `server-snapshot`) with `{id, peer}` and answers the JSON object
//! that is passed on, `host` replaced by ours; no answer in time, or none that fits, is the protocol's
//! 404.

use axum::response::Response;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::answer::{Fail, ok};
use super::request::{self, Received};
use super::{ID, VoltChat, ids};
use crate::protocols::plain;

/// Which description of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Description {
    Info,
    Snapshot,
}

impl Description {
    fn method(self) -> &'static str {
        match self {
            Self::Info => "server-info",
            Self::Snapshot => "server-snapshot",
        }
    }
}

/// `GET /servers`.
pub async fn list(v: &VoltChat, r: &Received) -> Result<Response, Fail> {
    let caller = request::authenticate(v, r)?;
    request::spend(v, &caller.nonce, caller.client.as_deref()).await?;
    Ok(ok(&json!([])))
}

/// `GET /server-info/:id` and `/server-snapshot/:id`; `id` is the path's part, decoded.
pub async fn describe(
    v: &VoltChat,
    r: &Received,
    what: Description,
    id: &str,
) -> Result<Response, Fail> {
    let caller = request::authenticate(v, r)?;
    request::spend(v, &caller.nonce, caller.client.as_deref()).await?;
    let id = ids::id(id).ok_or_else(|| Fail::bad("Invalid server id"))?;
    let found = ask(v, what, id, caller.peer.host.as_str()).await;
    match found {
        Some(server) => Ok(ok(&Value::Object(server))),
        None => Err(Fail::not_found("Server not found")),
    }
}

async fn ask(v: &VoltChat, what: Description, id: &str, peer: &str) -> Option<Map<String, Value>> {
    let bus = v.bus.as_ref()?;
    let body = Bytes::from(json!({"id": id, "peer": peer}).to_string());
    match bus
        .ask(ID, what.method(), body, v.config.backend_timeout)
        .await
    {
        Ok(answer) => described(&answer, id, v.own.host.as_str()),
        Err(error) => {
            tracing::debug!(%error, id, "no backend describes the server");
            None
        }
    }
}

/// A backend's answer as a peer may see it; `None`: it knows no such server.
fn described(answer: &[u8], id: &str, host: &str) -> Option<Map<String, Value>> {
    let Ok(Value::Object(mut server)) = plain::json(answer) else {
        return None;
    };
    if server.is_empty() || server.contains_key("error") {
        return None;
    }
    server.insert("id".into(), id.into());
    server.insert("host".into(), host.into());
    Some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backends_answer_goes_out_under_our_host() {
        let body = json!({"id": "s1", "name": "Lab", "host": "other.example"}).to_string();
        let server = described(body.as_bytes(), "s1", "a.example").unwrap();
        assert_eq!(
            (&server["host"], &server["name"]),
            (&json!("a.example"), &json!("Lab"))
        );
    }

    #[test]
    fn an_answer_that_is_no_server_is_none() {
        for body in [
            "",
            "null",
            "[]",
            "{}",
            "\"x\"",
            "{\"error\":\"unknown\"}",
            "{",
        ] {
            assert!(
                described(body.as_bytes(), "s1", "a.example").is_none(),
                "{body}"
            );
        }
    }
}
