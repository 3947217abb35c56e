//! What every protocol over HTTP needs alike: a request's body within a bound, a client's window, an
//! answer's `Retry-After`, an id to quote.

use std::net::IpAddr;
use std::time::Duration;

use ::http::{HeaderMap, header};
use axum::body::Body;
use bytes::Bytes;
use jiff::fmt::rfc2822;

use crate::clock::UnixMs;
use crate::identity::hex;

/// Why a body is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// Larger than the bound, announced or not.
    TooLarge,
    /// It broke off.
    Broken,
}

/// Reads a body of at most `max` bytes; an announced larger one is not begun.
pub(super) async fn read_body(
    headers: &HeaderMap,
    body: Body,
    max: usize,
) -> Result<Bytes, Unread> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        return Err(Unread::TooLarge);
    }
    axum::body::to_bytes(body, max).await.map_err(|error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            if error.is::<http_body_util::LengthLimitError>() {
                return Unread::TooLarge;
            }
            cause = error.source();
        }
        Unread::Broken
    })
}

/// The window of a client's address: the address, the /64 of an IPv6 one.
pub(super) fn client_window(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

/// `Retry-After`, in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap, now_ms: UnixMs) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let wait = at.as_millisecond().saturating_sub(now_ms).max(0);
    Some(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
}

/// A fresh id for a peer to quote; empty without random numbers.
pub(super) fn request_id() -> String {
    let mut bytes = [0u8; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => hex(&bytes),
        Err(_) => String::new(),
    }
}

/// A part of a path with its `%XX` decoded; `None`: its escapes make no text.
pub(super) fn unescaped(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, more @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = more;
            continue;
        }
        let [high, low, after @ ..] = more else {
            return None;
        };
        let digit = |b: &u8| char::from(*b).to_digit(16);
        bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}
