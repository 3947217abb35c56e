//! A peer's public invites: what its list says, believed as far as it can be, and remembered.
//!
//! The list is a stranger's text: it is bounded in bytes and entries, every field is checked as ours
//! would be, and the source is always the peer that was asked, whatever the entry says. The last good
//! answer of a peer is kept in the store and served, marked as such, while the peer is away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::UnixMs;
use crate::protocol::Record;
use crate::protocols::plain;
use crate::protocols::voltchat::{ID, ids, text};
use crate::store::{Store, StoreError};

/// Invites of one peer kept at most; the rest is counted.
pub const MAX_KEPT: usize = 500;
/// Peers whose list is remembered at most; the one asked longest ago is forgotten first.
const MAX_PEERS: usize = 256;
/// Kind of the store's rows; the key is the peer's host.
const KIND: &str = "browsed";
/// Longest name, UTF-16 units.
const NAME: usize = 140;

/// One invite of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Theirs {
    pub id: String,
    pub code: String,
    pub server_id: String,
    pub server_name: Option<String>,
    /// The name the peer gives its own server.
    pub mainline: Option<String>,
    pub expires_ms: Option<UnixMs>,
}

/// A peer's list as it was at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    pub fetched_ms: UnixMs,
    pub invites: Vec<Theirs>,
    /// Entries that were wrong or too many.
    pub left_out: usize,
}

impl Listing {
    /// Reads an answer. The error is a sentence about what the peer sent.
    pub fn read(body: &[u8], now: UnixMs) -> Result<Self, String> {
        let Ok(Value::Array(entries)) = plain::json(body) else {
            return Err("its answer is no list of invites".into());
        };
        let total = entries.len();
        let mut invites: Vec<Theirs> = Vec::new();
        let mut known = BTreeSet::new();
        for entry in &entries {
            if invites.len() >= MAX_KEPT {
                break;
            }
            if let Some(invite) = theirs(entry)
                && known.insert(invite.id.clone())
            {
                invites.push(invite);
            }
        }
        Ok(Self {
            fetched_ms: now,
            left_out: total - invites.len(),
            invites,
        })
    }

    /// As it is shown at `now`: what is past its time by then is not in it. `away`: why the peer could
    /// not be asked.
    pub fn shown(&self, host: &str, now: UnixMs, away: Option<&str>) -> Value {
        let alive = self
            .invites
            .iter()
            .filter(|invite| invite.expires_ms.is_none_or(|at| at > now));
        let invites: Vec<Value> = alive
            .map(|invite| {
                json!({
                    "id": invite.id,
                    "code": invite.code,
                    "serverId": invite.server_id,
                    "serverName": invite.server_name,
                    "sourceHost": host,
                    "sourceMainline": invite.mainline,
                    "expiresAt": invite.expires_ms.map(text::iso),
                })
            })
            .collect();
        json!({
            "peer": host,
            "fetchedAt": text::iso(self.fetched_ms),
            "cached": self.fetched_ms != now || away.is_some(),
            "error": away,
            "leftOut": self.left_out,
            "invites": invites,
        })
    }
}

fn theirs(entry: &Value) -> Option<Theirs> {
    let id = |name: &str| {
        let text = entry.get(name)?.as_str()?;
        ids::id(text).map(str::to_owned)
    };
    let expires_ms = match entry.get("expiresAt") {
        None | Some(Value::Null) => None,
        Some(at) => Some(text::parse_time(at.as_str()?)?),
    };
    Some(Theirs {
        id: id("id")?,
        code: id("code")?,
        server_id: id("serverId")?,
        server_name: text::field(entry.get("serverName"), NAME),
        mainline: text::field(entry.get("sourceMainline"), NAME),
        expires_ms,
    })
}

/// The lists remembered, by host; the lists themselves stay in the store.
pub struct Seen {
    /// When each was fetched.
    at: Mutex<BTreeMap<String, UnixMs>>,
}

impl Seen {
    /// Those that the store has. A row that cannot be read is as good as none.
    pub async fn open(store: &Store) -> Result<Self, StoreError> {
        let rows = store.records(ID, KIND).await?;
        let at = rows.into_iter().map(|(host, value)| {
            let listing: Option<Listing> = serde_json::from_str(&value).ok();
            (host, listing.map_or(0, |listing| listing.fetched_ms))
        });
        Ok(Self {
            at: Mutex::new(at.collect()),
        })
    }

    /// The last list of a host.
    pub async fn last(&self, store: &Store, host: &str) -> Result<Option<Listing>, StoreError> {
        if !self.lock().contains_key(host) {
            return Ok(None);
        }
        let value = store.record(ID, KIND, host).await?;
        Ok(value.and_then(|value| serde_json::from_str(&value).ok()))
    }

    /// Remembers a host's list.
    pub async fn keep(
        &self,
        store: &Store,
        host: &str,
        listing: &Listing,
    ) -> Result<(), StoreError> {
        let Ok(value) = serde_json::to_string(listing) else {
            return Ok(());
        };
        let mut rows = vec![Record {
            kind: KIND,
            key: host.to_owned(),
            value: Some(value),
        }];
        let too_old = note(&mut self.lock(), host, listing.fetched_ms);
        rows.extend(too_old.into_iter().map(|key| Record {
            kind: KIND,
            key,
            value: None,
        }));
        store.put_records(ID, rows).await?.await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, UnixMs>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes a host and answers those forgotten for it.
fn note(at: &mut BTreeMap<String, UnixMs>, host: &str, fetched_ms: UnixMs) -> Vec<String> {
    at.insert(host.to_owned(), fetched_ms);
    let mut forgotten = Vec::new();
    while at.len() > MAX_PEERS {
        let others = at.iter().filter(|(name, _)| *name != host);
        let Some(oldest) = others
            .min_by_key(|(_, at)| **at)
            .map(|(name, _)| name.clone())
        else {
            break;
        };
        at.remove(&oldest);
        forgotten.push(oldest);
    }
    forgotten
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = 1_700_000_000_000;

    fn entry(n: usize) -> Value {
        json!({"id": format!("sinv_{n}"), "code": "ABC", "serverId": "s1", "serverName": " Lab ",
               "sourceHost": "evil.example", "sourceMainline": "B", "expiresAt": null})
    }

    #[test]
    fn the_source_of_an_invite_is_whom_we_asked() {
        let listing = Listing::read(json!([entry(1)]).to_string().as_bytes(), NOW).unwrap();
        let shown = listing.shown("b.example", NOW, None);
        assert_eq!(shown["cached"], false);
        assert_eq!(
            shown["invites"][0],
            json!({"id": "sinv_1", "code": "ABC", "serverId": "s1", "serverName": "Lab",
                   "sourceHost": "b.example", "sourceMainline": "B", "expiresAt": null})
        );
    }

    #[test]
    fn wrong_entries_and_those_beyond_the_bound_are_counted_and_left_out() {
        let mut entries: Vec<Value> = (0..MAX_KEPT + 10).map(entry).collect();
        entries.insert(0, json!({"id": "a b", "code": "X", "serverId": "s"}));
        entries.insert(1, json!("text"));
        entries.insert(2, entry(0));
        let body = Value::Array(entries).to_string();
        let listing = Listing::read(body.as_bytes(), NOW).unwrap();
        assert_eq!((listing.invites.len(), listing.left_out), (MAX_KEPT, 13));
        for body in ["{}", "null", "[", "\"x\""] {
            assert!(Listing::read(body.as_bytes(), NOW).is_err(), "{body}");
        }
    }

    #[test]
    fn a_remembered_list_says_so_and_loses_what_is_past() {
        let mut dying = entry(1);
        dying["expiresAt"] = "2023-11-14T22:13:21Z".into();
        let body = json!([dying, entry(2)]).to_string();
        let listing = Listing::read(body.as_bytes(), NOW).unwrap();
        assert_eq!(
            listing.shown("b", NOW, None)["invites"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        let later = listing.shown("b", NOW + 1_000, Some("it is away"));
        assert_eq!(later["invites"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&later["cached"], &later["error"]),
            (&json!(true), &json!("it is away"))
        );
        assert_eq!(later["fetchedAt"], "2023-11-14T22:13:20.000Z");
    }

    #[test]
    fn the_peer_asked_longest_ago_is_forgotten_first() {
        let mut at = BTreeMap::new();
        for n in 0..MAX_PEERS {
            let fetched = NOW - i64::try_from(n).unwrap();
            assert!(note(&mut at, &format!("p{n}"), fetched).is_empty());
        }
        let oldest = format!("p{}", MAX_PEERS - 1);
        assert_eq!(note(&mut at, "new", NOW - 100_000), [oldest]);
        assert!(at.contains_key("new") && at.len() == MAX_PEERS);
    }
}
