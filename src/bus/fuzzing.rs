//! What the broker hands out, under any bytes ([`crate::fuzzing`]).

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::parse::{Stored, parse};
use super::subject::{MAX_TOKEN, token, untoken};

/// A stored message: its subject in the first line, headers up to an empty line, a body.
pub fn message(data: &[u8]) {
    let split = data.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = data.split_at(split.unwrap_or(data.len()));
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let subject = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let parsed = parse(Stored {
        prefix: "fed",
        stream: "FED_OUT",
        subject,
        headers: Some(&headers),
        payload: Bytes::copy_from_slice(body),
        sequence: 7,
        published_ns: i128::from(body.len() as u64) * 1_000_000_007,
    });
    let (Ok(event) | Err((_, event))) = parsed.event;
    assert!(!event.msg_id.is_empty() && event.msg_id.len() <= 1024);
    for text in [subject, &event.peer, &event.event_type, &parsed.protocol] {
        tokens(text);
    }
}

/// A token never has a character with a meaning in subjects, and reads back as the text it was made of.
fn tokens(text: &str) {
    let made = token(text);
    assert!(!made.is_empty() && made.len() <= MAX_TOKEN);
    assert!(!made.contains(['.', '*', '>', ' ', '\r', '\n']));
    match untoken(&made) {
        Some(back) => assert_eq!(back, text),
        None => assert!(made.contains("=="), "{text:?} is lost in {made:?}"),
    }
    if let Some(read) = untoken(text) {
        assert_eq!(token(&read), text);
    }
}
