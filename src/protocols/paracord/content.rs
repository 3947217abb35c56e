//! What an event's `content` may be: limits of what comes in, types of what goes out.
//!
//! In, nothing but size, width and depth is asked (sheet, 5): what a member means is for the backend.
//! Out, the types that servers act on are checked, for a server that cannot use one says nothing
//! about it (sheet, 4); and no number that another's reader could change travels (sheet, 3).

use serde_json::{Map, Value};

use super::MAX_CONTENT;

/// Most elements of one list and members of one object.
pub const MAX_ELEMENTS: usize = 10_000;
/// Deepest nesting of lists and objects; `content` itself is the first level.
pub const MAX_NESTING: usize = 32;

/// Whether a content may come in. The error is what the sender is told, in the words it knows.
pub fn within_limits(content: &Value) -> Result<(), String> {
    if encoded_len(content) > MAX_CONTENT {
        return Err(format!(
            "federation event content exceeds maximum size of {MAX_CONTENT} bytes"
        ));
    }
    let mut deepest = 0;
    let mut open = vec![(content, 1)];
    while let Some((value, level)) = open.pop() {
        match value {
            Value::Array(list) if list.len() > MAX_ELEMENTS => {
                return Err(
                    "federation event content array exceeds maximum element count".to_owned(),
                );
            }
            Value::Object(members) if members.len() > MAX_ELEMENTS => {
                return Err("federation event content object exceeds maximum key count".to_owned());
            }
            Value::Array(list) => {
                deepest = deepest.max(level);
                open.extend(list.iter().map(|child| (child, level + 1)));
            }
            Value::Object(members) => {
                deepest = deepest.max(level);
                open.extend(members.values().map(|child| (child, level + 1)));
            }
            _ => {}
        }
    }
    if deepest > MAX_NESTING {
        return Err(format!(
            "federation event content exceeds maximum nesting depth of {MAX_NESTING}"
        ));
    }
    Ok(())
}

/// Bytes of the compact form, without writing it down.
fn encoded_len(value: &Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

/// Whether a content may go out as an event of this type. The error names the wrong member
/// (`content.a.b[3]`) and says what belongs there. Types that servers do not know pass as they are.
/// The limits of what comes in are another question ([`within_limits`]).
pub fn outgoing(kind: &str, content: &Value) -> Result<(), String> {
    travels(content, &mut "content".to_owned(), 0)?;
    let Some(members) = members_of(kind) else {
        return Ok(());
    };
    let Value::Object(content) = content else {
        return Err(format!("content of {kind} must be an object"));
    };
    for (name, form, needed) in members {
        match (content.get(*name), *needed) {
            (None | Some(Value::Null), false) => {}
            (None, true) => return Err(format!("content.{name} is missing: {}", form.wanted())),
            (Some(value), _) => form.check(&format!("content.{name}"), value)?,
        }
    }
    Ok(())
}

/// What a member must be.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// A text with something in it.
    Word,
    /// This text.
    Is(&'static str),
    /// The decimal text of a signed 64-bit number.
    Id,
    Integer,
    Attachments,
}

/// Name, form, whether it must be there. An optional member may be null.
type Member = (&'static str, Form, bool);

const GUILD: Member = ("guild_id", Form::Id, true);
const CHANNEL: Member = ("channel_id", Form::Id, true);
const MESSAGE: Member = ("message_id", Form::Id, true);
const TARGET: Member = ("target_event_id", Form::Word, false);

/// The members of a type that servers act on (sheet, 4); None: of any other.
fn members_of(kind: &str) -> Option<&'static [Member]> {
    Some(match kind {
        "m.message" => &[
            ("body", Form::Text, true),
            ("msgtype", Form::Is("m.text"), true),
            GUILD,
            CHANNEL,
            MESSAGE,
            ("channel_name", Form::Text, false),
            ("channel_type", Form::Integer, false),
            ("guild_name", Form::Text, false),
            ("attachments", Form::Attachments, false),
        ],
        "m.message.edit" => &[GUILD, CHANNEL, MESSAGE, ("body", Form::Text, true), TARGET],
        "m.message.delete" => &[GUILD, CHANNEL, MESSAGE, TARGET],
        "m.reaction.add" | "m.reaction.remove" => {
            &[GUILD, CHANNEL, MESSAGE, ("emoji", Form::Word, true), TARGET]
        }
        "m.member.join" | "m.member.leave" => &[GUILD, ("user_id", Form::Id, true)],
        _ => return None,
    })
}

/// The members of an attachment, none of which must be there.
const ATTACHMENT: [(&str, Form); 6] = [
    ("id", Form::Text),
    ("filename", Form::Text),
    ("size", Form::Integer),
    ("content_type", Form::Text),
    ("content_hash", Form::Text),
    ("origin_url", Form::Text),
];

impl Form {
    /// What belongs there, in words.
    fn wanted(self) -> String {
        match self {
            Self::Text => "it must be a text".into(),
            Self::Word => "it must be a text that is not empty".into(),
            Self::Is(text) => format!("it must be {text:?}"),
            Self::Id => "it must be a signed 64-bit number as decimal text, like \"7010\"".into(),
            Self::Integer => "it must be a whole number".into(),
            Self::Attachments => "it must be a list of objects".into(),
        }
    }

    fn check(self, path: &str, value: &Value) -> Result<(), String> {
        let text = value.as_str();
        let fits = match self {
            Self::Text => text.is_some(),
            Self::Word => text.is_some_and(|text| !text.is_empty()),
            Self::Is(wanted) => text == Some(wanted),
            Self::Id => text.is_some_and(is_id),
            Self::Integer => value.is_i64(),
            Self::Attachments => return attachments(path, value),
        };
        if fits {
            return Ok(());
        }
        Err(format!("{path} is {}: {}", shown(value), self.wanted()))
    }
}

/// `7010`: digits that read as a number and are that number's only spelling.
fn is_id(text: &str) -> bool {
    text.parse::<i64>().is_ok_and(|id| id.to_string() == text)
}

fn attachments(path: &str, value: &Value) -> Result<(), String> {
    let wrong = |path: &str, value: &Value, wanted: &str| {
        Err(format!("{path} is {}: {wanted}", shown(value)))
    };
    let Value::Array(list) = value else {
        return wrong(path, value, &Form::Attachments.wanted());
    };
    for (n, entry) in list.iter().enumerate() {
        let path = format!("{path}[{n}]");
        let Value::Object(entry) = entry else {
            return wrong(&path, entry, "it must be an object");
        };
        for (name, form) in ATTACHMENT {
            match entry.get(name) {
                None | Some(Value::Null) => {}
                Some(value) => form.check(&format!("{path}.{name}"), value)?,
            }
        }
    }
    Ok(())
}

/// A value in a sentence: what kind it is, and a short one as it is.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.len() <= 40 => format!("the text {text:?}"),
        Value::String(_) => "a long text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// No floating-point number. What is nested deeper than any server takes is not looked at:
/// [`within_limits`] refuses it.
fn travels(value: &Value, path: &mut String, level: usize) -> Result<(), String> {
    if level > MAX_NESTING {
        return Ok(());
    }
    match value {
        Value::Number(number) if number.is_f64() => Err(format!(
            "{path} is {number}: only whole numbers of 64 bits travel unchanged, send a text instead"
        )),
        Value::Array(list) => list.iter().enumerate().try_for_each(|(n, child)| {
            inside(path, &format!("[{n}]"), |path| {
                travels(child, path, level + 1)
            })
        }),
        Value::Object(members) => members_travel(members, path, level),
        _ => Ok(()),
    }
}

fn members_travel(
    members: &Map<String, Value>,
    path: &mut String,
    level: usize,
) -> Result<(), String> {
    members.iter().try_for_each(|(name, child)| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let step = if !name.is_empty() && name.bytes().all(plain) {
            format!(".{name}")
        } else {
            format!("[{name:?}]")
        };
        inside(path, &step, |path| travels(child, path, level + 1))
    })
}

/// Runs with the path one step longer.
fn inside(
    path: &mut String,
    step: &str,
    run: impl FnOnce(&mut String) -> Result<(), String>,
) -> Result<(), String> {
    let length = path.len();
    path.push_str(step);
    let result = run(path);
    path.truncate(length);
    result
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
