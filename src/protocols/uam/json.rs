//! JSON read into a tree of our own that keeps number text.
//!
//! What is signed is re-made from parsed values, so the tree must keep every difference that the
//! signed bytes show: `1` is not `1.0`, and integers have any size. Of equal keys the last one
//! counts. Refused are: anything that is not UTF-8 (a byte order mark included), numbers that are
//! not finite, lone surrogates, more than [`MAX_DEPTH`] levels and more than [`MAX_VALUES`] values,
//! so that reading costs bounded memory and stack before any check.

use std::collections::BTreeMap;
use std::ops::Range;

use super::json_reader::Reader;

/// Levels of nested lists and objects at most.
pub const MAX_DEPTH: usize = 200;
/// Values (members and elements, containers counted) in one text at most.
pub const MAX_VALUES: usize = 100_000;

/// An object: sorted by code point, which is the order of the UTF-8 bytes.
pub type Object = BTreeMap<String, Json>;

/// One JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    /// The number's text as it stood.
    Number(Box<str>),
    String(String),
    Array(Vec<Json>),
    Object(Object),
}

impl Json {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The members, if it is an object.
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// What sort of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Why a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonErrorKind {
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("it starts with a byte order mark")]
    ByteOrderMark,
    #[error("it ends too early")]
    Truncated,
    #[error("it is not JSON")]
    Syntax,
    #[error("a control character stands unescaped in a string")]
    ControlCharacter,
    #[error("a surrogate escape stands alone")]
    LoneSurrogate,
    #[error("NaN and Infinity are not numbers")]
    NotANumber,
    #[error("a number is out of range")]
    NotFinite,
    #[error("an integer has more than 4300 digits")]
    TooManyDigits,
    #[error("it is nested more than 200 levels deep")]
    TooDeep,
    #[error("it holds more than 100000 values")]
    TooManyValues,
    #[error("something follows the value")]
    Trailing,
    #[error("it is not an object")]
    NotAnObject,
}

/// Why a text is refused, and at which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (byte {at})")]
pub struct JsonError {
    pub kind: JsonErrorKind,
    pub at: usize,
}

/// Reads one value and nothing else.
pub fn parse(bytes: &[u8]) -> Result<Json, JsonError> {
    let mut reader = Reader::new(bytes)?;
    let value = reader.value(1)?;
    reader.end()?;
    Ok(value)
}

/// An object with the place of each member's value in the text.
#[derive(Clone, Debug)]
pub struct Members {
    /// The members; the last of equal keys.
    pub object: Object,
    /// Where the value of each member stands in the bytes read.
    pub spans: BTreeMap<String, Range<usize>>,
}

/// Reads an object and remembers where its members' values stand, so that one of them can be passed
/// on with its own text.
pub fn parse_members(bytes: &[u8]) -> Result<Members, JsonError> {
    let mut reader = Reader::new(bytes)?;
    reader.space();
    if reader.peek() != Some(b'{') {
        // Say what is wrong with a text that is no JSON at all before calling it no object.
        reader.value(1)?;
        reader.end()?;
        return Err(reader.error_at(JsonErrorKind::NotAnObject, 0));
    }
    let mut spans = BTreeMap::new();
    let object = reader.object(1, Some(&mut spans))?;
    reader.end()?;
    Ok(Members { object, spans })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> JsonErrorKind {
        parse(text.as_bytes()).unwrap_err().kind
    }

    #[test]
    fn the_last_of_equal_keys_counts_also_when_escapes_make_them_equal() {
        let read = parse(br#"{"a":1,"\u0061":2}"#).unwrap();
        assert_eq!(read.as_object().unwrap()["a"], Json::Number("2".into()));
    }

    #[test]
    fn number_text_is_kept() {
        let read = parse(b"[1,1.0,1e2,-0]").unwrap();
        let texts: Vec<_> = match read {
            Json::Array(items) => items,
            _ => panic!(),
        };
        assert_eq!(texts[2], Json::Number("1e2".into()));
        assert_eq!(texts[3], Json::Number("-0".into()));
    }

    #[test]
    fn a_member_keeps_the_place_of_its_text() {
        let text = br#" { "x" : 1 , "envelope" : {"a" : 1.0 } , "envelope":[ 2 ] } "#;
        let members = parse_members(text).unwrap();
        assert_eq!(&text[members.spans["envelope"].clone()], b"[ 2 ]");
        assert_eq!(&text[members.spans["x"].clone()], b"1");
    }

    #[test]
    fn two_hundred_levels_pass_and_one_more_does_not() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(200).as_bytes()).is_ok());
        assert_eq!(kind(&nested(201)), JsonErrorKind::TooDeep);
        assert_eq!(kind(&"[".repeat(1_000_000)), JsonErrorKind::TooDeep);
        assert_eq!(kind(&"{\"a\":".repeat(1_000_000)), JsonErrorKind::TooDeep);
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let list = |n: usize| format!("[{}0]", "0,".repeat(n - 1));
        assert!(parse(list(MAX_VALUES - 1).as_bytes()).is_ok());
        assert_eq!(kind(&list(MAX_VALUES)), JsonErrorKind::TooManyValues);
    }

    #[test]
    fn each_poison_is_refused_by_its_name() {
        use JsonErrorKind::*;
        for (text, expected) in [
            ("\u{feff}{}", ByteOrderMark),
            ("NaN", NotANumber),
            ("[Infinity]", NotANumber),
            ("[-Infinity]", NotANumber),
            ("1e400", NotFinite),
            ("-1E999", NotFinite),
            (r#""\ud800""#, LoneSurrogate),
            (r#""\ud800x""#, LoneSurrogate),
            (r#""\ud800\n""#, LoneSurrogate),
            (r#""\udc00""#, LoneSurrogate),
            (r#""\ud800\ud800""#, LoneSurrogate),
            ("\"a\nb\"", ControlCharacter),
            ("", Truncated),
            ("{", Truncated),
            ("{\"a\"", Truncated),
            ("\"abc", Truncated),
            ("tru", Truncated),
            ("{\"envelope\": ", Truncated),
            ("01", Trailing),
            ("{} {}", Trailing),
            ("1.", Truncated),
            ("+1", Syntax),
            ("{a:1}", Syntax),
            ("[1,]", Syntax),
            ("{\"a\":1,}", Syntax),
            (r#""\x""#, Syntax),
            ("'a'", Syntax),
            ("\u{a0}1", Syntax),
        ] {
            assert_eq!(kind(text), expected, "{text:?}");
        }
        assert_eq!(parse(b"\"\xff\"").unwrap_err().kind, NotUtf8);
        assert_eq!(parse(b"\xff\xfe{\0}\0").unwrap_err().kind, NotUtf8);
        assert_eq!(
            parse_members(b"[1]").unwrap_err().kind,
            JsonErrorKind::NotAnObject
        );
    }

    #[test]
    fn paired_surrogates_make_one_character() {
        assert_eq!(
            parse(br#""\uD83D\uDE00""#).unwrap(),
            Json::String("😀".into())
        );
    }
}
