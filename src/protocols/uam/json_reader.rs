//! The reader behind [`super::json`]: one pass over the text, bounded in depth and number of values.

use std::collections::BTreeMap;
use std::ops::Range;

use super::json::{Json, JsonError, JsonErrorKind, MAX_DEPTH, MAX_VALUES, Object};
use super::number::{self, NumberError};

/// Where the reading is.
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
    values: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(bytes).map_err(|e| JsonError {
            kind: JsonErrorKind::NotUtf8,
            at: e.valid_up_to(),
        })?;
        if text.starts_with('\u{feff}') {
            return Err(JsonError {
                kind: JsonErrorKind::ByteOrderMark,
                at: 0,
            });
        }
        Ok(Self {
            text,
            at: 0,
            values: 0,
        })
    }

    pub fn error_at(&self, kind: JsonErrorKind, at: usize) -> JsonError {
        JsonError { kind, at }
    }

    fn error(&self, kind: JsonErrorKind) -> JsonError {
        self.error_at(kind, self.at)
    }

    pub fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// What is not read yet. The reading stops at ASCII bytes or the end alone, so this is text.
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// What was read since `start`, which stood where the reading stopped before.
    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// What is wrong where another character was expected.
    fn unexpected(&self) -> JsonError {
        self.error(if self.at >= self.text.len() {
            JsonErrorKind::Truncated
        } else {
            JsonErrorKind::Syntax
        })
    }

    pub fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    pub fn end(&mut self) -> Result<(), JsonError> {
        self.space();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(self.error(JsonErrorKind::Trailing))
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    pub fn value(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.error(JsonErrorKind::TooManyValues));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth, None).map(Json::Object),
            Some(b'[') => self.array(depth).map(Json::Array),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            Some(b'N' | b'I') => {
                let rest = self.rest();
                if rest.starts_with("NaN") || rest.starts_with("Infinity") {
                    Err(self.error(JsonErrorKind::NotANumber))
                } else {
                    Err(self.unexpected())
                }
            }
            _ => Err(self.unexpected()),
        }
    }

    fn word(&mut self, word: &str, value: Json) -> Result<Json, JsonError> {
        let rest = self.rest().as_bytes();
        if rest.starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(value)
        } else if word.as_bytes().starts_with(rest) {
            Err(self.error(JsonErrorKind::Truncated))
        } else {
            Err(self.error(JsonErrorKind::Syntax))
        }
    }

    fn open(&mut self, depth: usize) -> Result<(), JsonError> {
        if depth > MAX_DEPTH {
            return Err(self.error(JsonErrorKind::TooDeep));
        }
        self.at += 1;
        self.space();
        Ok(())
    }

    pub fn object(
        &mut self,
        depth: usize,
        mut spans: Option<&mut BTreeMap<String, Range<usize>>>,
    ) -> Result<Object, JsonError> {
        self.open(depth)?;
        let mut members = Object::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(members);
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.unexpected());
            }
            let key = self.string()?;
            self.space();
            self.expect(b':')?;
            self.space();
            let from = self.at;
            let value = self.value(depth + 1)?;
            if let Some(spans) = spans.as_deref_mut() {
                spans.insert(key.clone(), from..self.at);
            }
            members.insert(key, value);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(members);
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Vec<Json>, JsonError> {
        self.open(depth)?;
        let mut elements = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(elements);
        }
        loop {
            elements.push(self.value(depth + 1)?);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(elements);
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.rest().starts_with("Infinity") {
                return Err(self.error_at(JsonErrorKind::NotANumber, start));
            }
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.unexpected()),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = self.since(start);
        match number::check(text) {
            Ok(()) => Ok(Json::Number(text.into())),
            Err(NumberError::NotFinite) => Err(self.error_at(JsonErrorKind::NotFinite, start)),
            Err(NumberError::TooLong) => Err(self.error_at(JsonErrorKind::TooManyDigits, start)),
        }
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.unexpected());
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let start = self.at;
            while !matches!(self.peek(), None | Some(b'"' | b'\\' | 0..=0x1f)) {
                self.at += 1;
            }
            out.push_str(self.since(start));
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    let c = self.escape()?;
                    out.push(c);
                }
                Some(_) => return Err(self.error(JsonErrorKind::ControlCharacter)),
                None => return Err(self.error(JsonErrorKind::Truncated)),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let at = self.at - 1;
        let Some(letter) = self.peek() else {
            return Err(self.error(JsonErrorKind::Truncated));
        };
        let plain = match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                return self.unicode(at);
            }
            _ => return Err(self.error(JsonErrorKind::Syntax)),
        };
        self.at += 1;
        Ok(plain)
    }

    fn unicode(&mut self, at: usize) -> Result<char, JsonError> {
        let first = self.hex4()?;
        let lone = self.error_at(JsonErrorKind::LoneSurrogate, at);
        let code = match first {
            0xd800..=0xdbff => {
                if !self.rest().starts_with("\\u") {
                    return Err(lone);
                }
                self.at += 2;
                let second = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(lone);
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            _ => first,
        };
        char::from_u32(code).ok_or(lone)
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(16)) else {
                return Err(self.unexpected());
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}
