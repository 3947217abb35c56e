//! Changing our key: the plan that says who notices and when, and doing it in a running bridge.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::UnixMs;
use crate::identity::hex;
use crate::identity::ring::Keyring;
use crate::protocol::{PeerRecord, Refusal, Rotation};

use super::discover::WELL_KNOWN_PATH;
use super::{ID, Uam, keys, probe};

/// How long relays keep what they looked up, by default.
const CACHED_MS: i64 = 3_600_000;
/// Peers told of one by one.
const MAX_PEERS: usize = 10_000;
/// How often old keys are looked at.
const RETIRE: Duration = Duration::from_secs(600);

/// What a plan is made from.
pub struct Facts<'a> {
    pub domain: &'a str,
    pub ring: &'a Keyring,
    /// `uam.key_overlap`.
    pub overlap: Duration,
    /// Every peer known, and whether its key is pinned here.
    pub peers: &'a [(Arc<PeerRecord>, bool)],
    /// What our own well-known file shows from here; `None`: not looked at.
    pub own_page: Option<&'a str>,
    pub now: UnixMs,
}

/// Who will notice a new key, how and when; `done` is what has just been done.
pub fn report(facts: &Facts<'_>, done: Rotation) -> Value {
    let Facts {
        domain,
        ring,
        overlap,
        now,
        ..
    } = facts;
    let overlap = i64::try_from(overlap.as_millis()).unwrap_or(i64::MAX);
    let until = match (&ring.old, done) {
        (_, Rotation::Replace) => None,
        (Some(old), Rotation::Switch) => Some(old.until_ms),
        _ => Some(now.saturating_add(overlap)),
    };
    let url = format!("https://{domain}{WELL_KNOWN_PATH}");
    let peers: Vec<Value> = facts
        .peers
        .iter()
        .take(MAX_PEERS)
        .map(|(peer, pinned)| {
            let (how, by, detail) = if *pinned {
                (
                    "operator",
                    None,
                    "its key is pinned here, so it has probably pinned ours: tell its operator the \
                     new key; until it is taken up, or the overlap ends, messages to it are signed \
                     with the old one"
                        .to_owned(),
                )
            } else {
                (
                    "first_message",
                    Some(now.saturating_add(CACHED_MS)),
                    format!(
                        "at our first message after the switch: it fetches {url} when a signature does \
                         not hold; without one when it looks us up again, by default within the hour"
                    ),
                )
            };
            json!({
                "peer": peer.name, "how": how, "by_ms": by, "detail": detail,
                "knows_old_only": peer.facts.contains_key(keys::KNOWS),
            })
        })
        .collect();
    json!({
        "protocol": ID,
        "name": domain,
        "done": match done {
            Rotation::Plan => "nothing",
            Rotation::Prepare => "prepared",
            Rotation::Switch => "switched",
            Rotation::Replace => "replaced",
        },
        "keys": keys::list(ring, domain),
        "overlap_until_ms": until,
        "own_page": facts.own_page,
        "peers": peers,
    })
}

impl Uam {
    /// [`crate::protocol::Protocol::rotate`].
    pub(super) async fn turn_key(&self, wanted: Rotation) -> Result<Value, Refusal> {
        let now = self.clock.now_ms();
        let failed = |e: crate::identity::KeyFileError| Refusal::new("key_file", e.to_string());
        let changed = {
            let uam = self
                .me
                .upgrade()
                .ok_or_else(|| Refusal::new("stopping", "the bridge is stopping"))?;
            // Files are fsynced: not on a thread that answers requests.
            tokio::task::spawn_blocking(move || uam.keys.turn(wanted, now))
                .await
                .map_err(|e| Refusal::new("key_file", format!("the switch was interrupted: {e}")))?
                .map_err(failed)?
        };
        if changed {
            self.key_changed(wanted == Rotation::Replace);
            self.remember_active().await;
            if let Err(error) = self.store.changed(ID).await {
                tracing::warn!(%error, "other instances take the new key up at SIGHUP only");
            }
        }
        let page = self.own_page().await;
        let peers: Vec<_> = self
            .peers
            .all()
            .into_iter()
            .filter(|peer| peer.protocol == ID)
            .map(|peer| {
                let pinned = self.peers.pinned_key(ID, &peer.name).is_some();
                (peer, pinned)
            })
            .collect();
        Ok(report(
            &Facts {
                domain: self.domain(),
                ring: &self.keys.current().ring,
                overlap: self.config.key_overlap,
                peers: &peers,
                own_page: Some(&page),
                now,
            },
            wanted,
        ))
    }

    /// [`crate::protocol::Protocol::reload`]: the files may have been changed beside us.
    pub(super) fn reread_keys(&self) -> Result<(), Refusal> {
        let changed = self
            .keys
            .reread(self.clock.now_ms())
            .map_err(|e| Refusal::new("key_file", e.to_string()))?;
        if changed {
            self.key_changed(false);
            if let Some(uam) = self.me.upgrade() {
                tokio::spawn(async move { uam.remember_active().await });
            }
        }
        Ok(())
    }

    fn key_changed(&self, revoked: bool) {
        let current = self.keys.current();
        let old = current.ring.old.as_ref();
        let key_id = current.ring.active.public().fingerprint();
        tracing::info!(key = %key_id, revoked, "this relay signs with a new key");
        self.ops.event(
            "key",
            "rotated",
            ID,
            self.domain(),
            json!({
                "key_id": key_id,
                "old_key_id": old.map(|old| old.key.public().fingerprint()),
                "overlap_until_ms": old.map(|old| old.until_ms),
            }),
        );
    }

    /// So that the next start knows the key for our own.
    async fn remember_active(&self) {
        let public = self.keys.current().ring.active.public();
        let (id, hex) = (public.fingerprint(), hex(&public.to_bytes()));
        let stored = match self.store.put_server_key(ID, &id, &hex).await {
            Ok(commit) => commit.await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            tracing::warn!(%error, "the new key was not noted in the store");
        }
    }

    /// What relays find that look for our key, in a few words.
    async fn own_page(&self) -> String {
        let base = format!("https://{}", self.domain);
        let ours = self.public_key();
        match probe::shown_key(&*self.net, &base, &self.domain, self.clock.now_ms()).await {
            Ok(key) if key == ours => format!("{base}{WELL_KNOWN_PATH} shows the active key"),
            Ok(key) => format!(
                "{base}{WELL_KNOWN_PATH} shows another key ({}): a cache, or another server; relays \
                 will not notice a switch before it shows the active one",
                key.fingerprint()
            ),
            Err(why) => {
                format!("relays look for our key where we do not find it from here: {why}")
            }
        }
    }

    /// Removes old keys when their time is over, for as long as the relay lives.
    pub(super) fn spawn_retirement(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETIRE).await;
                let Some(uam) = weak.upgrade() else { return };
                if !uam.clock.steady() {
                    continue;
                }
                match uam.keys.retire(uam.clock.now_ms()) {
                    Ok(0) => {}
                    Ok(count) => {
                        tracing::info!(count, "the overlap is over: the old key is removed");
                        let body = json!({"count": count});
                        uam.ops.event("key", "retired", ID, uam.domain(), body);
                    }
                    Err(error) => tracing::warn!(%error, "an old key stays behind"),
                }
            }
        });
    }
}
