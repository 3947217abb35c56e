//! Allow and block rules, reputation, rates.
//!
//! Every question is answered from memory: rules are a snapshot that an edit replaces once the store
//! has it, scores are written behind (a crash loses at most half a second of arithmetic), rates live
//! only here, on the monotonic clock.

pub mod lru;
mod rules;
pub mod windows;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::Notify;

use crate::clock::{Clock, UnixMs};
use crate::protocol::ProtocolId;
use crate::store::{Store, StoreError, TrustRow};

pub use rules::pattern;

use lru::Lru;
use rules::Rules;
use windows::Windows;

/// Score of a stranger.
pub const START_SCORE: i64 = 50;
/// Peers whose score is kept in memory at most.
const MAX_SCORES: usize = 262_144;
/// How long a changed score may wait for its write.
const WRITE_BEHIND: Duration = Duration::from_millis(500);
/// Scores written between two looks at what changed.
const FLUSH_CHUNK: usize = 1024;

/// Trust state; cloning shares it.
#[derive(Clone)]
pub struct Trust {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    rules: ArcSwap<Rules>,
    /// One edit of the rules at a time, so that a reload between the two halves of another loses
    /// nothing; readers never meet it.
    edits: tokio::sync::Mutex<()>,
    scores: Mutex<Scores>,
    changed: Notify,
    windows: Mutex<Windows>,
}

struct Scores {
    known: Lru<(String, String), i64>,
    dirty: HashMap<(ProtocolId, String), i64>,
}

/// What the rules say of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Blocked,
    Allowed,
    Quarantined,
    Ordinary,
}

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    Block,
    Allow,
    Quarantine,
}

impl Rule {
    /// Its name in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Allow => "allow",
            Self::Quarantine => "quarantine",
        }
    }

    /// The list of this name.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "block" => Some(Self::Block),
            "allow" => Some(Self::Allow),
            "quarantine" => Some(Self::Quarantine),
            _ => None,
        }
    }
}

impl Trust {
    /// Loads rules and scores, and starts writing scores behind on the current runtime.
    pub async fn open(store: Store, clock: Clock) -> Result<Self, StoreError> {
        let rules = Rules::new(store.trust_rules().await?);
        let mut known = Lru::new(MAX_SCORES);
        for (protocol, peer, score) in store.scores().await? {
            known.insert((protocol, peer), score.clamp(0, 100));
        }
        let inner = Arc::new(Inner {
            store,
            clock,
            rules: ArcSwap::from_pointee(rules),
            edits: tokio::sync::Mutex::new(()),
            scores: Mutex::new(Scores {
                known,
                dirty: HashMap::new(),
            }),
            changed: Notify::new(),
            windows: Mutex::new(Windows::new(windows::MAX_KEYS)),
        });
        tokio::spawn(write_behind(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Block wins over everything; `*.suffix` matches subdomains.
    pub fn standing(&self, protocol: ProtocolId, name: &str) -> Standing {
        let now = self.inner.clock.now_ms();
        self.inner.rules.load().standing(protocol, name, now)
    }

    /// The rule that a name's standing comes from; `None`: it is ordinary.
    pub fn ruling(&self, protocol: ProtocolId, name: &str) -> Option<(Standing, TrustRow)> {
        let now = self.inner.clock.now_ms();
        let rules = self.inner.rules.load();
        let (standing, row) = rules.ruling(protocol, name, now)?;
        Some((standing, row.clone()))
    }

    /// Every rule of every protocol, ended ones too, oldest first.
    pub fn rules(&self) -> Vec<TrustRow> {
        self.inner.rules.load().all()
    }

    /// Reads the rules from the store again: what another process wrote comes into force. On an
    /// error those in memory stay. Answers how many there are.
    pub async fn reload(&self) -> Result<usize, StoreError> {
        let _edit = self.inner.edits.lock().await;
        let rows = self.inner.store.trust_rules().await?;
        let count = rows.len();
        self.inner.rules.store(Arc::new(Rules::new(rows)));
        Ok(count)
    }

    /// Adds or replaces a rule without an end, in force when this returns; false: it was there.
    pub async fn add(
        &self,
        protocol: ProtocolId,
        rule: Rule,
        pattern: &str,
        reason: Option<&str>,
    ) -> Result<bool, StoreError> {
        let added = self.add_until(protocol, rule, pattern, reason, None);
        added.await.map(|(_, new)| new)
    }

    /// Adds or replaces a rule that ends by itself at `ends_ms`, in force when this returns. The
    /// rule as it is kept, and false if there was one for this pattern already.
    pub async fn add_until(
        &self,
        protocol: ProtocolId,
        rule: Rule,
        pattern: &str,
        reason: Option<&str>,
        ends_ms: Option<UnixMs>,
    ) -> Result<(TrustRow, bool), StoreError> {
        let _edit = self.inner.edits.lock().await;
        let mut row = TrustRow {
            id: 0,
            protocol: protocol.to_owned(),
            pattern: pattern.to_owned(),
            rule: rule.as_str().to_owned(),
            reason: reason.map(str::to_owned),
            created_ms: self.inner.clock.now_ms(),
            ends_ms,
        };
        self.inner.store.put_trust(row.clone()).await?.await?;
        // The store gives a rule its number; the snapshot shows it from then on.
        if let Ok(stored) = self.inner.store.trust_rules().await
            && let Some(found) = stored.into_iter().find(|r| {
                r.protocol == row.protocol && r.pattern == row.pattern && r.rule == row.rule
            })
        {
            row = found;
        }
        let mut new = false;
        self.inner.rules.rcu(|rules| {
            let mut next = Rules::clone(rules);
            new = next.put(rule, row.clone());
            next
        });
        Ok((row, new))
    }

    /// Removes; false: there was none.
    pub async fn remove(
        &self,
        protocol: ProtocolId,
        rule: Rule,
        pattern: &str,
    ) -> Result<bool, StoreError> {
        let _edit = self.inner.edits.lock().await;
        let commit = self
            .inner
            .store
            .remove_trust(protocol, pattern, rule.as_str())
            .await?;
        let there = commit.await?;
        self.inner.rules.rcu(|rules| {
            let mut next = Rules::clone(rules);
            next.remove(protocol, rule, pattern);
            next
        });
        Ok(there)
    }

    /// The rules of one list, oldest first.
    pub fn list(&self, protocol: ProtocolId, rule: Rule) -> Vec<TrustRow> {
        self.inner.rules.load().list(protocol, rule)
    }

    /// Score, 50 for a stranger.
    pub fn score(&self, protocol: ProtocolId, peer: &str) -> i64 {
        let scores = lock(&self.inner.scores);
        scores
            .known
            .peek(&(protocol.to_owned(), peer.to_owned()))
            .copied()
            .unwrap_or(START_SCORE)
    }

    /// Adds to the score, kept within 0..=100; written behind.
    pub fn charge(&self, protocol: ProtocolId, peer: &str, delta: i64) {
        let mut scores = lock(&self.inner.scores);
        let key = (protocol.to_owned(), peer.to_owned());
        let before = scores.known.peek(&key).copied().unwrap_or(START_SCORE);
        self.put_score(&mut scores, protocol, peer, before.saturating_add(delta));
    }

    /// Sets a score (tests, operators).
    pub fn set_score(&self, protocol: ProtocolId, peer: &str, score: i64) {
        let mut scores = lock(&self.inner.scores);
        self.put_score(&mut scores, protocol, peer, score);
    }

    fn put_score(&self, scores: &mut Scores, protocol: ProtocolId, peer: &str, score: i64) {
        let score = score.clamp(0, 100);
        let key = (protocol.to_owned(), peer.to_owned());
        let unchanged = scores.known.get_mut(&key).is_some_and(|s| *s == score);
        if unchanged {
            return;
        }
        scores.known.insert(key, score);
        // A store that takes nothing for long must not make this grow: memory stays right, the
        // oldest unwritten change of a stranger is what is lost.
        if scores.dirty.len() < MAX_SCORES {
            scores.dirty.insert((protocol, peer.to_owned()), score);
        }
        self.inner.changed.notify_one();
    }

    /// Counts one request in a sliding window of 60 s (monotonic) if fewer than `limit` are in it; false: over.
    /// The number of keys is bounded.
    pub fn admit(&self, key: &str, limit: u32) -> bool {
        lock(&self.inner.windows).admit(key, limit, Instant::now())
    }

    /// Whether `limit` requests are in the window already; counts nothing.
    pub fn full(&self, key: &str, limit: u32) -> bool {
        lock(&self.inner.windows).full(key, limit, Instant::now())
    }

    /// Takes the last request counted for this key back (it turned out not to be the key's own).
    pub fn withdraw(&self, key: &str) {
        lock(&self.inner.windows).withdraw(key);
    }

    /// Makes the window of `key` hold `count` requests (tests).
    pub fn preset_admit(&self, key: &str, count: u32) {
        lock(&self.inner.windows).preset(key, count, Instant::now());
    }

    /// Writes every changed score; for an orderly stop.
    pub async fn flush(&self) -> Result<(), StoreError> {
        while self.inner.flush_some().await? {}
        Ok(())
    }
}

impl Inner {
    /// Writes some changed scores; false: none was left.
    async fn flush_some(&self) -> Result<bool, StoreError> {
        let batch: Vec<_> = {
            let mut scores = lock(&self.scores);
            let keys: Vec<_> = scores.dirty.keys().take(FLUSH_CHUNK).cloned().collect();
            keys.into_iter()
                .filter_map(|key| scores.dirty.remove_entry(&key))
                .collect()
        };
        if batch.is_empty() {
            return Ok(false);
        }
        let written = self.write(&batch).await;
        if written.is_err() {
            let mut scores = lock(&self.scores);
            for (key, score) in batch {
                scores.dirty.entry(key).or_insert(score);
            }
        }
        written.map(|()| true)
    }

    async fn write(&self, batch: &[((ProtocolId, String), i64)]) -> Result<(), StoreError> {
        let mut commits = Vec::with_capacity(batch.len());
        for ((protocol, peer), score) in batch {
            commits.push(self.store.put_score(protocol, peer, *score).await?);
        }
        for commit in commits {
            commit.await?;
        }
        Ok(())
    }
}

/// Writes changed scores until the last handle is gone.
async fn write_behind(inner: Weak<Inner>) {
    loop {
        // Waits with a strong handle only for a moment at a time, so that dropping the last `Trust`
        // ends this task.
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let woken = tokio::time::timeout(WRITE_BEHIND, strong.changed.notified()).await;
        drop(strong);
        if woken.is_err() {
            continue;
        }
        tokio::time::sleep(WRITE_BEHIND).await;
        let Some(strong) = inner.upgrade() else {
            return;
        };
        loop {
            match strong.flush_some().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "reputation scores are not written yet; trying again");
                    strong.changed.notify_one();
                    break;
                }
            }
        }
    }
}

/// Nothing in these sections can panic half-way through a change, so a poisoned lock is as good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
