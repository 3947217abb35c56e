//! What instances that share a database (`store.shared`) decide in turns.
//!
//! Whoever takes events in, marks them or changes anything but its own rows of the queue first locks
//! the counters in `meta` and reads them; the lock ends with the commit. So ledger numbers ascend in
//! the order of the commits, and of two instances with the same event the second finds the first's.
//!
//! *Mending*: one instance at a time compares the streams with the ledger. It says so in `meta` with
//! a time by the database's clock up to which it may; while what the broker lost is published again
//! nobody takes events in. Each new history of the streams is a *series*: what an instance learned
//! of the streams in an earlier one is not noted any more.

use super::apply::Marks;
use super::db::{Conn, Db};
use super::ops::Statement;
use super::single::{load_marks, put_mark, put_text};
use super::types::{Common, Lead, MendTurn};

/// Who mends, until when, and whether the doors of the others are shut.
const MENDING: &str = "mending";
/// Count of the histories of the streams.
const SERIES: &str = "series";
/// Counts of the changes of what all instances know begin so.
const KNOWN: &str = "known:";
/// The database's clock, milliseconds.
const NOW: &str = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint";

/// Readies the counters for instances that come and go: those of a store that was one process's own
/// until now are as its last commit left them.
pub(super) async fn join(conn: &mut Conn) -> Result<(), sqlx::Error> {
    conn.exec("BEGIN").await?;
    let joined = async {
        conn.query(
            "INSERT INTO meta (name, value) VALUES ('events', '1'), ('held', '0'), \
             ('inbound_bytes', '0'), ('mending', ''), ('series', '1') \
             ON CONFLICT (name) DO NOTHING",
        )
        .execute()
        .await?;
        turn(conn, &mut Marks::default(), "").await?;
        let found = load_marks(conn).await?;
        put_mark(conn, "events", found.events).await?;
        put_mark(conn, "held", found.held).await
    };
    match joined.await {
        Ok(()) => conn.exec("COMMIT").await,
        Err(e) => {
            conn.exec("ROLLBACK").await?;
            Err(e)
        }
    }
}

/// Waits for this transaction's turn and reads the counters as the last one left them.
pub(super) async fn turn(conn: &mut Conn, marks: &mut Marks, me: &str) -> Result<(), sqlx::Error> {
    let rows = conn
        .query(
            "SELECT name, value FROM meta \
             WHERE name IN ('events', 'held', 'inbound_bytes', 'mending', 'series') \
             ORDER BY name FOR UPDATE",
        )
        .fetch_all()
        .await?;
    let mut mending = Mending::default();
    for row in &rows {
        let value: String = row.get(1)?;
        match row.get::<String>(0)?.as_str() {
            MENDING => mending = Mending::parse(&value),
            name => {
                let number: i64 = value
                    .parse()
                    .map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
                match name {
                    "events" => (marks.next_event, marks.events) = (number, number),
                    "held" => marks.held = number,
                    "inbound_bytes" => marks.inbound_bytes = number,
                    _ => marks.series = number,
                }
            }
        }
    }
    marks.ahead = 0;
    marks.shut = mending.shut && mending.by != me && mending.until_ms > now(conn).await?;
    Ok(())
}

/// Takes or keeps the turn to mend.
pub(super) async fn mend(
    conn: &mut Conn,
    marks: &mut Marks,
    wish: &MendTurn,
) -> Result<i64, sqlx::Error> {
    let now_ms = now(conn).await?;
    let text = text_mark(conn, MENDING).await?;
    let found = Mending::parse(&text);
    if found.by != wish.by && found.until_ms > now_ms {
        return Ok(0);
    }
    let Some(lasts) = wish.lasts else {
        if found.by == wish.by {
            put_text(conn, MENDING, "").await?;
        }
        return Ok(marks.series);
    };
    if wish.new_series {
        marks.series = marks.series.saturating_add(1);
        put_mark(conn, SERIES, marks.series).await?;
    }
    let lasts = i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX);
    let mine = Mending {
        shut: wish.new_series || (found.by == wish.by && found.shut),
        by: wish.by.clone(),
        until_ms: now_ms.saturating_add(lasts),
    };
    put_text(conn, MENDING, &mine.text()).await?;
    Ok(marks.series)
}

/// Takes or keeps a part that one instance plays for all; 0: another one plays it.
pub(super) async fn lead(conn: &mut Conn, wish: &Lead) -> Result<i64, sqlx::Error> {
    let name = format!("lead:{}", wish.what);
    let now_ms = now(conn).await?;
    let found = Mending::parse(&text_mark(conn, &name).await?);
    if found.by != wish.by && found.until_ms > now_ms {
        return Ok(0);
    }
    let lasts = i64::try_from(wish.lasts.as_millis()).unwrap_or(i64::MAX);
    let mine = Mending {
        by: wish.by.clone(),
        until_ms: now_ms.saturating_add(lasts),
        shut: false,
    };
    put_text(conn, &name, &mine.text()).await?;
    Ok(1)
}

/// Counts a change of what all instances know, in the transaction that makes it.
pub(super) fn count_change(topic: &str) -> Statement {
    Statement::new(
        "INSERT INTO meta (name, value) VALUES ($1, '1') ON CONFLICT (name) \
         DO UPDATE SET value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT)",
    )
    .bind(format!("{KNOWN}{topic}"))
}

/// The counts by which an instance finds out what others did.
pub(super) async fn read(db: Db) -> Result<Common, sqlx::Error> {
    let rows = db
        .query("SELECT name, value FROM meta WHERE name = 'series' OR name LIKE 'known:%'")
        .fetch_all()
        .await?;
    let mut common = Common::default();
    for row in &rows {
        let value: String = row.get(1)?;
        let number = value
            .parse()
            .map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
        match row.get::<String>(0)?.strip_prefix(KNOWN) {
            Some(topic) => drop(common.changes.insert(topic.to_owned(), number)),
            None => common.series = number,
        }
    }
    Ok(common)
}

async fn now(conn: &mut Conn) -> Result<i64, sqlx::Error> {
    conn.query(NOW).scalar().await
}

async fn text_mark(conn: &mut Conn, name: &str) -> Result<String, sqlx::Error> {
    let row = conn
        .query("SELECT value FROM meta WHERE name = $1")
        .bind(name)
        .fetch_optional()
        .await?;
    row.map_or(Ok(String::new()), |row| row.get(0))
}

/// As it stands in `meta`: `WHO UNTIL shut|open`, or nothing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mending {
    by: String,
    until_ms: i64,
    shut: bool,
}

impl Mending {
    fn parse(text: &str) -> Self {
        let mut parts = text.split(' ');
        let by = parts.next().unwrap_or_default().to_owned();
        let until_ms = parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let shut = parts.next() == Some("shut");
        Self { by, until_ms, shut }
    }

    fn text(&self) -> String {
        let doors = if self.shut { "shut" } else { "open" };
        format!("{} {} {doors}", self.by, self.until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_mends_reads_back_and_nobody_is_nobody() {
        let mending = Mending {
            by: "a1".into(),
            until_ms: 77,
            shut: true,
        };
        assert_eq!(Mending::parse(&mending.text()), mending);
        assert_eq!(Mending::parse(""), Mending::default());
        assert!(Mending::parse("a1 x open").until_ms == 0);
    }
}
