//! Parameters of a query string: each at most once, and an unknown one is an error, for a misspelt
//! filter would show everything (or drop it).

use std::borrow::Cow;
use std::time::Duration;

use super::Fail;

/// The parameters of one request, taken one by one.
#[derive(Debug, Default)]
pub struct Params {
    pairs: Vec<(String, String)>,
    asked: Vec<&'static str>,
}

impl Params {
    /// Reads `name=value&…`, percent-decoded.
    pub fn read(query: Option<&str>) -> Result<Self, Fail> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        let parts = query.unwrap_or_default().split('&');
        for pair in parts.filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).map_err(wrong)?.into_owned();
            if pairs.iter().any(|(known, _)| *known == name) {
                return Err(wrong(format!("the parameter {name} is given twice")));
            }
            pairs.push((name, decode(value).map_err(wrong)?.into_owned()));
        }
        Ok(Self {
            pairs,
            asked: Vec::new(),
        })
    }

    /// A text; an empty one is none.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.asked.push(name);
        let at = self.pairs.iter().position(|(known, _)| known == name)?;
        Some(self.pairs.swap_remove(at).1).filter(|value| !value.is_empty())
    }

    /// Words with commas between.
    pub fn words(&mut self, name: &'static str) -> Vec<String> {
        let words = self.text(name).unwrap_or_default();
        let words = words.split(',').map(str::trim).filter(|w| !w.is_empty());
        words.map(str::to_owned).collect()
    }

    /// `true` or `false`; left out it is false, without a value true.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, Fail> {
        self.asked.push(name);
        let Some(at) = self.pairs.iter().position(|(known, _)| known == name) else {
            return Ok(false);
        };
        match self.pairs.swap_remove(at).1.as_str() {
            "" | "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(wrong(format!(
                "{name} must be true or false, not {other:?}"
            ))),
        }
    }

    /// A whole number from `min` to `max`.
    pub fn number(&mut self, name: &'static str, min: i64, max: i64) -> Result<Option<i64>, Fail> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|n| (min..=max).contains(n));
        number.map(Some).ok_or_else(|| {
            wrong(match max {
                i64::MAX => format!("{name} must be a number from {min}, not {text:?}"),
                _ => format!("{name} must be {min} to {max}, not {text:?}"),
            })
        })
    }

    /// A duration such as `90s`, `15m`, `2h`, `7d`.
    pub fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, Fail> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        crate::config::parse_duration(&text)
            .map(Some)
            .ok_or_else(|| {
                wrong(format!(
                    "{name} must be a duration such as \"15m\", \"2h\" or \"7d\", not {text:?}"
                ))
            })
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), Fail> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => Err(wrong(format!(
                "there is no parameter {name:?} here; there are {}",
                self.asked.join(", ")
            ))),
        }
    }
}

fn wrong(detail: String) -> Fail {
    Fail::bad_request("bad_filter", detail)
}

/// Percent-decoding, `+` for a space.
fn decode(text: &str) -> Result<Cow<'_, str>, String> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => out.push(u8::try_from(high * 16 + low).unwrap_or(b'?')),
                _ => return Err(format!("{text:?} has a % without two hex digits")),
            },
            other => out.push(other),
        }
    }
    String::from_utf8(out)
        .map(Cow::Owned)
        .map_err(|_| format!("{text:?} is not UTF-8"))
}

/// A text as part of a path or query: everything but letters, digits and `-._~` as `%XX`.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_back() {
        let odd = "beta.com:8443 & ü+%";
        let query = format!("peer={}&drop&limit=5", encode(odd));
        let mut params = Params::read(Some(&query)).unwrap();
        assert_eq!(params.text("peer").as_deref(), Some(odd));
        assert!(params.flag("drop").unwrap());
        assert_eq!(params.number("limit", 1, 10).unwrap(), Some(5));
        assert_eq!(params.text("state"), None);
        params.end().unwrap();
    }

    #[test]
    fn a_wrong_parameter_is_a_sentence() {
        for (query, part) in [
            (
                "stat=pending",
                "there is no parameter \"stat\" here; there are limit, age, all",
            ),
            ("limit=0", "limit must be 1 to 1000"),
            ("limit=x", "limit must be 1 to 1000"),
            ("age=5", "age must be a duration"),
            ("all=perhaps", "all must be true or false"),
            ("peer=%4", "two hex digits"),
            ("peer=%ff", "is not UTF-8"),
            ("peer=a&peer=b", "given twice"),
        ] {
            let read = || -> Result<(), Fail> {
                let mut params = Params::read(Some(query))?;
                params.number("limit", 1, 1000)?;
                params.duration("age")?;
                params.flag("all")?;
                params.end()
            };
            let e = read().unwrap_err();
            assert!(e.detail.contains(part), "{query}: {}", e.detail);
        }
    }
}
