//! What a server answers to `GET /events`.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clock::UnixMs;

/// A page, its events as they stand there.
#[derive(Deserialize)]
pub struct Page<'a> {
    #[serde(borrow)]
    pub events: Vec<&'a RawValue>,
}

impl<'a> Page<'a> {
    /// Reads an answer's body; `None`: it is no page.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

/// Where an event says it stands, whatever else is in it.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Place {
    pub depth: i64,
    pub origin_ts: UnixMs,
}

impl Place {
    /// `None`: it does not say.
    pub fn of(event: &RawValue) -> Option<Self> {
        serde_json::from_str(event.get()).ok()
    }
}

/// The URL of a page.
pub fn url(endpoint: &str, room_id: &str, since: i64, limit: usize) -> String {
    let room = escaped(room_id);
    format!("{endpoint}/events?room_id={room}&since_depth={since}&limit={limit}")
}

/// A value in a query; what a room id is made of stays as it is, for servers that sign it so.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!:$@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_its_events_as_they_are_written() {
        let page =
            Page::read(b"{\"events\":[ {\"depth\":1, \"origin_ts\":2,\"x\":1e5} ,7]}").unwrap();
        assert_eq!(
            page.events[0].get(),
            "{\"depth\":1, \"origin_ts\":2,\"x\":1e5}"
        );
        let place = Place::of(page.events[0]).unwrap();
        assert_eq!((place.depth, place.origin_ts), (1, 2));
        assert!(Place::of(page.events[1]).is_none());
    }

    #[test]
    fn what_is_no_page_is_none() {
        for body in [
            "",
            "{}",
            "[]",
            "null",
            "{\"events\":{}}",
            "{\"events\":[",
            "<html>",
        ] {
            assert!(Page::read(body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn a_room_stands_in_the_query_as_servers_sign_it() {
        assert_eq!(
            url("https://b.example/x", "!-7:b.example:8443", 5, 9),
            "https://b.example/x/events?room_id=!-7:b.example:8443&since_depth=5&limit=9"
        );
        assert!(url("", "!7:a&b é", 0, 1).contains("room_id=!7:a%26b%20%C3%A9&"));
    }
}
