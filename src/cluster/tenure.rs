//! What this instance holds, as everything that works under a lease sees it: one atomic read.
//!
//! An attempt begins only while its lease is surely ours: until the time at which the last renewal
//! that succeeded was *sent*, plus the lease, less a margin, by the monotonic clock. A process that was
//! frozen past it begins nothing when it goes on, whatever it was about to do.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::units::Units;
use crate::protocol::{PeerName, ProtocolId};
use crate::store::{Lease, Unit};

/// One lease of ours.
#[derive(Debug)]
pub struct Held {
    pub lease: Lease,
    base: Instant,
    /// Milliseconds after `base` until which it is surely ours.
    sure_to: AtomicU64,
    /// It is being given back: nothing new begins.
    leaving: AtomicBool,
    /// What it covers is ready: memory read anew, lanes armed.
    ready: AtomicBool,
}

impl Held {
    fn new(lease: Lease, base: Instant, sure_until: Instant) -> Self {
        let held = Self {
            lease,
            base,
            sure_to: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            ready: AtomicBool::new(false),
        };
        held.prolong(sure_until);
        held
    }

    fn prolong(&self, sure_until: Instant) {
        let after = sure_until.saturating_duration_since(self.base);
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.sure_to.store(ms, Ordering::Release);
    }

    /// Surely ours at this moment.
    pub fn is_sure(&self) -> bool {
        let ms = self.base.elapsed().as_millis();
        ms < u128::from(self.sure_to.load(Ordering::Acquire))
    }

    /// Whether something new may begin under it.
    pub fn may_begin(&self) -> bool {
        !self.leaving.load(Ordering::Acquire) && self.is_sure()
    }

    /// It is on its way to another instance.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }
}

/// The leases of this instance; cloning shares it.
#[derive(Clone, Debug)]
pub struct Tenure(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    units: Units,
    base: Instant,
    held: ArcSwap<HashMap<Unit, Arc<Held>>>,
    /// Who holds each unit, by its name, as far as we know.
    owners: ArcSwap<BTreeMap<String, String>>,
}

/// Whether a peer's lane is ours to work.
#[derive(Clone, Debug)]
pub enum Hold {
    /// There is no other instance.
    Alone,
    /// Under this lease.
    Under(Arc<Held>),
    /// Another instance works it, or none at the moment.
    NotOurs,
}

impl Hold {
    /// The lease to write under.
    pub fn lease(&self) -> Option<Lease> {
        match self {
            Self::Under(held) => Some(held.lease),
            Self::Alone | Self::NotOurs => None,
        }
    }

    /// Whether an attempt may begin.
    pub fn may_begin(&self) -> bool {
        match self {
            Self::Alone => true,
            Self::Under(held) => held.may_begin(),
            Self::NotOurs => false,
        }
    }
}

impl Tenure {
    /// Of an instance that has everything to itself.
    pub fn alone() -> Self {
        Self(None)
    }

    /// Of one that shares, and holds nothing yet.
    pub fn shared(units: Units) -> Self {
        Self(Some(Arc::new(Inner {
            units,
            base: Instant::now(),
            held: ArcSwap::default(),
            owners: ArcSwap::default(),
        })))
    }

    /// Whether there is nobody to share with.
    pub fn is_alone(&self) -> bool {
        self.0.is_none()
    }

    /// How the work is divided, when it is.
    pub fn units(&self) -> Option<&Units> {
        self.0.as_ref().map(|inner| &inner.units)
    }

    /// Whether this peer's lane is ours.
    pub fn of_peer(&self, protocol: ProtocolId, peer: &PeerName) -> Hold {
        match &self.0 {
            None => Hold::Alone,
            Some(inner) => self.of_unit(inner.units.of_peer(protocol, peer)),
        }
    }

    /// Whether this unit is ours.
    pub fn of_unit(&self, unit: Unit) -> Hold {
        let Some(inner) = &self.0 else {
            return Hold::Alone;
        };
        match inner.held.load().get(&unit) {
            Some(held) => Hold::Under(held.clone()),
            None => Hold::NotOurs,
        }
    }

    /// Whether this instance answers for a protocol that one instance serves as a whole: it is ours,
    /// surely, and its memory was read anew. A divided one everybody answers for.
    pub fn answers_for(&self, protocol: ProtocolId) -> bool {
        let Some(inner) = &self.0 else {
            return true;
        };
        if inner.units.divides(protocol) {
            return true;
        }
        let unit = Unit {
            protocol,
            part: None,
        };
        let held = inner.held.load();
        held.get(&unit)
            .is_some_and(|held| held.may_begin() && held.ready.load(Ordering::Acquire))
    }

    /// What this lease covers is ready.
    pub fn is_ready(&self, lease: Lease) {
        if let Hold::Under(held) = self.of_unit(lease.unit)
            && held.lease == lease
        {
            held.ready.store(true, Ordering::Release);
        }
    }

    /// Who holds this unit, as far as is known; `None`: nobody.
    pub fn owner(&self, unit: Unit) -> Option<String> {
        let inner = self.0.as_ref()?;
        inner.owners.load().get(&unit.to_string()).cloned()
    }

    /// The leases held, by unit.
    pub fn held(&self) -> Vec<Lease> {
        let Some(inner) = &self.0 else {
            return Vec::new();
        };
        let held = inner.held.load();
        let mut leases: Vec<Lease> = held.values().map(|held| held.lease).collect();
        leases.sort_unstable();
        leases
    }

    /// The tables said who holds what.
    pub(super) fn learn(&self, owners: BTreeMap<String, String>) {
        if let Some(inner) = &self.0 {
            inner.owners.store(Arc::new(owners));
        }
    }

    /// A lease is ours from now on, surely until then.
    pub(super) fn gained(&self, lease: Lease, sure_until: Instant) {
        self.change(|held, base| {
            held.insert(lease.unit, Arc::new(Held::new(lease, base, sure_until)));
        });
    }

    /// It was renewed.
    pub(super) fn renewed(&self, lease: Lease, sure_until: Instant) {
        if let Hold::Under(held) = self.of_unit(lease.unit)
            && held.lease == lease
        {
            held.prolong(sure_until);
        }
    }

    /// It is being given back.
    pub(super) fn leaves(&self, lease: Lease) {
        if let Hold::Under(held) = self.of_unit(lease.unit)
            && held.lease == lease
        {
            held.leaving.store(true, Ordering::Release);
        }
    }

    /// It is not ours any more.
    pub(super) fn lost(&self, lease: Lease) {
        self.change(|held, _| {
            if held.get(&lease.unit).is_some_and(|h| h.lease == lease) {
                held.remove(&lease.unit);
            }
        });
    }

    /// Only the keeper changes it, one change at a time.
    fn change(&self, change: impl FnOnce(&mut HashMap<Unit, Arc<Held>>, Instant)) {
        if let Some(inner) = &self.0 {
            let mut held = HashMap::clone(&inner.held.load());
            change(&mut held, inner.base);
            inner.held.store(Arc::new(held));
        }
    }
}

#[cfg(test)]
impl Tenure {
    /// Holds this lease for that long.
    pub fn with(self, lease: Lease, sure: std::time::Duration) -> Self {
        self.gained(lease, Instant::now() + sure);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LEASE: Lease = Lease {
        unit: Unit {
            protocol: "voltchat",
            part: None,
        },
        epoch: 4,
    };

    #[test]
    fn nothing_begins_once_the_lease_is_not_surely_ours() {
        let tenure = Tenure::shared(Units::default()).with(LEASE, Duration::ZERO);
        let hold = tenure.of_unit(LEASE.unit);
        assert_eq!(hold.lease(), Some(LEASE));
        assert!(!hold.may_begin());
        tenure.renewed(LEASE, Instant::now() + Duration::from_secs(60));
        assert!(hold.may_begin());
        tenure.leaves(LEASE);
        assert!(!hold.may_begin(), "it is on its way to another");
    }

    #[test]
    fn a_renewal_of_an_earlier_epoch_prolongs_nothing() {
        let tenure = Tenure::shared(Units::default()).with(LEASE, Duration::ZERO);
        let earlier = Lease { epoch: 3, ..LEASE };
        tenure.renewed(earlier, Instant::now() + Duration::from_secs(60));
        assert!(!tenure.of_unit(LEASE.unit).may_begin());
        tenure.lost(earlier);
        assert_eq!(tenure.held(), [LEASE]);
    }

    #[test]
    fn a_whole_protocol_is_answered_for_when_its_memory_was_read_anew() {
        let tenure = Tenure::shared(Units::default()).with(LEASE, Duration::from_secs(60));
        assert!(!tenure.answers_for("voltchat"));
        tenure.is_ready(LEASE);
        assert!(tenure.answers_for("voltchat") && !tenure.answers_for("paracord"));
        assert!(Tenure::alone().answers_for("paracord"));
    }
}
