//! Reading and canonical form of UAM's JSON, tried with arbitrary input.

use std::collections::BTreeMap;

use bytes::Bytes;
use drawbridge::config::WireForms;
use drawbridge::identity::{SigningKey, b64};
use drawbridge::protocols::uam::address::Address;
use drawbridge::protocols::uam::canonical::{canonical, compact};
use drawbridge::protocols::uam::envelope::Envelope;
use drawbridge::protocols::uam::explain::{Context, explain};
use drawbridge::protocols::uam::json::{self, Json};
use drawbridge::protocols::uam::relay_request::{Attempt, RelayRequest, sign_relay_request};
use drawbridge::protocols::uam::{python, time};
use proptest::prelude::*;

fn number() -> impl Strategy<Value = Json> {
    let text = prop_oneof![
        any::<i128>().prop_map(|n| n.to_string()),
        "-?(0|[1-9][0-9]{0,40})",
        "-?(0|[1-9][0-9]{0,20})\\.[0-9]{1,20}",
        "-?(0|[1-9][0-9]{0,5})(\\.[0-9]{1,5})?[eE][+-]?[0-9]{1,2}",
        any::<f64>()
            .prop_filter("finite", |f| f.is_finite())
            .prop_map(|f| format!("{f:e}")),
    ];
    text.prop_map(|text| Json::Number(text.into()))
}

fn tree() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        number(),
        any::<String>().prop_map(Json::String),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::Array),
            prop::collection::btree_map(any::<String>(), inner, 0..6).prop_map(Json::Object),
        ]
    })
}

fn object() -> impl Strategy<Value = BTreeMap<String, Json>> {
    prop::collection::btree_map(any::<String>(), tree(), 0..8)
}

/// Writes a tree as some other sender might: keys in reverse, spaces, every character escaped or
/// none, number text as it is.
fn as_written(value: &Json, escape: bool, out: &mut String) {
    let string = |text: &str, out: &mut String| {
        out.push('"');
        for c in text.chars() {
            if escape || matches!(c, '"' | '\\') || c < ' ' {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            } else {
                out.push(c);
            }
        }
        out.push('"');
    };
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(b) => out.push_str(&b.to_string()),
        Json::Number(text) => out.push_str(text),
        Json::String(text) => string(text, out),
        Json::Array(items) => {
            out.push_str("[ ");
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(" ,\n");
                }
                as_written(item, escape, out);
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push_str("{\t");
            for (i, (key, item)) in members.iter().rev().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                string(key, out);
                out.push_str(" : ");
                as_written(item, escape, out);
            }
            out.push('}');
        }
    }
}

proptest! {
    #[test]
    fn canonical_text_does_not_depend_on_how_the_value_was_written(
        members in object(), escape in any::<bool>(),
    ) {
        let mut text = String::new();
        as_written(&Json::Object(members.clone()), escape, &mut text);
        let read = json::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(read.as_object(), Some(&members));
        prop_assert_eq!(canonical(read.as_object().unwrap()), canonical(&members));
    }

    #[test]
    fn canonical_text_is_a_fixed_point(members in object()) {
        let first = compact(&Json::Object(members));
        prop_assert!(first.bytes().all(|b| (b' '..=b'~').contains(&b)));
        let again = compact(&json::parse(first.as_bytes()).unwrap());
        prop_assert_eq!(first, again);
    }

    #[test]
    fn a_double_reads_back_as_the_same_double(value in any::<f64>()) {
        prop_assume!(value.is_finite());
        let text = compact(&json::parse(format!("{value:e}").as_bytes()).unwrap());
        prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits(), "{}", text);
        let digits = text.bytes().filter(u8::is_ascii_digit).count();
        prop_assert!(text.contains(['.', 'e']) && digits <= 22, "{}", text);
    }

    #[test]
    fn every_reader_survives_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let body = Bytes::from(bytes);
        let _ = json::parse(&body);
        let _ = Envelope::parse(body.clone());
        let _ = RelayRequest::parse(&body, WireForms::Both);
        let _ = explain(&body, &Context::default());
    }

    #[test]
    fn every_reader_survives_arbitrary_text(
        text in "[\\[\\]{}\",:\\\\a-fnrtu0-9.eE+\\- \u{e9}\u{10000}]{0,200}",
    ) {
        let body = Bytes::from(text.clone());
        let _ = json::parse(&body);
        let _ = RelayRequest::parse(&body, WireForms::Nonce);
        let _ = explain(&body, &Context::default());
        let _ = explain(format!("POST /x HTTP/1.1\r\n{text}\r\n\r\n{text}").as_bytes(), &Context::default());
        let _ = Address::parse(&text);
        let _ = time::parse_micros(&text);
        let _ = b64::decode(&text);
        let _ = python::repr(&text);
    }

    #[test]
    fn a_request_that_lost_or_gained_a_byte_never_panics_and_never_proves_another(
        members in object(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let key = SigningKey::from_seed([7; 32]);
        let mut text = String::new();
        as_written(&Json::Object(members), false, &mut text);
        let envelope = Envelope::parse(Bytes::from(text)).unwrap();
        let attempt = Attempt {
            via: &["alpha.test".to_owned()],
            hop_count: 1,
            timestamp: "2026-05-01T12:00:00.000Z",
            from_relay: "alpha.test",
            nonce: None,
        };
        let signed = sign_relay_request(&envelope, &attempt, &key);
        let whole = RelayRequest::parse(&signed.body, WireForms::Legacy).unwrap();
        let signature = b64::decode(&signed.signature).unwrap();
        prop_assert!(key.public().verify(whole.signing_bytes().as_bytes(), &signature).is_ok());

        let mut changed = signed.body.to_vec();
        let at = at.index(changed.len());
        changed[at] = byte;
        if let Ok(other) = RelayRequest::parse(&Bytes::from(changed), WireForms::Legacy)
            && other.signing_bytes() != whole.signing_bytes()
        {
            let bytes = other.signing_bytes();
            prop_assert!(key.public().verify(bytes.as_bytes(), &signature).is_err());
        }
    }

    #[test]
    fn a_time_written_reads_back(ms in -62_135_596_800_000i64..253_402_300_800_000) {
        prop_assert_eq!(time::parse_ms(&time::format_ms(ms)), Ok(ms));
    }
}
