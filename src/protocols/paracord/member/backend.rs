//! What a local backend says of an invite, a join or a leave (`fed.ask.paracord.<method>`).
//!
//! It answers a JSON object. A member `error`, or `false` under `ok` or under the method's own word
//! (`accepted`, `joined`), refuses; other members replace the bridge's own. No answer in time, or none
//! that is an object, leaves the decision to the bridge.

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::super::answer::Fail;
use super::super::{ID, Paracord};
use crate::protocols::plain;

/// Questions to backends at once at most.
const PLACES: usize = 64;
/// Longest text a backend may put into an answer, bytes.
const MAX_TEXT: usize = 1_024;

/// Where questions wait for a backend.
pub struct Desk {
    places: Semaphore,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            places: Semaphore::new(PLACES),
        }
    }
}

/// What was answered.
#[derive(Debug, PartialEq)]
pub(super) enum Word {
    /// Nobody did, or nothing that can be used: the bridge decides.
    None,
    Refused(String),
    Object(Map<String, Value>),
}

impl Word {
    /// A text to replace one of ours.
    pub fn text(&self, member: &str) -> Option<String> {
        let said = self.member(member)?.as_str()?;
        (said.len() <= MAX_TEXT).then(|| said.to_owned())
    }

    /// The same of an id: a number is its decimal text.
    pub fn id(&self, member: &str) -> Option<String> {
        let said = self.member(member)?;
        let number = || said.as_i64().map(|number| number.to_string());
        self.text(member).or_else(number)
    }

    /// The same where none is an answer, too.
    pub fn id_or_none(&self, member: &str) -> Option<Option<String>> {
        match self.member(member)? {
            Value::Null => Some(None),
            _ => self.id(member).map(Some),
        }
    }

    /// A whole number.
    pub fn number(&self, member: &str) -> Option<i64> {
        self.member(member)?.as_i64()
    }

    /// Yes or no.
    pub fn flag(&self, member: &str) -> Option<bool> {
        self.member(member)?.as_bool()
    }

    fn member(&self, member: &str) -> Option<&Value> {
        match self {
            Self::Object(said) => said.get(member),
            _ => None,
        }
    }
}

/// Asks a backend. 429: more is being asked already than backends answer.
pub(super) async fn ask(
    p: &Paracord,
    method: &'static str,
    yes: Option<&str>,
    question: &Value,
) -> Result<Word, Fail> {
    let Some(bus) = &p.bus else {
        return Ok(Word::None);
    };
    let until = Instant::now() + p.config.backend_timeout;
    let place = match timeout_at(until, p.desk.places.acquire()).await {
        Ok(Ok(place)) => place,
        // To decide without the backend because others ask much would let them decide.
        _ => return Err(Fail::rate_limited()),
    };
    let body = Bytes::from(question.to_string());
    let left = until.saturating_duration_since(Instant::now());
    let answer = bus.ask(ID, method, body, left).await;
    drop(place);
    Ok(match answer {
        Ok(answer) => word(&answer, yes),
        Err(error) => {
            tracing::debug!(%error, method, "no backend answers; the bridge decides");
            Word::None
        }
    })
}

/// Reads an answer; `yes`: the member that is false in a refusal.
fn word(answer: &[u8], yes: Option<&str>) -> Word {
    let said = match plain::json(answer) {
        Ok(Value::Object(said)) => said,
        _ => {
            tracing::warn!("a backend's answer is no JSON object; the bridge decides");
            return Word::None;
        }
    };
    let reason = match said.get("error") {
        None | Some(Value::Null) => None,
        Some(Value::String(reason)) => Some(reason.clone()),
        Some(other) => Some(other.to_string()),
    };
    let no = |member: &str| said.get(member) == Some(&Value::Bool(false));
    if reason.is_none() && !no("ok") && !yes.is_some_and(no) {
        return Word::Object(said);
    }
    let mut reason = reason.unwrap_or_else(|| "the backend gives no reason".into());
    let end = reason.floor_char_boundary(MAX_TEXT);
    reason.truncate(end);
    Word::Refused(reason)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_backend_refuses_by_an_error_or_a_false() {
        for body in [
            json!({"error": "full"}),
            json!({"error": {"code": "full"}}),
            json!({"ok": false}),
            json!({"joined": false, "local_user_id": "1"}),
        ] {
            let word = word(body.to_string().as_bytes(), Some("joined"));
            assert!(matches!(word, Word::Refused(_)), "{body}");
        }
        let said = word(b"{\"accepted\":false,\"error\":null}", Some("joined"));
        assert!(matches!(said, Word::Object(_)), "another method's word");
    }

    #[test]
    fn an_answer_that_is_no_object_leaves_it_to_the_bridge() {
        for body in ["", "null", "[]", "true", "{", "\"no\""] {
            assert_eq!(word(body.as_bytes(), Some("joined")), Word::None, "{body}");
        }
    }

    #[test]
    fn what_is_not_of_its_type_or_too_long_replaces_nothing() {
        let long = "x".repeat(MAX_TEXT + 1);
        let said = json!({"a": 1.5, "b": long, "c": null, "d": 7, "e": "8"});
        let said = word(said.to_string().as_bytes(), None);
        assert_eq!(
            (said.id("a"), said.text("b"), said.id("c")),
            (None, None, None)
        );
        assert_eq!(said.id_or_none("c"), Some(None));
        assert_eq!(said.id_or_none("missing"), None);
        assert_eq!(
            (said.id("d"), said.id("e")),
            (Some("7".into()), Some("8".into()))
        );
        assert_eq!((said.number("a"), said.number("d")), (None, Some(7)));
    }
}
