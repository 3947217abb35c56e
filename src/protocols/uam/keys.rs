//! Our relay key while it changes: who signs with what, and who notices when.
//!
//! UAM publishes one key. A relay checks a signature with the key it remembers, however old; when that
//! does not hold it fetches our well-known file, once, and remembers what it finds. So there is no way
//! to announce a key beforehand on the wire: publishing it and signing with it must change at the same
//! instant, or requests signed with the one meet the other. They do change at one instant here
//! ([`Keys::current`] is what the well-known file shows *and* what signs), and the overlap is on our
//! side:
//!
//! - A request signed before the switch and refused (401) after it is signed anew at once; it uses up
//!   no attempt.
//! - A peer that refuses the new key (it has pinned the old one, or something still shows it the old
//!   file) is sent requests signed with the old key until the overlap ends. The new one is tried again
//!   every hour. Operators are told on `fed.ops.key.unnoticed`, and `noticed` when that is over.
//! - The next key can be made beforehand and told to people who pin it.
//!
//! What others send us needs no key of ours: payloads are sealed to agents. A key that is no longer
//! ours alone is *replaced*: then nothing is signed with the old one any more.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::json;

use crate::clock::UnixMs;
use crate::identity::ring::Keyring;
use crate::identity::{KeyFileError, KeyOrigin, KeyText, SigningKey};
use crate::protocol::{Judgement, KeyState, Learned, OwnKey, PeerRecord, Rotation, Try, Verdict};

use super::ID;

/// Name of the fact that a peer wants our old key: `{"key": fingerprint, "again_ms": time}`.
pub(super) const KNOWS: &str = "knows_our_key";
/// How its files are written, as the published relay does.
const TEXT: KeyText = KeyText::Base64;
/// A peer that wanted the old key is tried with the new one after this long.
const TRY_NEW_MS: i64 = 3_600_000;

/// Our keys in force; the files behind them.
pub(super) struct Keys {
    path: PathBuf,
    overlap: Duration,
    current: ArcSwap<InForce>,
}

/// One state of the keys.
pub(super) struct InForce {
    pub ring: Keyring,
    /// When this process began to use the active key; 0: at its start.
    pub swapped_ms: UnixMs,
}

impl Keys {
    /// Reads the files; makes the key if there is none.
    pub fn open(
        path: PathBuf,
        overlap: Duration,
        now: UnixMs,
    ) -> Result<(Self, KeyOrigin), KeyFileError> {
        let (ring, origin) = Keyring::open(&path, TEXT, overlap, now)?;
        let current = ArcSwap::from_pointee(InForce {
            ring,
            swapped_ms: 0,
        });
        let keys = Self {
            path,
            overlap,
            current,
        };
        Ok((keys, origin))
    }

    /// What is published and signed with now.
    pub fn current(&self) -> Arc<InForce> {
        self.current.load_full()
    }

    /// Reads the files anew; true when the active key is another one now.
    pub fn reread(&self, now: UnixMs) -> Result<bool, KeyFileError> {
        let (ring, _) = Keyring::open(&self.path, TEXT, self.overlap, now)?;
        let before = self.current();
        let changed = ring.active.public() != before.ring.active.public();
        let swapped_ms = if changed { now } else { before.swapped_ms };
        self.current.store(Arc::new(InForce { ring, swapped_ms }));
        Ok(changed)
    }

    /// Changes the files as wanted, then [`Keys::reread`].
    pub fn turn(&self, wanted: Rotation, now: UnixMs) -> Result<bool, KeyFileError> {
        turn(&self.path, wanted, now)?;
        self.reread(now)
    }

    /// Removes old keys whose overlap has ended; how many.
    pub fn retire(&self, now: UnixMs) -> Result<usize, KeyFileError> {
        let removed = Keyring::prune(&self.path, self.overlap, now)?;
        if removed > 0 {
            self.reread(now)?;
        }
        Ok(removed)
    }
}

/// Changes the files of a key: for a bridge that runs and for one that does not.
pub fn turn(path: &std::path::Path, wanted: Rotation, now: UnixMs) -> Result<(), KeyFileError> {
    match wanted {
        Rotation::Plan => Ok(()),
        Rotation::Prepare => Keyring::prepare(path, TEXT),
        Rotation::Switch => Keyring::switch(path, TEXT, now, false),
        Rotation::Replace => Keyring::switch(path, TEXT, now, true),
    }
}

impl InForce {
    /// The key for a request to this peer.
    pub fn for_peer(&self, peer: &PeerRecord, now: UnixMs) -> &SigningKey {
        match &self.ring.old {
            Some(old) if self.wants_old(peer, now) => &old.key,
            _ => &self.ring.active,
        }
    }

    /// Whether this peer is served with the old key now.
    fn wants_old(&self, peer: &PeerRecord, now: UnixMs) -> bool {
        let Some(old) = self.ring.old.as_ref().filter(|old| now < old.until_ms) else {
            return false;
        };
        let Some(fact) = peer.facts.get(KNOWS) else {
            return false;
        };
        let again = fact["again_ms"].as_i64().unwrap_or(0);
        // A clock set back does not keep it alive for longer.
        let fresh = (0..=TRY_NEW_MS).contains(&again.saturating_sub(now));
        fresh && fact["key"].as_str() == Some(&old.key.public().fingerprint())
    }

    /// What a 401 means while the key changes; `None`: it is not about that. At most two requests more
    /// are made for it, and none of them uses up an attempt.
    pub fn refused(&self, peer: &PeerRecord, attempt: &Try) -> Option<Judgement> {
        if attempt.again > 1 {
            return None;
        }
        if attempt.now_ms < self.swapped_ms {
            // Signed before the switch, read after it.
            return Some(again(Vec::new()));
        }
        let old = self
            .ring
            .old
            .as_ref()
            .filter(|old| attempt.now_ms < old.until_ms)?;
        let value = if self.wants_old(peer, attempt.now_ms) {
            serde_json::Value::Null
        } else {
            json!({
                "key": old.key.public().fingerprint(),
                "again_ms": attempt.now_ms.saturating_add(TRY_NEW_MS),
            })
        };
        Some(again(vec![Learned { key: KNOWS, value }]))
    }

    /// After a success: what to forget about a peer that took the new key.
    pub fn taken(&self, peer: &PeerRecord, attempt: &Try) -> Option<Learned> {
        let noticed = peer.facts.contains_key(KNOWS) && !self.wants_old(peer, attempt.now_ms);
        (noticed && attempt.now_ms >= self.swapped_ms).then_some(Learned {
            key: KNOWS,
            value: serde_json::Value::Null,
        })
    }

    /// For lists.
    pub fn list(&self, domain: &str) -> Vec<OwnKey> {
        list(&self.ring, domain)
    }
}

/// The keys of a ring for lists: active, next, old.
pub fn list(ring: &Keyring, domain: &str) -> Vec<OwnKey> {
    let own = |key: &SigningKey, state, since_ms, until_ms| OwnKey {
        protocol: ID.to_owned(),
        name: domain.to_owned(),
        state,
        fingerprint: key.public().fingerprint(),
        public_key: key.public().to_base64(),
        since_ms,
        until_ms,
    };
    let mut keys = vec![own(&ring.active, KeyState::Active, ring.since_ms, None)];
    if let Some(next) = &ring.next {
        keys.push(own(&next.key, KeyState::Next, next.since_ms, None));
    }
    if let Some(old) = &ring.old {
        let until = Some(old.until_ms);
        keys.push(own(&old.key, KeyState::Old, old.retired_ms, until));
    }
    keys
}

fn again(learned: Vec<Learned>) -> Judgement {
    Judgement {
        verdict: Verdict::Again,
        learned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ring::OldKey;
    use crate::protocol::PeerName;

    const NOW: UnixMs = 1_795_246_080_000;

    fn keys(swapped_ms: UnixMs) -> InForce {
        InForce {
            ring: Keyring {
                active: SigningKey::from_seed([2; 32]),
                since_ms: NOW,
                next: None,
                old: Some(OldKey {
                    key: SigningKey::from_seed([1; 32]),
                    retired_ms: NOW,
                    until_ms: NOW + 10 * TRY_NEW_MS,
                }),
            },
            swapped_ms,
        }
    }

    fn peer() -> PeerRecord {
        PeerRecord {
            protocol: ID,
            name: PeerName::parse("beta.test").unwrap(),
            endpoint: "https://beta.test/x".into(),
            alternatives: vec![],
            public_key: None,
            discovered_via: "well-known".into(),
            last_verified_ms: 0,
            ttl_ms: None,
            facts: serde_json::Map::new(),
        }
    }

    fn attempt(now_ms: UnixMs, again: u32) -> Try {
        Try {
            number: 1,
            now_ms,
            again,
            traceparent: None,
        }
    }

    /// The answer, with what was learned taken into the record.
    fn refuse(keys: &InForce, peer: &mut PeerRecord, attempt: &Try) -> bool {
        let Some(judged) = keys.refused(peer, attempt) else {
            return false;
        };
        assert_eq!(judged.verdict, Verdict::Again);
        for fact in judged.learned {
            if fact.value.is_null() {
                peer.facts.remove(fact.key);
            } else {
                peer.facts.insert(fact.key.into(), fact.value);
            }
        }
        true
    }

    #[test]
    fn what_was_signed_before_the_switch_is_signed_anew() {
        let (keys, mut peer) = (keys(NOW), peer());
        assert!(refuse(&keys, &mut peer, &attempt(NOW - 1, 0)));
        assert!(peer.facts.is_empty(), "it says nothing about the peer");
    }

    #[test]
    fn a_peer_that_refuses_the_new_key_gets_the_old_one_and_the_new_one_again_after_an_hour() {
        let (keys, mut peer) = (keys(NOW), peer());
        let signer = |peer: &PeerRecord, now| keys.for_peer(peer, now).public();
        let (new, old) = (
            keys.ring.active.public(),
            keys.ring.old.as_ref().unwrap().key.public(),
        );
        assert_eq!(signer(&peer, NOW), new);
        assert!(refuse(&keys, &mut peer, &attempt(NOW, 0)));
        assert_eq!(signer(&peer, NOW + 1), old);
        assert_eq!(keys.taken(&peer, &attempt(NOW + 1, 1)), None);
        let later = NOW + TRY_NEW_MS + 1;
        assert_eq!(signer(&peer, later), new);
        let forget = keys.taken(&peer, &attempt(later, 0)).unwrap();
        assert!(forget.value.is_null());
    }

    #[test]
    fn a_peer_that_refuses_both_is_asked_three_times_and_no_more() {
        let (keys, mut peer) = (keys(NOW), peer());
        let asked = (0..9).take_while(|n| refuse(&keys, &mut peer, &attempt(NOW, *n)));
        assert_eq!(asked.count(), 2);
    }

    #[test]
    fn after_the_overlap_the_old_key_is_not_used() {
        let (keys, mut peer) = (keys(NOW), peer());
        assert!(refuse(
            &keys,
            &mut peer,
            &attempt(NOW + 10 * TRY_NEW_MS - 1, 0)
        ));
        let over = NOW + 10 * TRY_NEW_MS;
        assert_eq!(
            keys.for_peer(&peer, over).public(),
            keys.ring.active.public()
        );
        assert!(keys.refused(&peer, &attempt(over, 0)).is_none());
    }
}
