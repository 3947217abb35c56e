//! What an answer should be like: JSON in which words stand for values of a form.

use drawbridge::protocols::voltchat::{ids, text};
use serde_json::Value;

/// Whether the value is as expected; the error names the place.
pub fn matches(ours: &Value, expected: &Value) -> Result<(), String> {
    compare("", ours, expected, true)
}

/// The same for some members only: what is not expected is not looked at.
pub fn has(ours: &Value, expected: &Value) -> Result<(), String> {
    compare("", ours, expected, false)
}

fn compare(place: &str, ours: &Value, expected: &Value, whole: bool) -> Result<(), String> {
    let wrong = || Err(format!("{place}: ours {ours}, expected {expected}"));
    match (ours, expected) {
        (_, Value::String(word)) => match form(ours, word) {
            Some(true) => Ok(()),
            Some(false) => wrong(),
            None if ours == expected => Ok(()),
            None => wrong(),
        },
        (Value::Object(our_members), Value::Object(members)) => {
            for (key, wanted) in members {
                match our_members.get(key) {
                    Some(value) => compare(&format!("{place}.{key}"), value, wanted, true)?,
                    None => return Err(format!("{place}.{key}: missing, expected {wanted}")),
                }
            }
            match our_members.keys().find(|key| !members.contains_key(*key)) {
                Some(extra) if whole => Err(format!("{place}.{extra}: not expected")),
                _ => Ok(()),
            }
        }
        (Value::Array(our_list), Value::Array(list)) => {
            if our_list.len() != list.len() {
                return wrong();
            }
            for (n, (value, wanted)) in our_list.iter().zip(list).enumerate() {
                compare(&format!("{place}[{n}]"), value, wanted, true)?;
            }
            Ok(())
        }
        (Value::Number(number), Value::Number(wanted)) if number.as_f64() == wanted.as_f64() => {
            Ok(())
        }
        _ if ours == expected => Ok(()),
        _ => wrong(),
    }
}

/// Whether a value has the form that a word stands for. None: it is no such word.
fn form(value: &Value, word: &str) -> Option<bool> {
    let string = value.as_str();
    Some(match word {
        "<any>" => true,
        "<text>" => string.is_some_and(|text| !text.is_empty()),
        "<object>" | "<config features object>" => value.is_object(),
        "<iso-time>" | "<timestamp>" => string
            .is_some_and(|time| text::parse_time(time).is_some_and(|ms| text::iso(ms) == time)),
        "<requestId>" => string.is_some_and(|id| !id.is_empty()),
        "<peer-id>" => string.is_some_and(|id| made(id, "peer")),
        "<invite-id>" => string.is_some_and(|id| made(id, "sinv")),
        "<relay-id>" => string.is_some_and(|id| made(id, "relay")),
        "<owner-id>" => string.is_some_and(|id| ids::id(id).is_some()),
        _ => {
            let count: usize = word.strip_suffix(" characters")?.parse().ok()?;
            string.is_some_and(|text| text::units(text) == count)
        }
    })
}

/// `peer_1700000000000_0a1b2c3d`.
fn made(id: &str, prefix: &str) -> bool {
    let rest = id
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'));
    let parts = rest.and_then(|rest| rest.split_once('_'));
    parts.is_some_and(|(time, tag)| {
        time.len() == 13
            && time.bytes().all(|b| b.is_ascii_digit())
            && tag.len() == 8
            && tag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[test]
fn a_word_stands_for_a_form_and_everything_else_for_itself() {
    use serde_json::json;
    let fits = |ours: Value, expected: Value| matches(&ours, &expected).is_ok();
    assert!(fits(json!(null), json!("<any>")));
    assert!(fits(json!({"b": 1, "a": []}), json!({"a": [], "b": 1.0})));
    assert!(fits(
        json!("peer_1700000000000_0a1b2c3d"),
        json!("<peer-id>")
    ));
    assert!(fits(json!("n".repeat(140)), json!("140 characters")));
    assert!(fits(json!("2026-11-21T02:02:27.484Z"), json!("<iso-time>")));
    for (ours, expected) in [
        (json!({"a": 1, "b": 2}), json!({"a": 1})),
        (json!({"a": 1}), json!({"a": 1, "b": "<any>"})),
        (json!([1]), json!([])),
        (json!("sinv_1700000000000_0a1b2c3d"), json!("<peer-id>")),
        (json!("peer_170000000000_0a1b2c3d"), json!("<peer-id>")),
        (json!("2026-11-21"), json!("<iso-time>")),
        (json!(null), json!("<text>")),
        (json!([]), json!("<object>")),
        (json!("n".repeat(141)), json!("140 characters")),
        (json!("x"), json!("y")),
    ] {
        assert!(!fits(ours.clone(), expected), "{ours}");
    }
    assert!(has(&json!({"a": 1, "b": 2}), &json!({"a": 1})).is_ok());
    assert!(has(&json!({"a": {"c": 1}}), &json!({"a": {}})).is_err());
}
