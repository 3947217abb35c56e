//! Texts, numbers and times as a mainline reads them, so that both sides keep the same value.
//!
//! Lengths count UTF-16 units and white space is ECMAScript's ([`crate::identity::units`]).

use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};
use serde_json::{Number, Value};

use crate::clock::UnixMs;
pub use crate::identity::units::{cut, trim, units};

/// A member that must be a text with something in it: trimmed and cut to `limit` units; else None.
pub fn field(value: Option<&Value>, limit: usize) -> Option<String> {
    let text = cut(value?.as_str()?, limit);
    (!text.is_empty()).then_some(text)
}

/// A whole number from `min` to `max`, read as leniently as a mainline does: the value is turned
/// into text and its leading digits count, so `"7 days"` is 7, `1.9` is 1 and `1e21` is 1. None:
/// no leading digits, or out of range.
pub fn integer(value: &Value, min: i64, max: i64) -> Option<i64> {
    let read = match value {
        Value::String(text) => leading_digits(text),
        Value::Number(number) => leading_digits(&decimal(number)?),
        // An array's text is its members' with commas between: nothing behind the first counts.
        Value::Array(members) => return integer(members.first()?, min, max),
        _ => None,
    }?;
    (min..=max).contains(&read).then_some(read)
}

/// The number before the first character that is no digit; what is beyond 64 bits is the greatest.
fn leading_digits(text: &str) -> Option<i64> {
    let text = trim(text);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    let size = digits.bytes().take(end).fold(0i64, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
    });
    Some(if negative { -size } else { size })
}

/// A number as ECMAScript writes it, as far as its leading digits go: with an exponent from 1e21 and
/// below 1e-6.
fn decimal(number: &Number) -> Option<String> {
    let value = number.as_f64()?;
    let size = value.abs();
    Some(if size != 0.0 && !(1e-6..1e21).contains(&size) {
        format!("{value:e}")
    } else {
        value.to_string()
    })
}

/// A time as a mainline writes it: `2026-11-21T02:02:27.484Z`. A time outside of the years 0 to 9999
/// is the nearest one inside.
pub fn iso(ms: UnixMs) -> String {
    const YEAR_0: UnixMs = -62_167_219_200_000;
    const END_OF_9999: UnixMs = 253_402_207_200_999;
    let time = Timestamp::from_millisecond(ms.clamp(YEAR_0, END_OF_9999)).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// Reads a date, or a date and a time of day (UTC unless it says otherwise), in ISO 8601 or as in a
/// mail header. None: it is neither.
pub fn parse_time(text: &str) -> Option<UnixMs> {
    let text = trim(text);
    // Nothing that long is a time; the parsers need not look.
    if text.len() > 64 {
        return None;
    }
    let utc = |time: civil::DateTime| {
        let time = TimeZone::UTC.to_timestamp(time).ok()?;
        Some(time.as_millisecond())
    };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.as_millisecond());
    }
    if let Ok(time) = text.parse::<civil::DateTime>() {
        return utc(time);
    }
    let short = match text.len() {
        4 => Some(format!("{text}-01-01")),
        7 => Some(format!("{text}-01")),
        _ => None,
    };
    if let Some(day) = short.and_then(|day| day.parse::<civil::Date>().ok()) {
        return utc(day.at(0, 0, 0, 0));
    }
    let time = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_a_text_with_something_in_it() {
        let read = |value: Value| field(Some(&value), 4);
        assert_eq!(read(json!("  abcdef ")), Some("abcd".to_owned()));
        for none in [
            json!(" \u{feff}"),
            json!(""),
            json!(7),
            json!(null),
            json!(["a"]),
        ] {
            assert_eq!(read(none.clone()), None, "{none}");
        }
        assert_eq!(field(None, 4), None);
    }

    #[test]
    fn the_leading_digits_of_a_value_s_text_are_its_number() {
        let read = |value: Value| integer(&value, -5, 1_000_000);
        for (value, number) in [
            (json!(5), 5),
            (json!("5"), 5),
            (json!(" 7 days"), 7),
            (json!(1.9), 1),
            (json!(-1.9), -1),
            (json!(-0.5), 0),
            (json!(1e21), 1),
            (json!(5e-7), 5),
            (json!("+3"), 3),
            (json!("0x10"), 0),
            (json!([4, 9]), 4),
            (json!(1_000_000), 1_000_000),
        ] {
            assert_eq!(read(value.clone()), Some(number), "{value}");
        }
        for none in [
            json!(""),
            json!("x"),
            json!("-"),
            json!(null),
            json!(true),
            json!({}),
            json!([]),
            json!([null, 4]),
            json!(1_000_001),
            json!(-6),
            json!("99999999999999999999999"),
            json!(1e20),
        ] {
            assert_eq!(read(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn a_time_is_written_with_milliseconds_in_utc() {
        assert_eq!(iso(1_795_226_547_484), "2026-11-21T02:02:27.484Z");
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(i64::MAX).len(), 24);
        assert_eq!(iso(i64::MIN), "0000-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_time_is_read_in_the_forms_people_write() {
        let noon = Some(1_795_262_400_000);
        for text in [
            "2026-11-21T12:00:00.000Z",
            "2026-11-21T12:00:00Z",
            "2026-11-21T13:00:00+01:00",
            " 2026-11-21T12:00 ",
            "2026-11-21 12:00:00",
            "Sat, 21 Nov 2026 12:00:00 GMT",
        ] {
            assert_eq!(parse_time(text), noon, "{text}");
        }
        assert_eq!(parse_time("2026-11-21"), Some(1_795_219_200_000));
        assert_eq!(parse_time("2026-01"), parse_time("2026"));
        assert_eq!(parse_time("2026"), Some(1_767_225_600_000));
        let long = "2".repeat(65);
        for none in [
            "soon",
            "",
            "2026-02-30",
            "2026-13",
            "12:00",
            "\u{e4}\u{e4}",
            &long,
        ] {
            assert_eq!(parse_time(none), None, "{none}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_read_or_cut_panics(text: String, limit in 0usize..50, number: f64) {
            proptest::prop_assert!(units(&cut(&text, limit)) <= limit);
            let _ = parse_time(&text);
            let _ = integer(&json!(text), i64::MIN, i64::MAX);
            let _ = integer(&json!(number), i64::MIN, i64::MAX);
        }

        #[test]
        fn a_time_reads_back_as_it_was_written(ms in -62_167_219_200_000i64..=253_402_207_200_999) {
            proptest::prop_assert_eq!(parse_time(&iso(ms)), Some(ms));
        }
    }
}
