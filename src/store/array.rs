//! PostgreSQL arrays written straight into their binary form: a column of a multi-row statement is
//! one array, and its values are copied once, from where the caller holds them.
//!
//! The form: dimensions (1), whether there are NULLs, the elements' type, their number, the lowest
//! index (1); then each element as its length and bytes, length -1 standing for NULL. All numbers
//! are four bytes, big-endian.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};

use super::bulk::Of;
use super::value::to_postgres;

const HEAD: usize = 20;

/// A one-dimensional array.
pub(super) struct Array {
    of: Of,
    count: usize,
    nulls: bool,
    bytes: Vec<u8>,
}

impl Array {
    pub fn new(of: Of, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEAD + room * 16);
        bytes.resize(HEAD, 0);
        Self {
            of,
            count: 0,
            nulls: false,
            bytes,
        }
    }

    fn element(&mut self, value: Option<&[u8]>) {
        self.count += 1;
        match value.and_then(|v| Some((v, i32::try_from(v.len()).ok()?))) {
            Some((value, length)) => {
                self.bytes.extend_from_slice(&length.to_be_bytes());
                self.bytes.extend_from_slice(value);
            }
            None => {
                self.nulls = true;
                self.bytes.extend_from_slice(&(-1i32).to_be_bytes());
            }
        }
    }

    pub fn int(&mut self, value: Option<i64>) {
        let bytes = value.map(i64::to_be_bytes);
        self.element(bytes.as_ref().map(<[u8; 8]>::as_slice));
    }

    pub fn text(&mut self, value: Option<&str>) {
        let text = value.map(to_postgres);
        self.element(text.as_ref().map(|t| t.as_bytes()));
    }

    pub fn blob(&mut self, value: Option<&[u8]>) {
        self.element(value);
    }
}

impl Of {
    /// The type of an element, by the number PostgreSQL has fixed for it.
    fn element_oid(self) -> u32 {
        match self {
            Self::Int => 20,
            Self::Text => 25,
            Self::Blob => 17,
        }
    }

    /// The array, as a statement names it.
    pub fn array_name(self) -> &'static str {
        match self {
            Self::Int => "bigint[]",
            Self::Text => "text[]",
            Self::Blob => "bytea[]",
        }
    }
}

impl Type<Postgres> for Array {
    fn type_info() -> PgTypeInfo {
        <[i64] as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Array {
    fn encode_by_ref(&self, out: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let head = [
            1,
            u32::from(self.nulls),
            self.of.element_oid(),
            u32::try_from(self.count)?,
            1,
        ];
        for (n, word) in head.into_iter().enumerate() {
            let at = start + 4 * n;
            if let Some(place) = out.get_mut(at..at + 4) {
                place.copy_from_slice(&word.to_be_bytes());
            }
        }
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(match self.of {
            Of::Int => <[i64] as Type<Postgres>>::type_info(),
            Of::Text => <[String] as Type<Postgres>>::type_info(),
            Of::Blob => <[Vec<u8>] as Type<Postgres>>::type_info(),
        })
    }
}
