//! A small check of answers against the OpenAPI document: types, required members, members that are
//! not described, enums. It knows what our document uses, no more.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use serde_json::Value;

/// Says where `value` is not as `schema` wants: types, required members, unknown members, enums.
pub fn check(document: &Value, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    if let Some(pointer) = schema["$ref"].as_str() {
        let schema = document.pointer(pointer.trim_start_matches('#')).unwrap();
        return check(document, schema, value, at, wrong);
    }
    if let Some(either) = schema["oneOf"].as_array() {
        let fits = |one: &Value| {
            let mut found = Vec::new();
            check(document, one, value, at, &mut found);
            found.is_empty()
        };
        if either.iter().filter(|one| fits(one)).count() != 1 {
            wrong.push(format!("{at}: {value} fits not exactly one of its forms"));
        }
        return;
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = match &schema["type"] {
        Value::Null => true,
        Value::String(one) => one == kind || (one == "number" && kind == "integer"),
        some => some.as_array().unwrap().iter().any(|one| one == kind),
    };
    if !fits {
        wrong.push(format!("{at}: {kind} instead of {}", schema["type"]));
        return;
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        wrong.push(format!("{at}: {value} is none of {words:?}"));
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        for (n, item) in items.iter().enumerate() {
            check(document, schema, item, &format!("{at}[{n}]"), wrong);
        }
    }
    let (Some(members), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    else {
        return;
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !members.contains_key(name.as_str().unwrap()) {
            wrong.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, member) in members {
        match properties.get(name) {
            Some(schema) => check(document, schema, member, &format!("{at}.{name}"), wrong),
            None => wrong.push(format!("{at}: {name:?} is not described")),
        }
    }
}
