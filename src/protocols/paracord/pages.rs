//! What we say of ourselves to anybody: our description and our keys (sheet, 2).
//!
//! Another bridge signs its request for our keys as a courtesy: whoever does so fetches them by itself
//! and will notice a change, which an operator who changes our key wants to know. Nothing depends on
//! it, so a signature that does not hold is as good as none.

use ::http::request::Parts;
use axum::response::Response;
use serde_json::json;
use url::Url;

use super::answer::ok;
use super::transport::Claim;
use super::{BASE, Paracord};
use crate::http::server::ClientAddr;
use crate::protocol::PeerName;
use crate::protocols::wire;

/// What the description calls the protocol.
const VERSION: &str = "federation-v1";

/// `GET /.well-known/paracord/server`.
pub fn description(p: &Paracord) -> Response {
    let prefix = Url::parse(&p.own.url).map_or_else(
        |_| String::new(),
        |url| url.path().trim_end_matches('/').to_owned(),
    );
    ok(&json!({
        "domain": p.own.domain,
        "enabled": p.config.enabled,
        "federation_endpoint": format!("{prefix}{BASE}"),
        "server_name": p.own.name.as_str(),
        "version": VERSION,
    }))
}

/// `GET /keys`.
pub fn keys(p: &Paracord, parts: &Parts) -> Response {
    let now = p.clock.now_ms();
    if let Some(peer) = asker(p, parts) {
        p.book.fetched_ours(&peer, now);
        p.book.seen(&peer, now);
    }
    let keys = match p.config.enabled {
        true => p.keys.published(&p.own, now),
        false => json!([]),
    };
    ok(&json!({"keys": keys, "server_name": p.own.name.as_str()}))
}

/// The trusted server that signed this request, if one did. So many signatures of a client's address are
/// looked at in a minute, and no more.
fn asker(p: &Paracord, parts: &Parts) -> Option<PeerName> {
    let claim = Claim::read(&parts.headers).ok()?;
    let now = p.clock.now_ms();
    let peer = p.book.by_text(&claim.origin)?;
    if !claim.in_time(now) || !peer.is_trusted() {
        return None;
    }
    if let Some(ClientAddr(ip)) = parts.extensions.get::<ClientAddr>() {
        let window = format!("paracord/keys/{}", wire::client_window(*ip));
        if !p.trust.admit(&window, p.config.unproven_per_minute) {
            return None;
        }
    }
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    let keys = peer.usable_keys(&claim.key_id, now);
    let proven = keys
        .iter()
        .any(|key| claim.proves(key, method, path, &[], None).is_some());
    proven.then(|| peer.name.clone())
}
