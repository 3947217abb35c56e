//! A delivery as it arrives: whose address it comes from, how large it is, what it says it is.

use std::net::IpAddr;

use ::http::HeaderMap;
use axum::body::Body;
use bytes::Bytes;

use super::MAX_BODY;
use super::answer::Fail;
use super::relay_request::is_json_content_type;
use super::verify::Rejection;
use crate::protocols::wire::{self, Unread};

/// Window of a client's unproven failures; an IPv6 client is its /64.
pub(super) fn client_key(ip: IpAddr) -> String {
    format!("uam/client/{}", wire::client_window(ip))
}

/// At most 1 MiB, announced or not.
pub(super) async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Fail> {
    wire::read_body(headers, body, MAX_BODY)
        .await
        .map_err(|unread| match unread {
            Unread::TooLarge => Rejection::too_large().into(),
            Unread::Broken => Fail::bad_request("The request body broke off"),
        })
}

/// `application/json` or `application/…+json`, once.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(::http::header::CONTENT_TYPE).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return false;
    };
    value.to_str().is_ok_and(is_json_content_type)
}

/// Foreign text for a log line: printable and bounded.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_address_or_a_64() {
        let key = |text: &str| client_key(text.parse().unwrap());
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    }
}
