use serde_json::{Value, json};

use super::*;

fn nested(levels: usize) -> Value {
    (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }))
}

fn message() -> Value {
    json!({"body": "hi", "msgtype": "m.text", "guild_id": "7010", "channel_id": "7020",
        "message_id": "-5"})
}

fn with(mut content: Value, name: &str, value: Value) -> Value {
    content[name] = value;
    content
}

fn without(mut content: Value, name: &str) -> Value {
    content.as_object_mut().expect("an object").remove(name);
    content
}

#[test]
fn a_content_may_be_1048576_bytes_and_not_one_more() {
    let of = |size: usize| Value::String("x".repeat(size - 2));
    assert_eq!(within_limits(&of(1_048_576)), Ok(()));
    assert_eq!(
        within_limits(&of(1_048_577)).unwrap_err(),
        "federation event content exceeds maximum size of 1048576 bytes"
    );
}

#[test]
fn a_collection_may_hold_10000_and_not_one_more_however_deep_it_is() {
    let list = |count: usize| json!({"a": [vec![0; count]]});
    let object = |count: usize| -> Value {
        let members = (0..count).map(|n| (n.to_string(), Value::Null));
        json!([Value::Object(members.collect())])
    };
    assert_eq!(within_limits(&list(10_000)), Ok(()));
    assert_eq!(within_limits(&object(10_000)), Ok(()));
    let list = within_limits(&list(10_001)).unwrap_err();
    assert!(list.contains("maximum element count"), "{list}");
    let object = within_limits(&object(10_001)).unwrap_err();
    assert!(object.contains("maximum key count"), "{object}");
}

#[test]
fn thirty_two_levels_pass_and_content_itself_is_the_first() {
    assert_eq!(within_limits(&nested(32)), Ok(()));
    let mut leaf = nested(31);
    let mut inner = &mut leaf;
    while !inner["a"].is_null() {
        inner = &mut inner["a"];
    }
    inner["a"] = json!([1, "text"]);
    assert_eq!(within_limits(&leaf), Ok(()), "a number opens no level");
    assert_eq!(
        within_limits(&nested(33)).unwrap_err(),
        "federation event content exceeds maximum nesting depth of 32"
    );
}

#[test]
fn a_number_another_reader_could_change_is_refused_with_its_path() {
    let wrong = |text: &str| {
        let content: Value = serde_json::from_str(text).expect("JSON");
        outgoing("x.any", &content).unwrap_err()
    };
    for (content, path) in [
        (r#"{"a":{"b":[1,2,3,0.5]}}"#, "content.a.b[3] is 0.5:"),
        (
            r#"{"a":18446744073709551616}"#,
            "content.a is 1.8446744073709552e+19:",
        ),
        (r#"{"a":-9223372036854775809}"#, "content.a is -9.2"),
        (r#"{"a b":{"":1e3}}"#, r#"content["a b"][""] is 1000.0:"#),
        (r#"[[-0]]"#, "content[0][0] is -0.0:"),
        ("6.0", "content is 6.0:"),
    ] {
        let why = wrong(content);
        assert!(why.starts_with(path), "{why}");
    }
    let all = json!({"a": [u64::MAX, i64::MIN, "0.5", null, true], "b": {}});
    assert_eq!(outgoing("x.any", &all), Ok(()));
}

#[test]
fn what_servers_act_on_is_named_when_it_is_missing_or_of_another_type() {
    let m = message();
    let edit = without(m.clone(), "msgtype");
    let delete = without(edit.clone(), "body");
    let reaction = with(delete.clone(), "emoji", json!("👍"));
    let member = json!({"guild_id": "1", "user_id": "2"});
    for (kind, good) in [
        ("m.message", &m),
        ("m.message.edit", &edit),
        ("m.message.delete", &delete),
        ("m.reaction.add", &reaction),
        ("m.reaction.remove", &reaction),
        ("m.member.join", &member),
        ("m.member.leave", &member),
    ] {
        assert_eq!(outgoing(kind, good), Ok(()), "{kind}");
        for name in good.as_object().expect("an object").keys() {
            let path = format!("content.{name} ");
            let missing = outgoing(kind, &without(good.clone(), name)).unwrap_err();
            let number = outgoing(kind, &with(good.clone(), name, json!(7))).unwrap_err();
            let null = outgoing(kind, &with(good.clone(), name, Value::Null)).unwrap_err();
            for why in [missing, number, null] {
                assert!(why.starts_with(&path), "{kind}: {why}");
            }
        }
        assert!(outgoing(kind, &json!([])).is_err(), "{kind}");
    }
    for any in [json!(null), json!("text"), json!({"guild_id": 1})] {
        assert_eq!(outgoing("m.typing", &any), Ok(()));
    }
}

#[test]
fn an_id_is_the_one_decimal_text_of_a_signed_64_bit_number() {
    let id = |text: &str| outgoing("m.message", &with(message(), "message_id", json!(text)));
    for good in [
        "0",
        "7",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
    ] {
        assert_eq!(id(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "+7",
        "07",
        "-0",
        " 7",
        "7 ",
        "7.0",
        "e1",
        "9223372036854775808",
        "٧",
    ] {
        assert!(id(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn optional_members_may_be_null_or_absent_but_not_of_another_type() {
    let m = |name: &str, value: Value| outgoing("m.message", &with(message(), name, value));
    let file = json!({"id": "1", "filename": "a.png", "size": 3, "content_type": null,
        "origin_url": "/x"});
    assert_eq!(m("attachments", json!([file, {}])), Ok(()));
    assert_eq!(m("attachments", Value::Null), Ok(()));
    assert_eq!(m("channel_type", json!(2)), Ok(()));
    for (name, value, path) in [
        ("channel_name", json!(1), "content.channel_name is 1:"),
        (
            "channel_type",
            json!("0"),
            "content.channel_type is the text \"0\":",
        ),
        ("guild_name", json!([]), "content.guild_name is a list:"),
        (
            "msgtype",
            json!("m.image"),
            "content.msgtype is the text \"m.image\":",
        ),
        (
            "attachments",
            json!({}),
            "content.attachments is an object:",
        ),
        (
            "attachments",
            json!([{}, 1]),
            "content.attachments[1] is 1:",
        ),
        (
            "attachments",
            json!([{"size": "3"}]),
            "content.attachments[0].size is",
        ),
    ] {
        let why = m(name, value).unwrap_err();
        assert!(why.starts_with(path), "{why}");
    }
}
