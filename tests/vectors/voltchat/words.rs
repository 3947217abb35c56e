//! Words in a request that stand for something made when the case is run: `<peer-id>`,
//! `<token 301 s old>`, `n repeated 141 times`.
//!
//! They are read by what they say, so a case with another age, host or count is read as well.

use drawbridge::identity::hmac::SharedSecret;
use drawbridge::protocols::voltchat::{text, token};
use serde_json::{Map, Value};

/// What the words of one case mean.
pub struct Words {
    pub now_ms: i64,
    /// The first peer's id.
    pub peer_id: Option<String>,
    /// The first invite's id.
    pub invite_id: Option<String>,
    /// Bearers in words, and the tokens they stand for.
    pub bearers: Vec<(String, String)>,
    /// Who sends the request.
    pub sender: Sender,
}

/// Who makes the tokens.
#[derive(Clone)]
pub struct Sender {
    pub peer_id: String,
    pub host: String,
    pub name: String,
    /// As stored.
    pub secret: String,
    /// As it was sent, before it was cut.
    pub secret_sent: Option<String>,
}

impl Words {
    /// The value with every word in it replaced.
    pub fn value(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => Value::String(self.text(text)?),
            Value::Array(list) => list
                .iter()
                .map(|one| self.value(one))
                .collect::<Result<_, _>>()?,
            Value::Object(members) => Value::Object(
                members
                    .iter()
                    .map(|(key, one)| Ok((key.clone(), self.value(one)?)))
                    .collect::<Result<Map<_, _>, String>>()?,
            ),
            other => other.clone(),
        })
    }

    /// The same for a text.
    pub fn text(&self, text: &str) -> Result<String, String> {
        if let Some(made) = self.token(text)? {
            return Ok(made);
        }
        if let Some((unit, times)) = repeated(text) {
            return Ok(unit.repeat(times));
        }
        if matches!(text, "<iso-time>" | "<timestamp>") {
            return Ok(text::iso(self.now_ms));
        }
        let mut text = text.to_owned();
        for (word, token) in &self.bearers {
            text = text.replace(word, token);
        }
        for (word, id) in [
            ("<peer-id>", &self.peer_id),
            ("<invite-id>", &self.invite_id),
        ] {
            if text.contains(word) {
                let id = id
                    .as_ref()
                    .ok_or(format!("nothing {word} could stand for"))?;
                text = text.replace(word, id);
            }
        }
        // Markup in a text is no word, a single word in brackets is one.
        let bracketed = text.strip_prefix('<').and_then(|t| t.strip_suffix('>'));
        if bracketed.is_some_and(|inside| !inside.contains(['<', '>'])) {
            return Err(format!("not understood: {text}"));
        }
        Ok(text)
    }

    /// A token, if the words ask for one.
    fn token(&self, words: &str) -> Result<Option<String>, String> {
        let sender = &self.sender;
        let stored = SharedSecret::stored(&sender.secret);
        if let Some(rest) = words.strip_prefix("signed with the ") {
            let sent = sender.secret_sent.as_ref();
            let secret = if let Some(count) = rest.strip_suffix(" character secret") {
                let sent = sent.ok_or("there is no secret_sent")?;
                let units = text::units(sent).to_string();
                (units == count).then(|| SharedSecret::stored(sent))
            } else {
                let first = rest.strip_prefix("first ");
                let count = first.and_then(|rest| rest.strip_suffix(" characters"));
                let units = text::units(&sender.secret).to_string();
                (count == Some(units.as_str())).then_some(stored)
            };
            let secret = secret.ok_or(format!("not understood: {words}"))?;
            return Ok(Some(self.made(&secret, self.now_ms, |_| {})?));
        }
        let Some(inside) = words.strip_prefix('<').and_then(|w| w.strip_suffix('>')) else {
            return Ok(None);
        };
        let Some(rest) = (inside.strip_prefix("valid token")).or(inside.strip_prefix("token"))
        else {
            return Ok(None);
        };
        let rest = rest.trim();
        let unknown = || format!("not understood: {words}");
        let now = self.now_ms;
        let made = match rest {
            "" | "already used once" => self.made(&stored, now, |_| {})?,
            "under another secret" => {
                let other = SharedSecret::stored(&format!("another than {}", sender.secret));
                self.made(&other, now, |_| {})?
            }
            _ => {
                if let Some(age) = rest.strip_suffix(" old") {
                    let age = duration_ms(age).ok_or_else(unknown)?;
                    self.made(&stored, now - age, |_| {})?
                } else if let Some(ahead) = rest.strip_suffix(" in the future") {
                    let ahead = duration_ms(ahead).ok_or_else(unknown)?;
                    self.made(&stored, now + ahead, |_| {})?
                } else if let Some(member) = rest.strip_prefix("whose payload.") {
                    let (key, value) = member.split_once(" is ").ok_or_else(unknown)?;
                    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
                    self.made(&stored, now, |members| set(members, key, value))?
                } else if let Some(length) = rest.strip_prefix("longer than ") {
                    let length = length.strip_suffix(" characters").ok_or_else(unknown)?;
                    let length: usize = length.parse().map_err(|_| unknown())?;
                    self.made(&stored, now, |members| {
                        set(members, "padding", "x".repeat(length).into());
                    })?
                } else {
                    return Err(unknown());
                }
            }
        };
        Ok(Some(made))
    }

    /// A token with the members as `change` leaves them.
    fn made(
        &self,
        secret: &SharedSecret,
        timestamp_ms: i64,
        change: impl FnOnce(&mut Vec<(String, Value)>),
    ) -> Result<String, String> {
        let nonce = token::fresh_nonce().map_err(|e| e.to_string())?;
        let mut members: Vec<(String, Value)> = vec![
            ("peerId".into(), self.sender.peer_id.as_str().into()),
            ("host".into(), self.sender.host.as_str().into()),
            ("name".into(), self.sender.name.as_str().into()),
            ("timestamp".into(), timestamp_ms.into()),
            ("nonce".into(), nonce.into()),
        ];
        change(&mut members);
        let members: Vec<String> = members
            .iter()
            .map(|(key, value)| format!("{}:{value}", Value::from(key.as_str())))
            .collect();
        Ok(token::sealed(secret, &format!("{{{}}}", members.join(","))))
    }
}

fn set(members: &mut Vec<(String, Value)>, key: &str, value: Value) {
    match members.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => members.push((key.to_owned(), value)),
    }
}

/// Whether a request with these words is to be sent twice, of which the second answer counts.
pub fn asks_twice(request: &Value) -> bool {
    match request {
        Value::String(text) => text == "<token already used once>",
        Value::Array(list) => list.iter().any(asks_twice),
        Value::Object(members) => members.values().any(asks_twice),
        _ => false,
    }
}

/// `n repeated 141 times`.
fn repeated(text: &str) -> Option<(&str, usize)> {
    let (unit, times) = text.strip_suffix(" times")?.rsplit_once(" repeated ")?;
    Some((unit, times.parse().ok()?))
}

/// `301 s`, `one day`, `299999 ms`: milliseconds.
fn duration_ms(text: &str) -> Option<i64> {
    const NUMBERS: [&str; 13] = [
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
        "eleven", "twelve",
    ];
    let (count, unit) = text.trim().split_once(' ')?;
    let count = match count {
        "a" | "an" => 1.0,
        word => match NUMBERS.iter().position(|number| *number == word) {
            Some(number) => number as f64,
            None => word.parse().ok()?,
        },
    };
    let unit = match unit.trim() {
        "ms" | "millisecond" | "milliseconds" => 1.0,
        "s" | "second" | "seconds" => 1e3,
        "min" | "minute" | "minutes" => 60e3,
        "h" | "hour" | "hours" => 3_600e3,
        "day" | "days" => 86_400e3,
        "week" | "weeks" => 7.0 * 86_400e3,
        "month" | "months" => 30.0 * 86_400e3,
        "year" | "years" => 365.0 * 86_400e3,
        _ => return None,
    };
    Some((count * unit).round() as i64)
}

#[test]
fn words_are_read_by_what_they_say() {
    for (text, ms) in [
        ("301 s", 301_000),
        ("59 s", 59_000),
        ("one hour", 3_600_000),
        ("one day", 86_400_000),
        ("300001 ms", 300_001),
        ("0.5 minutes", 30_000),
    ] {
        assert_eq!(duration_ms(text), Some(ms), "{text}");
    }
    assert_eq!(duration_ms("some time"), None);
    assert_eq!(repeated("n repeated 141 times"), Some(("n", 141)));
    assert_eq!(repeated("n repeated often"), None);
    let words = Words {
        now_ms: 1_700_000_000_000,
        peer_id: Some("peer_1".into()),
        invite_id: None,
        bearers: vec![("<moderator>".into(), "mo".into())],
        sender: Sender {
            peer_id: "p".into(),
            host: "b.example".into(),
            name: "B".into(),
            secret: "0123456789abcdef".into(),
            secret_sent: None,
        },
    };
    let secret = SharedSecret::stored("0123456789abcdef");
    let verdict = |text: &str| {
        let token = words.text(text).expect("understood");
        token::verify(Some(&secret), "b.example", &token, words.now_ms).map(drop)
    };
    assert_eq!(verdict("<valid token>"), Ok(()));
    assert_eq!(verdict("<token 299 s old>"), Ok(()));
    assert_eq!(verdict("<token 301 s old>"), Err(token::Why::Expired));
    assert_eq!(verdict("<token 59 s in the future>"), Ok(()));
    let ahead = "<token one hour in the future>";
    assert_eq!(verdict(ahead), Err(token::Why::Ahead));
    let other = "<valid token whose payload.host is evil.example>";
    assert_eq!(verdict(other), Err(token::Why::OtherHost));
    let no_nonce = "<valid token whose payload.nonce is null>";
    assert_eq!(verdict(no_nonce), Err(token::Why::NoNonce));
    let long = "<valid token longer than 8192 characters>";
    assert_eq!(verdict(long), Err(token::Why::TooLong));
    let strange = "<token under another secret>";
    assert_eq!(verdict(strange), Err(token::Why::Mismatch));
    assert_eq!(words.text("/x/<peer-id>/y").as_deref(), Ok("/x/peer_1/y"));
    assert_eq!(words.text("Bearer <moderator>").as_deref(), Ok("Bearer mo"));
    assert_eq!(words.text("a <b>c</b>").as_deref(), Ok("a <b>c</b>"));
    for unknown in ["<token of another kind>", "<something>", "<invite-id>"] {
        assert!(words.text(unknown).is_err(), "{unknown}");
    }
}
