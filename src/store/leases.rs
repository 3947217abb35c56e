//! Who serves what, when several instances share a PostgreSQL database: the tables of leases and of
//! instances, by the database's own clock.
//!
//! A lease is a unit of the outbound work, an epoch that goes up with each owner, and a time. Whatever
//! is written under a lease is written in a transaction that holds the lease's row against everybody
//! who would change it ([`hold`]), and not at all once the lease is over or another's. A takeover
//! passes over rows that are held ([`Leases::claim`]), so nobody waits for an owner that hangs.
//!
//! These statements have a connection of their own: a renewal must not stand behind a large commit.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::bulk::{Shape, Texts};
use super::db::{Conn, Kind};
use super::errors::{meaning, unavailable};
use super::postgres::Place;
use super::types::{StoreError, StoreErrorKind};
use super::value::Value;
use super::{Store, closed};
use crate::protocol::ProtocolId;

/// A part of the outbound work that one instance serves at a time: a protocol, or one of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unit {
    pub protocol: ProtocolId,
    /// `None`: all of it.
    pub part: Option<u8>,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Some(part) => write!(f, "{}/{part}", self.protocol),
            None => f.write_str(self.protocol),
        }
    }
}

/// A unit as one owner has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease {
    pub unit: Unit,
    /// Higher with each owner.
    pub epoch: i64,
}

/// A row of the table of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    pub unit: String,
    /// Empty: nobody.
    pub owner: String,
    pub epoch: i64,
    /// Milliseconds until it ends, by the database's clock; not positive: it is over.
    pub left_ms: i64,
}

/// What the tables said at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTable {
    pub leases: Vec<LeaseRow>,
    /// Instances that renewed in time, by name.
    pub instances: Vec<String>,
}

/// The database's clock, milliseconds since the Unix epoch.
macro_rules! now_ms {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    };
}

/// What a transaction that writes under leases does first: whoever wants to change one of these rows
/// waits for its end.
const HOLD: Shape = Shape {
    before: "WITH v (unit, epoch) AS (",
    columns: "ti",
    after: concat!(
        ") SELECT l.unit FROM v JOIN federation_leases l ON l.unit = v.unit \
         WHERE l.epoch = v.epoch AND l.until_ms > ",
        now_ms!(),
        " FOR SHARE OF l"
    ),
};

/// A write under a lease that is another's now.
#[derive(Debug, thiserror::Error)]
#[error("another instance has taken over {0}")]
pub(super) struct Fenced(String);

/// Holds these leases until the transaction ends; fails with [`Fenced`] when one is not ours.
pub(super) async fn hold(
    conn: &mut Conn,
    texts: &mut Texts,
    leases: &BTreeSet<Lease>,
) -> Result<(), sqlx::Error> {
    if leases.is_empty() || conn.kind() == Kind::Sqlite {
        return Ok(());
    }
    let wanted: Vec<Lease> = leases.iter().copied().collect();
    let found = texts
        .fetch(conn, &HOLD, &wanted, false, |b, lease| {
            b.text(&lease.unit.to_string()).int(lease.epoch);
        })
        .await?;
    if found.len() == wanted.len() {
        return Ok(());
    }
    let mut ours = BTreeSet::new();
    for row in found {
        ours.insert(row.get::<String>(0)?);
    }
    let lost = wanted.iter().map(|l| l.unit.to_string());
    let lost: Vec<_> = lost.filter(|unit| !ours.contains(unit)).collect();
    let lost = Fenced(lost.join(", "));
    Err(sqlx::Error::AnyDriverError(Box::new(lost)))
}

/// Handle to the tables of leases; cloning shares its connection.
#[derive(Clone)]
pub struct Leases {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    /// The longest that one question may take: a lease must outlast several.
    patience: Duration,
    runtime: tokio::runtime::Handle,
    conn: Mutex<Option<Conn>>,
}

/// A statement and its values.
type Sql = (&'static str, Vec<Value>);

impl Store {
    /// The tables of leases; `None` for a store that is this process's own. `patience`: the longest
    /// that one question may take.
    pub fn leases(&self, patience: Duration) -> Option<Leases> {
        let place = self.inner.place.clone()?;
        Some(Leases {
            inner: Arc::new(Inner {
                place,
                patience,
                runtime: self.inner.runtime.clone(),
                conn: Mutex::new(None),
            }),
        })
    }
}

impl Leases {
    /// Makes rows for units that have none yet, free for anyone.
    pub async fn make(&self, units: &[Unit]) -> Result<(), StoreError> {
        let all = units.iter().map(|unit| {
            let sql = "INSERT INTO federation_leases (unit, owner, epoch, until_ms) \
                       VALUES ($1, '', 0, 0) ON CONFLICT (unit) DO NOTHING";
            (sql, vec![Value::from(unit.to_string())])
        });
        self.run(all.collect()).await.map(drop)
    }

    /// Says that this instance is alive, and prolongs every lease it holds by `lease`, in one
    /// statement; answers those, and what the tables say then.
    pub async fn renew(
        &self,
        owner: &str,
        lease: Duration,
    ) -> Result<(Vec<(String, i64)>, LeaseTable), StoreError> {
        let ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        let renew = concat!(
            "WITH alive AS (INSERT INTO federation_instances (name, until_ms) VALUES ($1, ",
            now_ms!(),
            " + $2) ON CONFLICT (name) DO UPDATE SET until_ms = excluded.until_ms) \
             UPDATE federation_leases SET until_ms = ",
            now_ms!(),
            " + $2 WHERE owner = $1 RETURNING unit, epoch"
        );
        let leases = concat!(
            "SELECT unit, owner, epoch, until_ms - ",
            now_ms!(),
            " FROM federation_leases ORDER BY unit"
        );
        let instances = concat!(
            "SELECT name FROM federation_instances WHERE until_ms > ",
            now_ms!(),
            " ORDER BY name"
        );
        let me = || vec![Value::from(owner.to_owned()), Value::from(ms)];
        let answers = self
            .run(vec![
                (renew, me()),
                (leases, Vec::new()),
                (instances, Vec::new()),
            ])
            .await?;
        read_table(answers).map_err(meaning)
    }

    /// Takes this unit if nobody has it, or its owner did not renew in time; answers the new epoch.
    /// `None`: it is somebody's, or somebody is just writing under it.
    pub async fn claim(
        &self,
        owner: &str,
        unit: Unit,
        lease: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        let claim = concat!(
            "WITH free AS (SELECT unit FROM federation_leases WHERE unit = $3 AND until_ms <= ",
            now_ms!(),
            " FOR UPDATE SKIP LOCKED) \
             UPDATE federation_leases l SET owner = $1, epoch = l.epoch + 1, until_ms = ",
            now_ms!(),
            " + $2 FROM free WHERE l.unit = free.unit RETURNING l.epoch"
        );
        let values = vec![owner.to_owned().into(), ms.into(), unit.to_string().into()];
        let answers = self.run(vec![(claim, values)]).await?;
        let row = answers.into_iter().flatten().next();
        let epoch = row.map(|row| row.get(0)).transpose().map_err(meaning)?;
        Ok(epoch.map(|epoch| Lease { unit, epoch }))
    }

    /// Gives a lease back: the next one who looks may have it.
    pub async fn give_back(&self, owner: &str, lease: Lease) -> Result<(), StoreError> {
        let sql = "UPDATE federation_leases SET owner = '', until_ms = 0 \
                   WHERE unit = $1 AND epoch = $2 AND owner = $3";
        let unit = lease.unit.to_string();
        let values = vec![unit.into(), lease.epoch.into(), owner.to_owned().into()];
        self.run(vec![(sql, values)]).await.map(drop)
    }

    /// Leaves: gives everything back, and takes this instance and those long gone from the list.
    pub async fn leave(&self, owner: &str) -> Result<(), StoreError> {
        let give = "UPDATE federation_leases SET owner = '', until_ms = 0 WHERE owner = $1";
        let go = concat!(
            "DELETE FROM federation_instances WHERE name = $1 OR until_ms < ",
            now_ms!(),
            " - 3600000"
        );
        let me = || vec![Value::from(owner.to_owned())];
        self.run(vec![(give, me()), (go, me())]).await.map(drop)
    }

    /// Runs statements one after the other on the store's own thread, each a transaction of its own;
    /// answers the rows of each. A connection that failed is given up.
    async fn run(&self, all: Vec<Sql>) -> Result<Vec<Vec<super::db::Row>>, StoreError> {
        let inner = self.inner.clone();
        let work = async move {
            let mut slot = inner.conn.lock().await;
            let whole = async {
                let mut conn = match slot.take() {
                    Some(conn) => conn,
                    None => inner.place.plain().await?,
                };
                let mut answers = Vec::with_capacity(all.len());
                for (sql, values) in all {
                    let mut query = conn.query(sql);
                    for value in values {
                        query = query.bind(value);
                    }
                    answers.push(query.fetch_all().await.map_err(meaning)?);
                }
                *slot = Some(conn);
                Ok(answers)
            };
            match tokio::time::timeout(inner.patience, whole).await {
                Ok(result) => result,
                Err(_) => Err(unavailable(format!(
                    "{}: the leases: no answer within {:?}",
                    inner.place.shown, inner.patience
                ))),
            }
        };
        self.inner.runtime.spawn(work).await.map_err(|_| closed())?
    }
}

/// What [`Leases::renew`] was answered.
fn read_table(
    answers: Vec<Vec<super::db::Row>>,
) -> Result<(Vec<(String, i64)>, LeaseTable), sqlx::Error> {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let held = next();
    let held = held.iter().map(|row| Ok((row.get(0)?, row.get(1)?)));
    let held = held.collect::<Result<Vec<_>, sqlx::Error>>()?;
    let leases = next();
    let leases = leases.iter().map(|row| {
        Ok(LeaseRow {
            unit: row.get(0)?,
            owner: row.get(1)?,
            epoch: row.get(2)?,
            left_ms: row.get(3)?,
        })
    });
    let leases = leases.collect::<Result<Vec<_>, sqlx::Error>>()?;
    let instances = next()
        .iter()
        .map(|row| row.get(0))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((held, LeaseTable { leases, instances }))
}

impl StoreError {
    /// Written under a lease that is another's now.
    pub(super) fn fenced(e: &sqlx::Error) -> Option<Self> {
        let sqlx::Error::AnyDriverError(inner) = e else {
            return None;
        };
        inner.is::<Fenced>().then(|| Self {
            kind: StoreErrorKind::Fenced,
            detail: inner.to_string(),
        })
    }
}
