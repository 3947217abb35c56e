//! Renews this instance's leases, takes what is free, gives back what others should have.
//!
//! Every [`LOOK`] one statement prolongs all leases held; a lease lasts three of them. What changes is
//! told to whoever works under the leases, as [`Turn`]s: gained, lost, to be handed over. One that is
//! handed over is given back when it was drained, or after [`DRAIN`] in any case: a commit after that
//! is refused by the database, so nothing goes wrong, only an attempt in flight is made again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use super::deal::deal;
use super::tenure::Tenure;
use crate::ops::metrics;
use crate::store::{Lease, LeaseTable, Leases, Store, StoreError, Unit};

/// How long a lease lasts unless it is renewed.
pub const LEASE: Duration = Duration::from_secs(6);
/// How often leases are renewed and looked at.
const LOOK: Duration = Duration::from_secs(2);
/// So long before its end a lease counts as unsure.
const MARGIN: Duration = Duration::from_secs(2);
/// The longest that one question to the tables may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest that a unit is drained before it is given back.
const DRAIN: Duration = Duration::from_secs(5);
/// A look that another's lease calls for comes so much after its end.
const AFTER: Duration = Duration::from_millis(50);

/// What changed.
#[derive(Debug)]
pub enum Turn {
    /// A unit is ours: arm its lanes, read its messages.
    Gained(Lease),
    /// It is another's: drop its lanes; nothing more can be written under it.
    Lost(Lease),
    /// It is to be another's: finish what is in hand, begin nothing, then drop the sender.
    HandOver(Lease, oneshot::Sender<()>),
}

/// Handle to the task; cloning shares it.
#[derive(Clone)]
pub struct Keeper {
    name: Arc<str>,
    tenure: Tenure,
    orders: mpsc::Sender<oneshot::Sender<()>>,
    wake: Arc<Notify>,
}

/// The task's own.
struct Task {
    name: Arc<str>,
    leases: Leases,
    units: Vec<Unit>,
    tenure: Tenure,
    turns: mpsc::Sender<Turn>,
    /// Tells other instances that something may be free.
    tell: Box<dyn Fn() + Send + Sync>,
    leaving: Vec<Lease>,
    draining: JoinSet<Lease>,
    /// Last sentence about the tables, so that it is said once.
    trouble: bool,
}

impl Keeper {
    /// Starts keeping; `None` for a store that is this process's own. Makes the units' rows first.
    /// `tell` tells other instances that something may be free for them; see [`Keeper::look`].
    pub async fn start(
        store: &Store,
        name: &str,
        tenure: Tenure,
        tell: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Option<(Self, mpsc::Receiver<Turn>)>, StoreError> {
        let (Some(leases), Some(units)) = (store.leases(PATIENCE), tenure.units()) else {
            return Ok(None);
        };
        let units = units.all();
        leases.make(&units).await?;
        let (turns, told) = mpsc::channel(units.len().saturating_mul(2).max(16));
        let (orders, ordered) = mpsc::channel(1);
        let wake = Arc::new(Notify::new());
        let name: Arc<str> = name.into();
        let task = Task {
            name: name.clone(),
            leases,
            units,
            tenure: tenure.clone(),
            turns,
            tell,
            leaving: Vec::new(),
            draining: JoinSet::new(),
            trouble: false,
        };
        tokio::spawn(task.run(ordered, wake.clone()));
        let keeper = Self {
            name,
            tenure,
            orders,
            wake,
        };
        Ok(Some((keeper, told)))
    }

    /// This instance's name among the others: its own for each run.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it holds.
    pub fn tenure(&self) -> &Tenure {
        &self.tenure
    }

    /// Something may be free: looks at once.
    pub fn look(&self) {
        self.wake.notify_one();
    }

    /// Gives everything back, each unit as soon as it is drained, and takes nothing more.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.orders.send(done).await.is_ok() {
            let _ = left.await; // the task ends when it has answered
        }
    }
}

impl Task {
    async fn run(mut self, mut orders: mpsc::Receiver<oneshot::Sender<()>>, wake: Arc<Notify>) {
        let mut next = tokio::time::Instant::now();
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => {
                    self.leave().await;
                    if let Some(done) = order {
                        let _ = done.send(()); // who asked may have gone
                    }
                    return;
                }
                Some(drained) = self.draining.join_next(), if !self.draining.is_empty() => {
                    if let Ok(lease) = drained {
                        self.give_back(lease).await;
                    }
                }
                () = tokio::time::sleep_until(next) => next = self.look().await,
                () = wake.notified() => next = self.look().await,
            }
        }
    }

    /// Renews, and does what the tables call for; answers when to look again.
    async fn look(&mut self) -> tokio::time::Instant {
        let soon = tokio::time::Instant::now() + LOOK;
        let sent = Instant::now();
        let (renewed, table) = match self.leases.renew(&self.name, LEASE).await {
            Ok(answer) => answer,
            Err(error) => {
                metrics::lease_renewal_failed();
                if !std::mem::replace(&mut self.trouble, true) {
                    tracing::warn!(%error, "the leases could not be renewed; nothing begins once they are unsure");
                }
                return soon.min(tokio::time::Instant::now() + LOOK / 4);
            }
        };
        if std::mem::take(&mut self.trouble) {
            tracing::info!("the leases are renewed again");
        }
        self.compare(&renewed, sent + LEASE - MARGIN).await;
        let served = owners(&table);
        self.tenure.learn(served.clone());
        let steps = deal(
            &self.name,
            &self.units,
            &self.tenure.held(),
            &self.leaving,
            &table,
        );
        for lease in steps.give_back {
            self.hand_over(lease).await;
        }
        let mut claimed = false;
        for unit in steps.claim {
            let sent = Instant::now();
            match self.leases.claim(&self.name, unit, LEASE).await {
                Ok(Some(lease)) => {
                    claimed = true;
                    self.gained(lease, sent + LEASE - MARGIN).await;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, %unit, "a free unit could not be taken");
                    break;
                }
            }
        }
        if claimed {
            // Orders for what is ours now should come here.
            (self.tell)();
        }
        self.count(table.instances.len(), &served);
        match steps.look_in {
            Some(wait) => soon.min(tokio::time::Instant::now() + wait + AFTER),
            None => soon,
        }
    }

    /// Shows who serves how much, for whoever watches.
    fn count(&self, instances: usize, served: &BTreeMap<String, String>) {
        let ours = self.tenure.held();
        let free = self.units.iter().filter(|unit| {
            !served.contains_key(&unit.to_string()) && !ours.iter().any(|l| l.unit == **unit)
        });
        metrics::sharing(instances, ours.len(), free.count());
    }

    /// What the database renewed against what we thought was ours.
    async fn compare(&mut self, renewed: &[(String, i64)], sure_until: Instant) {
        let mut in_table: HashMap<&str, i64> = HashMap::new();
        for (unit, epoch) in renewed {
            in_table.insert(unit.as_str(), *epoch);
        }
        for lease in self.tenure.held() {
            match in_table.remove(lease.unit.to_string().as_str()) {
                Some(epoch) if epoch == lease.epoch => self.tenure.renewed(lease, sure_until),
                found => {
                    tracing::warn!(unit = %lease.unit, epoch = lease.epoch, "a lease was lost: another instance serves this unit now");
                    self.tenure.lost(lease);
                    self.leaving.retain(|l| *l != lease);
                    self.told(Turn::Lost(lease)).await;
                    if let Some(epoch) = found {
                        let unit = lease.unit;
                        self.gained(Lease { unit, epoch }, sure_until).await;
                    }
                }
            }
        }
        // Taken by a claim whose answer did not come.
        for (name, epoch) in in_table {
            let unit = self.units.iter().find(|unit| unit.to_string() == name);
            if let Some(unit) = unit.copied() {
                self.gained(Lease { unit, epoch }, sure_until).await;
            }
        }
    }

    async fn gained(&mut self, lease: Lease, sure_until: Instant) {
        tracing::info!(unit = %lease.unit, epoch = lease.epoch, "this instance serves this unit now");
        self.tenure.gained(lease, sure_until);
        self.told(Turn::Gained(lease)).await;
    }

    /// Begins to hand a unit over.
    async fn hand_over(&mut self, lease: Lease) {
        self.leaving.push(lease);
        self.tenure.leaves(lease);
        let (done, drained) = oneshot::channel();
        self.told(Turn::HandOver(lease, done)).await;
        self.draining.spawn(async move {
            // Dropped or sent: it is drained.
            if tokio::time::timeout(DRAIN, drained).await.is_err() {
                tracing::warn!(unit = %lease.unit, "a unit is handed over with attempts in flight; they will be repeated");
            }
            lease
        });
    }

    /// A drained unit is free for the others.
    async fn give_back(&mut self, lease: Lease) {
        if !self.leaving.contains(&lease) {
            return; // lost meanwhile
        }
        match self.leases.give_back(&self.name, lease).await {
            Ok(()) => tracing::info!(unit = %lease.unit, "a unit was handed over"),
            // It runs out.
            Err(error) => {
                tracing::warn!(%error, unit = %lease.unit, "a lease could not be given back");
            }
        }
        self.leaving.retain(|l| *l != lease);
        self.tenure.lost(lease);
        self.told(Turn::Lost(lease)).await;
        (self.tell)();
    }

    async fn leave(&mut self) {
        for lease in self.tenure.held() {
            if !self.leaving.contains(&lease) {
                self.hand_over(lease).await;
            }
        }
        let mut renew = tokio::time::interval(LOOK);
        while !self.draining.is_empty() {
            tokio::select! {
                Some(drained) = self.draining.join_next() => {
                    if let Ok(lease) = drained {
                        self.give_back(lease).await;
                    }
                }
                _ = renew.tick() => {
                    let sent = Instant::now();
                    if let Ok((renewed, _)) = self.leases.renew(&self.name, LEASE).await {
                        self.compare(&renewed, sent + LEASE - MARGIN).await;
                    }
                }
            }
        }
        if let Err(error) = self.leases.leave(&self.name).await {
            tracing::warn!(%error, "this instance could not say that it leaves; its leases run out");
        }
        (self.tell)();
    }

    async fn told(&self, turn: Turn) {
        if self.turns.send(turn).await.is_err() {
            tracing::debug!("nobody works under the leases any more");
        }
    }
}

fn owners(table: &LeaseTable) -> BTreeMap<String, String> {
    let rows = table.leases.iter();
    let held = rows.filter(|row| row.left_ms > 0 && !row.owner.is_empty());
    held.map(|row| (row.unit.clone(), row.owner.clone()))
        .collect()
}
