//! Questions about peers, trust, keys and protocols' own rows.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Answer, unreadable};
use crate::protocol::{PeerName, PeerRecord, ProtocolId};
use crate::store::db::{Db, Row};
use crate::store::types::{HealthRow, TrustRow};

/// Protocols whose names are kept; far more than exist.
const MOST_PROTOCOLS: usize = 64;

/// A protocol's name as the `&'static str` it is elsewhere. A name is kept once for the life of the
/// process, and not more than [`MOST_PROTOCOLS`] of them.
pub(in crate::store) fn protocol_id(name: &str) -> Answer<ProtocolId> {
    static NAMES: OnceLock<Mutex<HashSet<&'static str>>> = OnceLock::new();
    let mut names = NAMES
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match names.get(name) {
        Some(known) => Ok(known),
        None if names.len() >= MOST_PROTOCOLS => {
            Err(unreadable("there are more protocols than there can be"))
        }
        None => {
            let kept: &'static str = Box::leak(name.into());
            names.insert(kept);
            Ok(kept)
        }
    }
}

/// What is known of peers. A row that cannot be read costs only itself: it is found anew.
pub(in crate::store) async fn peers(db: Db) -> Answer<Vec<PeerRecord>> {
    let rows = db
        .query(
            "SELECT protocol, domain, federation_url, alternatives, public_key, discovered_via, \
             last_verified_ms, ttl_ms, facts FROM known_relays WHERE status = 'active' \
             ORDER BY protocol, domain",
        )
        .fetch_all()
        .await?;
    let mut peers = Vec::with_capacity(rows.len());
    for row in &rows {
        match peer(row) {
            Ok(peer) => peers.push(peer),
            Err(error) => {
                let (protocol, domain): (String, String) = (row.get(0)?, row.get(1)?);
                tracing::warn!(%error, protocol, domain, "what was stored of a peer cannot be read; it is found anew");
            }
        }
    }
    Ok(peers)
}

fn peer(row: &Row) -> Answer<PeerRecord> {
    let json = |at: usize| row.get::<String>(at);
    let protocol: String = row.get(0)?;
    let key: Option<Vec<u8>> = row.get(4)?;
    Ok(PeerRecord {
        protocol: protocol_id(&protocol)?,
        name: PeerName::parse(&json(1)?).map_err(unreadable)?,
        endpoint: row.get(2)?,
        alternatives: serde_json::from_str(&json(3)?).map_err(unreadable)?,
        public_key: key
            .map(<[u8; 32]>::try_from)
            .transpose()
            .map_err(|_| unreadable("a public key that is not 32 bytes long"))?,
        discovered_via: row.get(5)?,
        last_verified_ms: row.get(6)?,
        ttl_ms: row.get(7)?,
        facts: serde_json::from_str(&json(8)?).map_err(unreadable)?,
    })
}

pub(in crate::store) async fn health(db: Db) -> Answer<Vec<HealthRow>> {
    let rows = db
        .query("SELECT protocol, peer, facts FROM peer_health ORDER BY protocol, peer")
        .fetch_all()
        .await?;
    rows.iter()
        .map(|r| {
            Ok(HealthRow {
                protocol: r.get(0)?,
                peer: r.get(1)?,
                facts: r.get(2)?,
            })
        })
        .collect()
}

pub(in crate::store) async fn trust_rules(db: Db) -> Answer<Vec<TrustRow>> {
    let rows = db
        .query(
            "SELECT id, protocol, pattern, rule, reason, created_ms, ends_ms FROM federation_trust \
         ORDER BY id",
        )
        .fetch_all()
        .await?;
    rows.iter()
        .map(|r| {
            Ok(TrustRow {
                id: r.get(0)?,
                protocol: r.get(1)?,
                pattern: r.get(2)?,
                rule: r.get(3)?,
                reason: r.get(4)?,
                created_ms: r.get(5)?,
                ends_ms: r.get(6)?,
            })
        })
        .collect()
}

pub(in crate::store) async fn scores(db: Db) -> Answer<Vec<(String, String, i64)>> {
    let rows = db
        .query("SELECT protocol, peer, score FROM relay_reputation ORDER BY protocol, peer")
        .fetch_all()
        .await?;
    rows.iter()
        .map(|r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .collect()
}

pub(in crate::store) async fn records(
    db: Db,
    protocol: ProtocolId,
    kind: String,
) -> Answer<Vec<(String, String)>> {
    let rows = db.query(
        "SELECT key, value FROM protocol_records WHERE protocol = $1 AND kind = $2 ORDER BY key",
    )
    .bind(protocol)
    .bind(kind)
    .fetch_all()
    .await?;
    rows.iter().map(|r| Ok((r.get(0)?, r.get(1)?))).collect()
}

pub(in crate::store) async fn record(
    db: Db,
    protocol: ProtocolId,
    kind: String,
    key: String,
) -> Answer<Option<String>> {
    let row = db
        .query("SELECT value FROM protocol_records WHERE protocol = $1 AND kind = $2 AND key = $3")
        .bind(protocol)
        .bind(kind)
        .bind(key)
        .fetch_optional()
        .await?;
    row.map(|r| r.get(0)).transpose()
}

pub(in crate::store) async fn records_of(
    db: Db,
    protocol: ProtocolId,
    kind: &'static str,
    keys: Vec<String>,
) -> Answer<HashMap<String, String>> {
    let mut found = HashMap::new();
    for key in keys {
        let value = record(db.clone(), protocol, kind.to_owned(), key.clone()).await?;
        found.extend(value.map(|value| (key, value)));
    }
    Ok(found)
}

pub(in crate::store) async fn server_keys(
    db: Db,
    protocol: ProtocolId,
) -> Answer<Vec<(String, String, i64)>> {
    let rows = db
        .query(
            "SELECT key_id, public_key, first_seen_ms FROM federation_server_keys \
         WHERE protocol = $1 ORDER BY first_seen_ms, key_id",
        )
        .bind(protocol)
        .fetch_all()
        .await?;
    rows.iter()
        .map(|r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .collect()
}
