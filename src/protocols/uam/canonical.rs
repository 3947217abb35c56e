//! The bytes that are signed: compact, sorted, ASCII-only JSON by the output rules of Python's
//! `json`, made anew from the parsed tree.

use super::json::{Json, Object};
use super::number;

/// The canonical text of a signed object: the top-level key `signature` and every top-level null
/// are left out; nested ones stay.
pub fn canonical(object: &Object) -> String {
    let members = object
        .iter()
        .filter(|(key, value)| key.as_str() != "signature" && !value.is_null());
    let mut out = String::with_capacity(1024);
    write_members(members.map(|(k, v)| (k.as_str(), v)), &mut out);
    out
}

/// The canonical text of chosen members; nothing is left out. They must come sorted by key.
pub(super) fn canonical_members<'a>(members: impl Iterator<Item = (&'a str, &'a Json)>) -> String {
    let mut out = String::with_capacity(1024);
    write_members(members, &mut out);
    out
}

/// A value as compact ASCII JSON, nothing left out.
pub fn compact(value: &Json) -> String {
    let mut out = String::with_capacity(256);
    write(value, &mut out);
    out
}

/// How long the compact ASCII text of an object is, bytes: the size that relays limit.
pub fn compact_len(object: &Object) -> usize {
    let mut out = String::with_capacity(1024);
    write_object(object, &mut out);
    out.len()
}

pub(super) fn write_object(object: &Object, out: &mut String) {
    write_members(object.iter().map(|(k, v)| (k.as_str(), v)), out);
}

fn write_members<'a>(members: impl Iterator<Item = (&'a str, &'a Json)>, out: &mut String) {
    out.push('{');
    for (i, (key, value)) in members.enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_string(key, out);
        out.push(':');
        write(value, out);
    }
    out.push('}');
}

fn write(value: &Json, out: &mut String) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        Json::Number(text) => number::write(text, out),
        Json::String(text) => write_string(text, out),
        Json::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Json::Object(object) => write_object(object, out),
    }
}

/// Appends a quoted string: printable ASCII literal, short escapes, everything else (U+007F too) as
/// `\u` with four lower-case hex digits, above U+FFFF as a surrogate pair.
pub(super) fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        if matches!(c, ' '..='~') && c != '"' && c != '\\' {
            continue;
        }
        out.push_str(text.get(plain..at).unwrap_or_default());
        plain = at.saturating_add(c.len_utf8());
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write_unit(*unit, out);
                }
            }
        }
    }
    out.push_str(text.get(plain..).unwrap_or_default());
    out.push('"');
}

fn write_unit(unit: u16, out: &mut String) {
    out.push_str("\\u");
    for shift in [12, 8, 4, 0] {
        let digit = u32::from(unit >> shift) & 15;
        out.push(char::from_digit(digit, 16).unwrap_or('0'));
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn of(text: &str) -> String {
        canonical(parse(text.as_bytes()).unwrap().as_object().unwrap())
    }

    #[test]
    fn only_top_level_nulls_and_signature_are_left_out() {
        assert_eq!(
            of(r#"{"signature":1,"n":null,"o":{"signature":2,"n":null}}"#),
            r#"{"o":{"n":null,"signature":2}}"#
        );
    }

    #[test]
    fn keys_are_sorted_by_code_point_not_by_utf16_unit() {
        assert_eq!(
            of("{\"😀\":1,\"～\":2}"),
            r#"{"\uff5e":2,"\ud83d\ude00":1}"#
        );
    }

    #[test]
    fn the_length_is_that_of_the_compact_ascii_text() {
        let tree = parse("{\"a\" : \"é\", \"n\": null}".as_bytes()).unwrap();
        let text = compact(&tree);
        assert_eq!(text, r#"{"a":"\u00e9","n":null}"#);
        assert_eq!(compact_len(tree.as_object().unwrap()), text.len());
    }
}
