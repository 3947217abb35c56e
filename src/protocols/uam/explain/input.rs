//! What a saved file is: an HTTP request, a body, or an envelope.

use bytes::Bytes;

use super::super::json;
use crate::protocols::examine::saved::{self, Saved};
pub(super) use crate::protocols::examine::saved::{Head, dechunk};

/// A file, sorted.
pub(super) enum Input {
    Empty,
    /// A request line, but no end of the headers.
    Cut,
    Request {
        head: Head,
        body: Bytes,
    },
    Body(Bytes),
    Envelope(Bytes),
}

/// Sorts a file.
pub(super) fn read(input: &[u8]) -> Input {
    let text = match saved::read(input) {
        Saved::Empty => return Input::Empty,
        Saved::Cut => return Input::Cut,
        Saved::Request { head, body } => return Input::Request { head, body },
        Saved::Other(text) => text,
    };
    let is_envelope = json::parse(&text).is_ok_and(|tree| {
        tree.as_object()
            .is_some_and(|o| !o.contains_key("envelope") && o.contains_key("message_id"))
    });
    if is_envelope {
        Input::Envelope(text)
    } else {
        Input::Body(text)
    }
}
