//! What a database's error means for whoever asked: the code it carries decides, never its text.

use super::types::{StoreError, StoreErrorKind};

/// A store that cannot serve now and may heal.
pub(super) fn unavailable(detail: impl Into<String>) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Unavailable,
        detail: detail.into(),
    }
}

/// Not a database of ours, or broken.
pub(super) fn corrupt(detail: impl Into<String>) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Corrupt,
        detail: detail.into(),
    }
}

/// The meaning of an error of either database.
pub(super) fn meaning(e: sqlx::Error) -> StoreError {
    if let Some(fenced) = StoreError::fenced(&e) {
        return fenced;
    }
    let (kind, hint) = match &e {
        sqlx::Error::Database(db) => {
            let code = db.code().unwrap_or_default();
            if db
                .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
                .is_some()
            {
                postgres(&code)
            } else {
                sqlite(code.parse::<i32>().unwrap_or(0))
            }
        }
        sqlx::Error::PoolClosed => (StoreErrorKind::Closed, "closed"),
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => (StoreErrorKind::Unavailable, "the database does not answer"),
        sqlx::Error::Tls(_) => (
            StoreErrorKind::Unavailable,
            "no TLS connection to the database",
        ),
        sqlx::Error::Configuration(_) => (StoreErrorKind::Corrupt, "the address is wrong"),
        _ => (StoreErrorKind::Corrupt, "unexpected"),
    };
    StoreError {
        kind,
        detail: format!("{hint}: {e}"),
    }
}

/// SQLite's primary result code.
fn sqlite(code: i32) -> (StoreErrorKind, &'static str) {
    use StoreErrorKind::{Corrupt, Unavailable};
    match code & 0xff {
        5 | 6 => (Unavailable, "another process holds it"),
        7 => (Unavailable, "out of memory"),
        8 => (Unavailable, "it cannot be written"),
        10 => (Unavailable, "reading or writing the disk failed"),
        13 => (Unavailable, "the disk, or the size allowed, is full"),
        14 => (Unavailable, "the file cannot be opened"),
        11 => (Corrupt, "the file is damaged; restore a copy"),
        26 => (Corrupt, "the file is no database"),
        _ => (Corrupt, "the database refused"),
    }
}

/// PostgreSQL's SQLSTATE: its class decides, a few codes say more.
fn postgres(code: &str) -> (StoreErrorKind, &'static str) {
    use StoreErrorKind::{Corrupt, Unavailable};
    match code {
        "53100" => (Unavailable, "the database's disk is full"),
        "53300" => (Unavailable, "the database has no connection to spare"),
        "57014" => (Unavailable, "the database took too long"),
        "57P03" => (Unavailable, "the database is starting or stopping"),
        "25006" => (
            Unavailable,
            "the database is read-only; is it a standby server?",
        ),
        "3D000" => (Unavailable, "there is no such database; create it"),
        "42501" => (Unavailable, "the database's user may not do that"),
        "55P03" | "40001" | "40P01" => (Unavailable, "another session is in the way"),
        _ => match code.get(..2) {
            Some("08") => (Unavailable, "the connection to the database failed"),
            Some("28") => (Unavailable, "the database refused user or password"),
            Some("53") => (Unavailable, "the database is short of something"),
            Some("57") => (Unavailable, "the database was stopped"),
            Some("58") => (Unavailable, "the database's disk failed"),
            Some("XX") => (Corrupt, "the database is damaged"),
            _ => (Corrupt, "the database refused"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_heal_is_unavailable_and_what_cannot_is_not() {
        for code in ["08006", "53100", "57P01", "58030", "25006", "57014"] {
            assert_eq!(postgres(code).0, StoreErrorKind::Unavailable, "{code}");
        }
        for code in ["22021", "23505", "42P01", "XX001"] {
            assert_eq!(postgres(code).0, StoreErrorKind::Corrupt, "{code}");
        }
        assert_eq!(sqlite(13).0, StoreErrorKind::Unavailable);
        assert_eq!(sqlite(11).0, StoreErrorKind::Corrupt);
    }
}
