//! Why a request or an event is refused: one answer for whoever sent it, the true reason for us.

use serde_json::json;

use super::answer::Fail;
use super::{ID, Paracord};
use crate::ops::metrics;
use crate::protocol::PeerName;

/// Longest text told, bytes.
const MAX_TEXT: usize = 400;

/// A refusal on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is answered.
    pub fail: Fail,
    /// Machine-readable reason, for metrics and operator events.
    pub code: &'static str,
    /// The reason in a sentence, for the log. Of bounded length, whatever names it quotes.
    pub detail: String,
}

impl Refused {
    /// A refusal with this reason.
    pub fn new(fail: Fail, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            fail,
            code,
            detail: cut(detail.into()),
        }
    }

    /// The generic 403.
    pub fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Fail::forbidden(), code, detail)
    }

    /// The generic 401.
    pub fn unauthorized(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Fail::unauthorized(), code, detail)
    }

    /// Counts it, logs it and tells operators. `origin`: the server it is about, as it names itself;
    /// `None`: nobody is named, and only the count and the log have it.
    pub(super) fn tell(&self, p: &Paracord, origin: Option<&str>, event_id: Option<&str>) {
        metrics::inbound(ID, "refused");
        metrics::refusal(ID, self.code);
        let (code, detail, status) = (self.code, &self.detail, self.fail.status.as_u16());
        let event_id = event_id.map(|id| cut(id.to_owned()));
        let Some(peer) = origin.and_then(|name| PeerName::parse(name).ok()) else {
            tracing::debug!(code, detail, status, "a request was refused");
            return;
        };
        tracing::info!(%peer, code, detail, status, event_id, "a request was refused");
        let mut body =
            json!({"peer": peer.as_str(), "code": code, "detail": detail, "status": status});
        if let (Some(id), Some(members)) = (event_id, body.as_object_mut()) {
            members.insert("event_id".to_owned(), id.into());
        }
        p.ops.event("ingest", "rejected", ID, peer.as_str(), body);
    }
}

/// A text that quotes what others wrote, of bounded length.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_refusal_is_short_whatever_it_quotes() {
        let long = "é".repeat(100_000);
        let refused = Refused::forbidden("unknown_key", format!("no key {long:?}"));
        assert!(refused.detail.len() <= MAX_TEXT + '…'.len_utf8());
        assert!(refused.detail.starts_with("no key \"é"));
        assert_eq!(cut("short".to_owned()), "short");
    }
}
