//! Finding a server by its name, and its keys.

use super::{Paracord, transport};
use crate::protocol::Request;
use crate::protocol::{PeerName, PeerRecord, TransportError, TransportKind};
use ::http::Method;
use bytes::Bytes;

/// A server as the lanes send to it.
pub async fn record(_p: &Paracord, name: &PeerName) -> Result<PeerRecord, TransportError> {
    Err(TransportError {
        kind: TransportKind::Discovery,
        detail: format!("{name} is not known"),
    })
}

/// Fetches a server's keys anew: single flight, at most once per 60 s and server. True: there is
/// something new, so that a check that failed is worth doing again.
pub async fn refetch_keys(_p: &Paracord, _peer: &PeerName) -> bool {
    false
}

/// The servers whose keys are to be fetched again by now.
pub fn due_for_keys(_p: &Paracord) -> Vec<PeerName> {
    Vec::new()
}

/// Fetches a server's keys if that is due.
pub async fn refresh_if_due(_p: &Paracord, _peer: &PeerName) {}

impl Paracord {
    pub(super) fn signed(&self, method: Method, url: &str, body: Bytes) -> Request {
        let active = self.keys.active();
        let path = transport::live_path(url).unwrap_or_default();
        let now = self.clock.now_ms();
        let own = self.own.name.as_str();
        let mut headers = transport::headers(
            own,
            &active.key_id,
            &active.key,
            method.as_str(),
            &path,
            now,
            &body,
        );
        if !body.is_empty() {
            headers.insert(
                ::http::header::CONTENT_TYPE,
                ::http::HeaderValue::from_static("application/json"),
            );
        }
        Request {
            method,
            url: url.to_owned(),
            headers,
            body,
        }
    }
}
