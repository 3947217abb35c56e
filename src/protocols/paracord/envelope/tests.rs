use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::protocols::paracord::hexes;

fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

fn envelope(content: Value) -> Envelope {
    Envelope {
        event_id: "$1:chat.example".into(),
        room_id: "!7:chat.example".into(),
        event_type: "m.message".into(),
        sender: "@alice:chat.example".into(),
        origin_server: "a.example".into(),
        origin_ts: 5,
        content,
        depth: 6,
        state_key: None,
        signatures: json!({}),
    }
}

fn signed(content: Value) -> Envelope {
    let mut envelope = envelope(content);
    envelope.sign(&key(), "ed25519:k");
    envelope
}

/// Whether its own signature holds, and covers attachments.
fn checked(envelope: &Envelope) -> Option<bool> {
    let signature = envelope.signature()?.bytes?;
    let proven = envelope.check(&key().public(), &signature).ok()?;
    Some(proven.attachments_covered)
}

#[test]
fn the_wire_has_its_own_order_and_what_is_signed_is_sorted() {
    let envelope = envelope(json!({"b": 1, "a": {"～": 0, "z": 1}}));
    assert_eq!(
        String::from_utf8(envelope.wire()).expect("text"),
        r#"{"event_id":"$1:chat.example","room_id":"!7:chat.example","event_type":"m.message","#
            .to_owned()
            + r#""sender":"@alice:chat.example","origin_server":"a.example","origin_ts":5,"#
            + r#""content":{"a":{"z":1,"～":0},"b":1},"depth":6,"state_key":null,"signatures":{}}"#
    );
    assert_eq!(
        String::from_utf8(envelope.canonical()).expect("text"),
        r#"{"content":{"a":{"z":1,"～":0},"b":1},"depth":6,"event_id":"$1:chat.example","#
            .to_owned()
            + r#""event_type":"m.message","origin_server":"a.example","origin_ts":5,"#
            + r#""room_id":"!7:chat.example","sender":"@alice:chat.example","state_key":null}"#
    );
}

#[test]
fn a_list_of_the_ten_values_is_an_envelope_too() {
    let list = json!(["$1:x", "!1:x", "t", "@a:x", "x", 5, {"b": 1}, 6, null, {}]);
    let read = Envelope::decode(list.to_string().as_bytes()).expect("an envelope");
    assert_eq!((read.origin_ts, read.depth), (5, 6));
    let nine = json!(["$1:x", "!1:x", "t", "@a:x", "x", 5, {}, 6, null]);
    let short = Envelope::decode(nine.to_string().as_bytes());
    assert!(matches!(short, Err(Undecoded::Shape(_))), "{short:?}");
}

#[test]
fn no_json_is_told_from_another_shape() {
    let good = String::from_utf8(envelope(json!({})).wire()).expect("text");
    let with = |from: &str, to: &str| {
        let changed = good.replace(from, to);
        assert_ne!(changed, good);
        Envelope::decode(changed.as_bytes())
    };
    for (from, to) in [
        ("\"depth\":6,", ""),
        ("\"depth\":6", "\"depth\":6.0"),
        ("\"depth\":6", "\"depth\":\"6\""),
        ("\"depth\":6", "\"depth\":9223372036854775808"),
        ("\"depth\":6", "\"depth\":6,\"depth\":6"),
        ("\"state_key\":null", "\"state_key\":1"),
        ("\"signatures\":{}", "\"signatures\":{},\"signatures\":{}"),
        (",\"signatures\":{}", ""),
    ] {
        let read = with(from, to);
        assert!(matches!(read, Err(Undecoded::Shape(_))), "{to}: {read:?}");
    }
    let deep = "[".repeat(128) + &"]".repeat(128);
    for (from, to) in [
        ("\"depth\":6", "\"depth\":"),
        ("\"content\":{}", "\"content\":{\"a\":\"\\ud800\"}"),
        ("\"content\":{}", "\"content\":1e400"),
        ("\"content\":{}", &format!("\"content\":{deep}")),
        ("\"signatures\":{}}", "\"signatures\":{}} x"),
        ("{\"event_id\"", "\u{feff}{\"event_id\""),
    ] {
        let read = with(from, to);
        assert!(matches!(read, Err(Undecoded::Syntax(_))), "{to}: {read:?}");
    }
    assert!(with("\"state_key\":null,", "").is_ok());
    assert!(with("\"depth\":6", "\"depth\":6,\"x\":{}").is_ok());
}

#[test]
fn no_member_name_makes_a_text_be_read_as_json() {
    let content = json!({"$serde_json::private::RawValue": "[1]", "a": 1});
    let sent = envelope(content.clone()).wire();
    assert_eq!(
        Envelope::decode(&sent).expect("an envelope").content,
        content
    );
    let number = json!({"$serde_json::private::Number": "1"});
    let sent = envelope(number.clone()).wire();
    assert_eq!(
        Envelope::decode(&sent).expect("an envelope").content,
        number
    );
}

#[test]
fn only_the_first_text_under_the_origin_is_offered() {
    let good = hex(&[3; 64]);
    let offered = |signatures: Value| {
        let mut envelope = envelope(json!({}));
        envelope.signatures = signatures;
        envelope.signature()
    };
    let some = |key_id: &str, bytes: Option<[u8; 64]>| {
        let key_id = key_id.to_owned();
        Some(Offered { key_id, bytes })
    };
    let bytes = hexes::decode(&good);
    for (signatures, expected) in [
        (json!({"a.example": {"k": good}}), some("k", bytes)),
        (
            json!({"a.example": {"k": good.to_uppercase()}}),
            some("k", bytes),
        ),
        (json!({"a.example": {"a": 1, "k": good}}), some("k", bytes)),
        (json!({"a.example": {"a": "", "k": good}}), some("a", None)),
        (json!({"k": good}), some("k", bytes)),
        (json!({"a.example": {}, "k": good}), some("k", bytes)),
        (json!({"a.example": {"n": 1}, "k": good}), some("k", bytes)),
        (json!({"A.example": {"k": good}}), None),
        (json!({"b.example": {"k": good}}), None),
        (json!({"a.example": {"k": [good]}}), None),
        (json!({}), None),
        (json!(null), None),
        (json!([good]), None),
    ] {
        assert_eq!(offered(signatures.clone()), expected, "{signatures}");
    }
}

#[test]
fn attachments_added_after_signing_are_told_from_those_covered() {
    let file = json!([{"id": "1"}]);
    let with = json!({"body": "a", "attachments": file});
    assert_eq!(checked(&signed(with)), Some(true));
    let mut added = signed(json!({"body": "a"}));
    added.content["attachments"] = file.clone();
    assert_eq!(checked(&added), Some(false));
    let mut changed = added.clone();
    changed.content["body"] = "b".into();
    assert_eq!(checked(&changed), None);
    let mut edit = envelope(json!({"body": "a"}));
    edit.event_type = "m.message.edit".into();
    edit.sign(&key(), "ed25519:k");
    edit.content["attachments"] = file;
    assert_eq!(checked(&edit), None, "of messages alone");
}

#[test]
fn backends_get_the_same_bytes_however_an_event_came() {
    let sent = signed(json!({"body": "a"}));
    let signature = sent
        .signature()
        .and_then(|offered| offered.bytes)
        .expect("signed");
    let mut flat = sent.clone();
    flat.signatures = json!({"ed25519:k": hex(&signature).to_uppercase(), "z": "other"});
    let (a, b) = (
        sent.normal("ed25519:k", &signature, true),
        flat.normal("ed25519:k", &signature, true),
    );
    assert_eq!(a, b);
    assert_eq!(a, sent.wire());
    let marked = sent.normal("ed25519:k", &signature, false);
    let end = br#","unauthenticated":["content.attachments"]}"#;
    assert!(marked.starts_with(&a[..a.len() - 1]) && marked.ends_with(end));
    assert!(Envelope::decode(&marked).is_ok());
}

/// Any JSON that may travel.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((".*", inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_envelope() -> impl Strategy<Value = Envelope> {
    (
        proptest::array::uniform5(".*"),
        any::<(i64, i64)>(),
        any_json(),
        proptest::option::of(".*"),
    )
        .prop_map(|(texts, (origin_ts, depth), content, state_key)| {
            let [event_id, room_id, event_type, sender, origin_server] = texts;
            let mut envelope = Envelope {
                event_id,
                room_id,
                event_type,
                sender,
                origin_server,
                origin_ts,
                content,
                depth,
                state_key,
                signatures: Value::Null,
            };
            envelope.sign(&key(), "ed25519:k");
            envelope
        })
}

/// Every text of the JSON written in ASCII, every object's members the other way round, indented.
fn disguised(value: &Value, out: &mut String) {
    let text = |text: &str, out: &mut String| {
        out.push('"');
        for unit in text.encode_utf16() {
            out.push_str(&format!("\\u{unit:04X}"));
        }
        out.push('"');
    };
    match value {
        Value::String(s) => text(s, out),
        Value::Array(list) => {
            out.push_str("[ ");
            for (n, one) in list.iter().enumerate() {
                out.push_str(if n > 0 { " ,\n" } else { "" });
                disguised(one, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push_str("{\t");
            for (n, (name, one)) in members.iter().rev().enumerate() {
                out.push_str(if n > 0 { " ,\r\n" } else { "" });
                text(name, out);
                out.push_str(" : ");
                disguised(one, out);
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_the_same_and_is_written_the_same_again(envelope in any_envelope()) {
        let wire = envelope.wire();
        let read = Envelope::decode(&wire).expect("an envelope");
        prop_assert_eq!(&read, &envelope);
        prop_assert_eq!(read.wire(), wire);
        prop_assert_eq!(checked(&read), Some(true));
    }

    #[test]
    fn however_it_is_written_it_has_one_normal_form(envelope in any_envelope()) {
        let wire = envelope.wire();
        let value: Value = serde_json::from_slice(&wire).expect("JSON");
        let mut text = String::new();
        disguised(&value, &mut text);
        let read = Envelope::decode(text.as_bytes()).expect("an envelope");
        prop_assert_eq!(read.wire(), wire);
        prop_assert_eq!(read.canonical(), envelope.canonical());
    }

    #[test]
    fn what_is_signed_is_sorted_at_every_level(envelope in any_envelope()) {
        let canonical = envelope.canonical();
        let value: Value = serde_json::from_slice(&canonical).expect("JSON");
        // A tree of sorted maps is written in sorted order.
        prop_assert_eq!(serde_json::to_vec(&value).expect("JSON"), canonical);
        prop_assert_eq!(value.as_object().map(serde_json::Map::len), Some(9));
    }
}
