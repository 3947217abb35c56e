//! Values that go into statements and come out of rows, the same on both databases.
//!
//! Three kinds do for every table: whole numbers (BIGINT), text and bytes, each perhaps NULL;
//! booleans are numbers in columns, and read as such only from expressions (`EXISTS`, `IS NULL`).
//!
//! PostgreSQL's text cannot hold the character NUL, which JSON and headers can. There it is written
//! as two characters that no text otherwise holds side by side, and read back as it was: nothing is
//! refused, nothing is lost, and the databases stay alike from outside.

use std::borrow::Cow;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Row as _};

/// A character of the private planes, set aside by Unicode for uses such as this.
const ESCAPE: char = '\u{10FFFD}';
/// Its first byte in UTF-8, shared with few other characters.
const ESCAPE_BYTE: u8 = 0xF4;

/// Text as PostgreSQL stores it.
pub(super) fn to_postgres(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| b == 0 || b == ESCAPE_BYTE) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\0' => out.extend([ESCAPE, '0']),
            ESCAPE => out.extend([ESCAPE, '1']),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The text that was written.
pub(super) fn from_postgres(text: String) -> String {
    if !text.contains(ESCAPE) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ESCAPE => match chars.next() {
                Some('0') => out.push('\0'),
                Some('1') => out.push(ESCAPE),
                // Not written by us.
                other => out.extend([Some(ESCAPE), other].into_iter().flatten()),
            },
            c => out.push(c),
        }
    }
    out
}

/// Arguments of one statement.
pub(super) enum Args {
    Sqlite(SqliteArguments),
    Postgres(PgArguments),
}

/// What can be bound.
pub(super) trait Bind {
    fn bind(self, args: &mut Args) -> Result<(), BoxDynError>;
}

/// What can be read from a column.
pub(super) trait Column: Sized {
    fn sqlite(row: &SqliteRow, at: usize) -> Result<Self, sqlx::Error>;
    fn postgres(row: &PgRow, at: usize) -> Result<Self, sqlx::Error>;
}

/// A value of any of the kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

impl Bind for Option<i64> {
    fn bind(self, args: &mut Args) -> Result<(), BoxDynError> {
        match args {
            Args::Sqlite(args) => args.add(self),
            Args::Postgres(args) => Arguments::add(args, self),
        }
    }
}

impl Bind for Option<&str> {
    fn bind(self, args: &mut Args) -> Result<(), BoxDynError> {
        match args {
            Args::Sqlite(args) => args.add(self),
            Args::Postgres(args) => Arguments::add(args, self.map(to_postgres)),
        }
    }
}

impl Bind for Option<&[u8]> {
    fn bind(self, args: &mut Args) -> Result<(), BoxDynError> {
        match args {
            Args::Sqlite(args) => args.add(self),
            Args::Postgres(args) => Arguments::add(args, self),
        }
    }
}

/// Other spellings of the three.
macro_rules! binds_as {
    ($($other:ty => |$value:ident| $as:expr;)*) => {
        $(impl Bind for $other {
            fn bind(self, args: &mut Args) -> Result<(), BoxDynError> {
                let $value = self;
                $as.bind(args)
            }
        })*
    };
}

binds_as! {
    i64 => |v| Some(v);
    &i64 => |v| Some(*v);
    &Option<i64> => |v| *v;
    &str => |v| Some(v);
    &&str => |v| Some(*v);
    String => |v| Some(v.as_str());
    &String => |v| Some(v.as_str());
    Option<String> => |v| v.as_deref();
    &Option<String> => |v| v.as_deref();
    &[u8] => |v| Some(v);
    Vec<u8> => |v| Some(v.as_slice());
    &Vec<u8> => |v| Some(v.as_slice());
    Option<Vec<u8>> => |v| v.as_deref();
}

impl Bind for Value {
    fn bind(self, args: &mut Args) -> Result<(), BoxDynError> {
        (&self).bind(args)
    }
}

impl Bind for &Value {
    fn bind(self, args: &mut Args) -> Result<(), BoxDynError> {
        match self {
            Value::Int(v) => v.bind(args),
            Value::Text(v) => v.bind(args),
            Value::Bytes(v) => v.as_deref().bind(args),
        }
    }
}

impl From<i64> for Value {
    fn from(v: i64) -> Self {
        Self::Int(Some(v))
    }
}

impl From<Option<i64>> for Value {
    fn from(v: Option<i64>) -> Self {
        Self::Int(v)
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Self::Text(Some(v.to_owned()))
    }
}

impl From<String> for Value {
    fn from(v: String) -> Self {
        Self::Text(Some(v))
    }
}

impl From<Option<String>> for Value {
    fn from(v: Option<String>) -> Self {
        Self::Text(v)
    }
}

impl From<Vec<u8>> for Value {
    fn from(v: Vec<u8>) -> Self {
        Self::Bytes(Some(v))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(v: Option<Vec<u8>>) -> Self {
        Self::Bytes(v)
    }
}

/// Kinds both databases give alike.
macro_rules! reads_alike {
    ($($kind:ty),*) => {
        $(impl Column for $kind {
            fn sqlite(row: &SqliteRow, at: usize) -> Result<Self, sqlx::Error> {
                row.try_get(at)
            }

            fn postgres(row: &PgRow, at: usize) -> Result<Self, sqlx::Error> {
                row.try_get(at)
            }
        })*
    };
}

reads_alike!(bool, Vec<u8>, Option<Vec<u8>>);

impl Column for i64 {
    fn sqlite(row: &SqliteRow, at: usize) -> Result<Self, sqlx::Error> {
        row.try_get(at)
    }

    fn postgres(row: &PgRow, at: usize) -> Result<Self, sqlx::Error> {
        // Columns are BIGINT; `LENGTH` and literals are smaller.
        row.try_get(at)
            .or_else(|e| row.try_get(at).map(i32::into).map_err(|_| e))
    }
}

impl Column for Option<i64> {
    fn sqlite(row: &SqliteRow, at: usize) -> Result<Self, sqlx::Error> {
        row.try_get(at)
    }

    fn postgres(row: &PgRow, at: usize) -> Result<Self, sqlx::Error> {
        row.try_get(at).or_else(|e| {
            let small: Result<Option<i32>, _> = row.try_get(at);
            small.map(|n| n.map(i32::into)).map_err(|_| e)
        })
    }
}

impl Column for String {
    fn sqlite(row: &SqliteRow, at: usize) -> Result<Self, sqlx::Error> {
        row.try_get(at)
    }

    fn postgres(row: &PgRow, at: usize) -> Result<Self, sqlx::Error> {
        row.try_get(at).map(from_postgres)
    }
}

impl Column for Option<String> {
    fn sqlite(row: &SqliteRow, at: usize) -> Result<Self, sqlx::Error> {
        row.try_get(at)
    }

    fn postgres(row: &PgRow, at: usize) -> Result<Self, sqlx::Error> {
        let text: Option<String> = row.try_get(at)?;
        Ok(text.map(from_postgres))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_text_is_stored_as_it_is() {
        assert!(matches!(to_postgres("héllo 🙂"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn any_text_is_stored_without_nul_and_read_back_as_it_was(text in "[\\x00a0-1\u{10FFFD}\u{10FFFF}🙂]{0,12}") {
            let stored = to_postgres(&text).into_owned();
            prop_assert!(!stored.contains('\0'));
            prop_assert_eq!(from_postgres(stored), text);
        }
    }
}
