//! A request of ours with the protocol's four headers.

use ::http::{HeaderValue, Method, header};
use bytes::Bytes;

use super::own_keys::ActiveKey;
use super::{Own, Paracord, USER_AGENT, transport};
use crate::clock::UnixMs;
use crate::protocol::Request;

impl Paracord {
    /// A request of ours to a server, signed at this moment.
    pub(super) fn signed(&self, method: Method, url: &str, body: Bytes) -> Request {
        let now = self.clock.now_ms();
        signed(&self.own, &self.keys.active(), method, url, body, now)
    }
}

/// The request, signed as at this time.
pub(super) fn signed(
    own: &Own,
    active: &ActiveKey,
    method: Method,
    url: &str,
    body: Bytes,
    now: UnixMs,
) -> Request {
    // What is no URL is refused by the client.
    let path = transport::live_path(url).unwrap_or_default();
    let mut headers = transport::headers(
        own.name.as_str(),
        &active.key_id,
        &active.key,
        method.as_str(),
        &path,
        now,
        &body,
    );
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::ACCEPT, json.clone());
    if !body.is_empty() {
        headers.insert(header::CONTENT_TYPE, json);
    }
    Request {
        method,
        url: url.to_owned(),
        headers,
        body,
    }
}
