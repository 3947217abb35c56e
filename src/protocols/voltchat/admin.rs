//! The administrative routes of peers (sheet, section 6.4), by bearer. Reading works with federation
//! switched off, and so do the decisions that only change a record.

use axum::response::Response;
use serde_json::{Value, json};

use super::VoltChat;
use super::acts::{self, No};
use super::answer::{Fail, ok};
use super::ids;
use super::record::Peer;
use super::request::Received;

/// `GET /peers`.
pub fn list(v: &VoltChat) -> Response {
    let shown: Vec<Value> = v.book.all().iter().map(|peer| peer.shown()).collect();
    ok(&Value::Array(shown))
}

/// `GET /peers/:id`.
pub fn show(v: &VoltChat, id: &str) -> Result<Response, Fail> {
    Ok(ok(&known(v, id)?.shown()))
}

/// `POST /peers`.
pub async fn request(v: &VoltChat, r: &Received) -> Result<Response, Fail> {
    let asked = acts::request(v, r.member("name"), r.member("host"), r.member("url"));
    Ok(ok(&asked.await?.shown()))
}

/// `POST /peers/:id/accept`.
pub async fn accept(v: &VoltChat, id: &str) -> Result<Response, Fail> {
    let peer = known(v, id)?;
    Ok(ok(&acts::accept(v, &peer).await?.shown()))
}

/// `POST /peers/:id/reject`.
pub async fn reject(v: &VoltChat, id: &str) -> Result<Response, Fail> {
    let peer = known(v, id)?;
    acts::reject(v, &peer).await?;
    Ok(ok(&json!({"success": true})))
}

/// `DELETE /peers/:id`: also for an id that is nobody's.
pub async fn remove(v: &VoltChat, id: &str) -> Result<Response, Fail> {
    match known(v, id) {
        Ok(peer) => {
            acts::remove(v, &peer).await?;
        }
        Err(No::Unknown) => {}
        Err(no) => return Err(no.into()),
    }
    Ok(ok(&json!({"success": true})))
}

/// A peer by the id in a path.
pub fn known(v: &VoltChat, id: &str) -> Result<std::sync::Arc<Peer>, No> {
    let id = ids::id(id).ok_or(No::BadId)?;
    v.book.by_id(id).ok_or(No::Unknown)
}
