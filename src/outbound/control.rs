//! What operators, and other rooms, tell the lanes.
//!
//! Every order goes through the channel of the shard that owns the peer's lane, so it is in order with
//! all else that happens to the lane, and no lock is shared with deliveries. What must outlive a
//! restart is answered when it is on disk.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};

use super::intake::shard_of;
use super::lane::{Lane, Outlook};
use super::orders::What;
use super::peer_set::PeerSet;
use super::shard::{Ask, LaneKey, Replied, Work};
use crate::bus::Bus;
use crate::clock::{Clock, UnixMs};
use crate::cluster::{Hold, Tenure};
use crate::peers::Lanes;
use crate::peers::health::{Facts, Pause, Policy, Verdict};
use crate::protocol::{PeerName, Protocol, ProtocolId};
use crate::store::{Store, StoreError};

/// Rows made due by one commit.
const FLUSH_STEP: usize = 5_000;

/// Handle for orders and questions; cloning shares it.
#[derive(Clone)]
pub struct Control {
    pub(super) shards: Vec<mpsc::Sender<Work>>,
    pub(super) protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
    pub(super) listening: PeerSet,
    pub(super) paused: PeerSet,
    pub(super) store: Store,
    pub(super) clock: Clock,
    /// Wakes the publisher of dead letters.
    pub(super) dead: Arc<Notify>,
    pub(super) tenure: Tenure,
    /// The way to other instances.
    pub(super) others: Option<Bus>,
}

/// Why an order could not be carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no protocol is called {0:?}")]
    UnknownProtocol(String),
    #[error("the bridge is stopping")]
    Stopped,
    #[error("another instance serves this peer, or none does at the moment; try again")]
    Elsewhere,
    #[error("{0} is paused by an operator; resume it first")]
    Paused(String),
    #[error("the time until which to pause is over already")]
    PauseIsOver,
    /// What the owner of the lane answered.
    #[error("the instance that serves this peer: {0}")]
    Owner(String),
    #[error("it is done, but could not be written down yet, so a restart would forget it: {0}")]
    NotWritten(StoreError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of the wish for an early attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probed {
    /// One attempt is made as soon as none is in flight.
    Begun,
    /// No message waits for this peer, so there is nothing to try it with.
    NothingWaits,
}

/// How a peer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Deliveries go as they come.
    Closed,
    /// It failed lately; rows wait for their own retries.
    BackingOff,
    /// It asked for patience.
    Throttled,
    /// It failed so often that one attempt at a time finds out whether it is back.
    Open,
    /// An operator paused it.
    Paused,
}

/// What an operator is shown of a peer's lane. Times are milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerOutlook {
    #[serde(skip_deserializing)]
    pub protocol: &'static str,
    pub peer: String,
    pub state: PeerState,
    /// The operator's pause.
    pub paused: Option<Pause>,
    /// Failures counted since the last success.
    pub failures: u32,
    pub last_failure_ms: Option<UnixMs>,
    pub last_failure_code: Option<String>,
    pub last_failure: Option<String>,
    /// When the peer last took something, as far as this run and the last outage tell.
    pub last_success_ms: Option<UnixMs>,
    /// Average time of an attempt, milliseconds.
    pub average_ms: Option<f64>,
    #[serde(flatten)]
    pub lane: Outlook,
}

impl PeerOutlook {
    pub(super) fn of(
        key: &LaneKey,
        lane: &Lane,
        average_ms: Option<f64>,
        policy: &Policy,
        now: UnixMs,
    ) -> Self {
        let facts = &lane.facts;
        let time = |t: UnixMs| (t > 0).then_some(t);
        let text = |t: &String| (!t.is_empty()).then(|| t.clone());
        Self {
            protocol: key.0,
            peer: key.1.to_string(),
            state: state(facts, policy, now),
            paused: facts.pause.clone(),
            failures: facts.failures,
            last_failure_ms: time(facts.last_failure_ms),
            last_failure_code: text(&facts.last_code),
            last_failure: text(&facts.last_detail),
            last_success_ms: time(facts.last_success_ms),
            average_ms,
            lane: lane.outlook(policy, now),
        }
    }
}

fn state(facts: &Facts, policy: &Policy, now: UnixMs) -> PeerState {
    match facts.verdict(policy, now) {
        Verdict::Paused { .. } => PeerState::Paused,
        _ if facts.throttled_at(now) => PeerState::Throttled,
        _ if facts.tripped(policy) => PeerState::Open,
        _ if facts.failures > 0 => PeerState::BackingOff,
        _ => PeerState::Closed,
    }
}

impl Control {
    /// Attempts nothing for this peer until [`Control::resume`], or until that time. New messages stay
    /// rows; the clock of their schedules stands still, `Fed-Expires` runs on. Survives a restart.
    pub async fn pause(
        &self,
        protocol: &str,
        peer: &PeerName,
        reason: Option<String>,
        until_ms: Option<i64>,
    ) -> Result<(), ControlError> {
        if until_ms.is_some_and(|t| t <= self.clock.now_ms()) {
            return Err(ControlError::PauseIsOver);
        }
        self.ask(protocol, peer, Ask::Pause { reason, until_ms })
            .await
            .map(drop)
    }

    /// Ends a pause. One that is not paused is left as it is.
    pub async fn resume(&self, protocol: &str, peer: &PeerName) -> Result<(), ControlError> {
        self.ask(protocol, peer, Ask::Resume).await.map(drop)
    }

    /// One attempt now, even while the peer is backing off. When it fails it counts for nothing.
    pub async fn probe(&self, protocol: &str, peer: &PeerName) -> Result<Probed, ControlError> {
        match self.ask(protocol, peer, Ask::Probe).await? {
            Replied::Probe(probed) => Ok(probed),
            Replied::Done | Replied::Outlook(_) => Err(ControlError::Stopped),
        }
    }

    /// Forgets the peer's failures and the patience it asked for; its rows keep their times.
    pub async fn reset(&self, protocol: &str, peer: &PeerName) -> Result<(), ControlError> {
        self.ask(protocol, peer, Ask::Reset).await.map(drop)
    }

    /// Makes everything that waits for a retry due now, and lets one attempt go at once; answers how
    /// many messages that were. A paused peer's go when it is resumed.
    pub async fn flush(&self, protocol: &str, peer: &PeerName) -> Result<u64, ControlError> {
        let key = self.key(protocol, peer)?;
        let (mut rows, now) = (0, self.clock.now_ms());
        loop {
            let step = self.store.make_due(key.0, &key.1, now, FLUSH_STEP);
            let changed = step.await?.await?;
            rows += changed;
            if changed < FLUSH_STEP as u64 {
                break;
            }
        }
        self.ask(protocol, peer, Ask::Flushed).await?;
        Ok(rows)
    }

    /// How the peer is doing, and what happens next.
    pub async fn look(&self, protocol: &str, peer: &PeerName) -> Result<PeerOutlook, ControlError> {
        match self.ask(protocol, peer, Ask::Look).await? {
            Replied::Outlook(outlook) => Ok(*outlook),
            Replied::Done | Replied::Probe(_) => Err(ControlError::Stopped),
        }
    }

    /// Rows of this peer were changed on disk (pending again, due now, dropped), the first of them with
    /// this number: the lane looks again.
    pub async fn tail(
        &self,
        protocol: &str,
        peer: &PeerName,
        first_row: i64,
    ) -> Result<(), ControlError> {
        let key = self.key(protocol, peer)?;
        match self.order(key, What::Changed(first_row)).await {
            // Its next owner reads what is on disk.
            Ok(_) | Err(ControlError::Elsewhere) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Rows were given up by another hand: their notices are due.
    pub fn have_died(&self) {
        self.dead.notify_one();
    }

    /// Why rows for this peer are not attempted at all, where that is so.
    pub fn stranded(&self, protocol: &str, peer: &str) -> Option<String> {
        stranded(&self.protocols, protocol, peer).err()
    }

    async fn ask(
        &self,
        protocol: &str,
        peer: &PeerName,
        ask: Ask,
    ) -> Result<Replied, ControlError> {
        let key = self.key(protocol, peer)?;
        self.order(key, What::Ask(ask)).await
    }

    /// Whether this instance works that lane.
    pub(super) fn is_here(&self, key: &LaneKey) -> bool {
        !matches!(self.tenure.of_peer(key.0, &key.1), Hold::NotOurs)
    }

    async fn order(&self, key: LaneKey, what: What) -> Result<Replied, ControlError> {
        match self.tenure.is_alone() {
            true => self.here(key, what).await,
            false => self.there(key, what).await,
        }
    }

    /// Carries out an order for a lane of this instance.
    pub(super) async fn here(&self, key: LaneKey, what: What) -> Result<Replied, ControlError> {
        if !self.is_here(&key) {
            return Err(ControlError::Elsewhere);
        }
        let shard = self.shard(&key)?.clone();
        let ask = match what {
            What::Ask(ask) => ask,
            What::Changed(first) => {
                let sent = shard.send(Work::Changed(key, first)).await;
                return sent
                    .map(|()| Replied::Done)
                    .map_err(|_| ControlError::Stopped);
            }
        };
        let (tell, told) = oneshot::channel();
        let sent = shard.send(Work::Ask(key, ask, tell)).await;
        sent.map_err(|_| ControlError::Stopped)?;
        told.await.map_err(|_| ControlError::Stopped)?
    }

    pub(super) fn key(&self, protocol: &str, peer: &PeerName) -> Result<LaneKey, ControlError> {
        let unknown = || ControlError::UnknownProtocol(protocol.to_owned());
        let known = self.protocols.get(protocol).ok_or_else(unknown)?;
        Ok((known.id(), peer.clone()))
    }

    fn shard(&self, key: &LaneKey) -> Result<&mpsc::Sender<Work>, ControlError> {
        let shard = self.shards.get(shard_of(key, self.shards.len()));
        shard.ok_or(ControlError::Stopped)
    }
}

impl Lanes for Control {
    /// While the peer is well it costs one atomic read.
    fn heard_from(&self, protocol: ProtocolId, peer: &PeerName) {
        if self.listening.is_empty() {
            return;
        }
        let key = (protocol, peer.clone());
        if !self.listening.take(&key) {
            return;
        }
        let told = self
            .shard(&key)
            .is_ok_and(|shard| shard.try_send(Work::Heard(key.clone())).is_ok());
        if !told {
            self.listening.note(&key); // its next word will do
        }
    }

    /// Costs one atomic read while none is paused.
    fn is_paused(&self, protocol: ProtocolId, peer: &PeerName) -> bool {
        !self.paused.is_empty() && self.paused.has(&(protocol, peer.clone()))
    }

    fn given_up(&self, protocol: ProtocolId, peer: &PeerName, first_row: i64) {
        let (lanes, peer) = (self.clone(), peer.clone());
        tokio::spawn(async move {
            lanes.have_died();
            if let Err(error) = lanes.tail(protocol, &peer, first_row).await {
                tracing::warn!(protocol, %peer, %error, "a lane was not told that its rows were given up");
            }
        });
    }
}

/// Whose lane rows of these names belong to, or why none takes them.
pub(super) fn stranded(
    protocols: &HashMap<ProtocolId, Arc<dyn Protocol>>,
    protocol: &str,
    peer: &str,
) -> Result<LaneKey, String> {
    let Some(known) = protocols.get(protocol) else {
        return Err(format!(
            "the protocol {protocol} is not configured; its messages wait until it is, or are dropped"
        ));
    };
    if !known.enabled() {
        return Err(format!(
            "the protocol {protocol} is switched off; its messages wait until it is on"
        ));
    }
    match PeerName::parse(peer) {
        Ok(name) => Ok((known.id(), name)),
        Err(error) => Err(format!("{peer:?} is no name of a peer: {error}")),
    }
}
