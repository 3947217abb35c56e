//! What a bridge answered, against what was expected.

use serde_json::Value;

use super::case::Expected;
use super::making::Ask;
use crate::check::{same, status_fits};

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub text: String,
}

/// Members of each kind of success, as the reference's caller reads them.
const INVITED: &[&str] = &[
    "accepted",
    "default_channel_id",
    "expires_in_seconds",
    "guild_id",
    "guild_name",
    "join_endpoint",
    "room_id",
];
const JOINED: &[&str] = &["guild_id", "joined", "local_user_id", "room_id"];
const LEFT: &[&str] = &["guild_id", "left", "room_id"];

pub fn check(ask: &Ask, answer: &Answer, expected: &Expected) -> Result<(), String> {
    compare(ask, answer, expected).map_err(|why| format!("{why}; the answer was {answer:?}"))
}

fn compare(ask: &Ask, answer: &Answer, expected: &Expected) -> Result<(), String> {
    if !status_fits(answer.status, &expected.status)? {
        return Err(format!(
            "status: ours {}, expected {}",
            answer.status, expected.status
        ));
    }
    let json: Option<Value> = serde_json::from_str(&answer.text).ok();
    if expected.plain_text.is_some() {
        same("JSON", answer.content_type.contains("json"), false)?;
        same("a text", answer.text.trim().is_empty(), false)?;
    }
    if expected.code.is_some() || expected.message.is_some() {
        refused(answer, json.as_ref(), expected)?;
    }
    if let Some(inserted) = expected.inserted {
        let ours = member(json.as_ref(), "inserted")?;
        same("inserted", ours, &Value::Bool(inserted))?;
        let event_id = ask.event_id.clone().map(Value::from);
        same(
            "event_id",
            Some(member(json.as_ref(), "event_id")?),
            event_id.as_ref(),
        )?;
    }
    for (name, wanted, members) in [
        ("accepted", expected.accepted.map(Value::from), INVITED),
        ("joined", expected.joined.map(Value::from), JOINED),
        ("left", expected.left.map(Value::from), LEFT),
        (
            "expires_in_seconds",
            expected.expires_in_seconds.map(Value::from),
            INVITED,
        ),
    ] {
        if let Some(wanted) = wanted {
            same(name, member(json.as_ref(), name)?, &wanted)?;
            for name in members {
                member(json.as_ref(), name)?;
            }
        }
    }
    if answer.status == 200 && ask.path.contains("/events") {
        let events = member(json.as_ref(), "events")?;
        same("a list of events", events.is_array(), true)?;
    }
    Ok(())
}

fn member<'a>(json: Option<&'a Value>, name: &str) -> Result<&'a Value, String> {
    json.and_then(|json| json.get(name))
        .ok_or_else(|| format!("no member {name}"))
}

/// `{"code","details":null,"error":m,"message":m}` with the words of the code.
fn refused(answer: &Answer, json: Option<&Value>, expected: &Expected) -> Result<(), String> {
    same("JSON", answer.content_type.contains("json"), true)?;
    let code = member(json, "code")?;
    if let Some(expected) = &expected.code {
        same("code", code, &Value::from(expected.as_str()))?;
    }
    same("details", member(json, "details")?, &Value::Null)?;
    let message = member(json, "message")?;
    same("error", member(json, "error")?, message)?;
    let fixed = match code.as_str() {
        Some("UNAUTHORIZED") => Some("unauthorized"),
        Some("FORBIDDEN") => Some("forbidden"),
        Some("NOT_FOUND") => Some("not found"),
        Some("CONFLICT") => Some("conflict: replayed federation transport signature"),
        Some("RATE_LIMITED") => Some("rate limited"),
        _ => None,
    };
    match expected.message.as_deref().or(fixed) {
        Some(wanted) => same("message", message, &Value::from(wanted)),
        None => Ok(()),
    }
}
