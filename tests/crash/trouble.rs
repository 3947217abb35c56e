//! What goes wrong: one piece of bad luck at a time, and the end of it.

use std::time::Duration;

use futures_util::TryStreamExt as _;

use crate::ledger::Ledger;
use crate::support::checker::{Fault, Who};
use crate::support::sink;
use crate::support::toxic::Mood;
use crate::support::traffic;
use crate::support::uam_client::now_ns;
use crate::wires::{self, To};
use crate::world::World;

/// A piece of bad luck and how often it comes, in hundredths.
const TROUBLES: [(Trouble, u64); 17] = [
    (Trouble::BridgeKilled, 13),
    (Trouble::BridgeEnds, 11),
    (Trouble::BrokerKilled, 6),
    (Trouble::ReceiverKilled, 9),
    (Trouble::BridgeAndBrokerKilled, 5),
    (Trouble::BridgeAndReceiverKilled, 5),
    (Trouble::BrokerRestarted, 3),
    (Trouble::BrokerRolledBack, 6),
    (Trouble::BrokerFrozen, 3),
    (Trouble::BridgeFrozen, 3),
    (Trouble::ConsumerDeleted, 5),
    (Trouble::StreamDeleted, 5),
    (Trouble::DatabaseLocked, 6),
    (Trouble::DatabaseGone, 6),
    (Trouble::PeerUnwell, 6),
    (Trouble::WireUnwell, 10),
    (Trouble::ClockJumped, 4),
];

#[derive(Clone, Copy, Debug)]
enum Trouble {
    BridgeKilled,
    /// By itself, at one of the moments of `drawbridge::faults::POINTS`.
    BridgeEnds,
    BrokerKilled,
    ReceiverKilled,
    BridgeAndBrokerKilled,
    BridgeAndReceiverKilled,
    /// SIGTERM, and up again.
    BrokerRestarted,
    /// It comes back with its files as they were some seconds ago, as after a power cut; now and then
    /// the bridge is killed with it.
    BrokerRolledBack,
    /// SIGSTOP, and later SIGCONT.
    BrokerFrozen,
    BridgeFrozen,
    /// The bridge's consumer of `FED_OUT`.
    ConsumerDeleted,
    /// `FED_IN`, which the ledger can fill again, or `FED_OUT`, which nobody can.
    StreamDeleted,
    /// Somebody holds a lock, sometimes longer than the bridge waits for it; now and then the bridge
    /// is killed meanwhile.
    DatabaseLocked,
    /// PostgreSQL: SIGKILL. SQLite: no file may grow (a full disk, a quota).
    DatabaseGone,
    /// 503, 429 or slow answers.
    PeerUnwell,
    /// Between the bridge and its broker, its callers or one of its peers.
    WireUnwell,
    /// Forward or back, and after a while it is right again.
    ClockJumped,
}

impl World {
    /// One piece of bad luck, and the end of it.
    pub async fn trouble(&mut self) {
        let only = std::env::var("DRAWBRIDGE_CRASH_ONLY").unwrap_or_default();
        let allowed = |trouble: Trouble| {
            only.is_empty() || only.split(',').any(|name| name == format!("{trouble:?}"))
        };
        let troubles: Vec<_> = TROUBLES.into_iter().filter(|t| allowed(t.0)).collect();
        let mut dice = self.rng.within(0, troubles.iter().map(|t| t.1).sum());
        let mut chosen = Trouble::PeerUnwell;
        for (trouble, weight) in troubles {
            if dice < weight {
                chosen = trouble;
                break;
            }
            dice -= weight;
        }
        let begun = now_ns();
        let down = self.rng.pause(0, 700);
        match chosen {
            Trouble::BridgeKilled => self.killed(&[Who::Bridge], down).await,
            Trouble::BridgeEnds => self.some_point().await,
            Trouble::BrokerKilled => self.killed(&[Who::Broker], down).await,
            Trouble::ReceiverKilled => self.killed(&[Who::Receiver], down).await,
            Trouble::BridgeAndBrokerKilled => self.killed(&[Who::Bridge, Who::Broker], down).await,
            Trouble::BridgeAndReceiverKilled => {
                self.killed(&[Who::Bridge, Who::Receiver], down).await;
            }
            Trouble::BrokerRestarted => {
                self.broker.stop().await;
                tokio::time::sleep(down).await;
                self.broker.start().await;
            }
            Trouble::BrokerRolledBack => self.rolled_back_by_power_cut().await,
            Trouble::BrokerFrozen => {
                self.broker.signal("STOP");
                tokio::time::sleep(down * 4).await;
                self.broker.signal("CONT");
            }
            Trouble::BridgeFrozen => self.frozen().await,
            Trouble::ConsumerDeleted => self.delete_consumers().await,
            Trouble::StreamDeleted if self.rng.chance(60) => {
                // An error: the broker has not come round yet, and nothing is deleted.
                let _ = self.js.delete_stream("FED_IN").await;
            }
            Trouble::StreamDeleted => self.delete_outbound().await,
            Trouble::DatabaseLocked => self.database_locked().await,
            Trouble::DatabaseGone => self.database_gone(down).await,
            Trouble::PeerUnwell => {
                let modes = ["status 503", "slow 120", "status 429 1", "ok"];
                let mode = modes[usize::try_from(self.rng.within(0, 4)).unwrap_or(0)];
                sink::set_mode(&self.sink.options.dir, mode);
                let moods = [0, 503, 429, 500];
                let mood = moods[usize::try_from(self.rng.within(0, 4)).unwrap_or(0)];
                self.volt.pushed.mood(mood);
                self.para.node.mood(mood);
                tokio::time::sleep(down).await;
                sink::set_mode(&self.sink.options.dir, "ok");
                self.volt.pushed.mood(0);
                self.para.node.mood(0);
            }
            Trouble::WireUnwell => self.wire_unwell().await,
            Trouble::ClockJumped => self.clock_jumped().await,
        }
        self.luck.push(format!("{chosen:?} {begun}..{}", now_ns()));
    }

    async fn killed(&mut self, who: &[Who], down: Duration) {
        for one in who {
            self.kill(*one);
        }
        tokio::time::sleep(down).await;
        if who.contains(&Who::Broker) {
            self.broker.start().await;
        }
        if who.contains(&Who::Receiver) {
            self.sink.start().await;
        }
        if who.contains(&Who::Bridge) {
            self.bridge.spawn();
            // Now and then it is killed again before it is ready.
            if self.rng.chance(70) {
                self.bridge.ready().await;
            }
        }
    }

    pub fn kill(&mut self, who: Who) {
        self.kill_stopped(who, now_ns());
    }

    /// The same of one that has stood still since then.
    fn kill_stopped(&mut self, who: Who, from: u64) {
        match who {
            Who::Bridge => self.bridge.kill9(),
            Who::Broker => self.broker.kill9(),
            Who::Receiver => self.sink.kill9(),
            Who::Database | Who::Frozen | Who::Wire => {}
        }
        self.note(who, from);
    }

    fn note(&mut self, who: Who, from: u64) {
        let to = now_ns();
        self.history.faults.push(Fault { who, from, to });
    }

    /// The broker's files are saved, time passes, and they take the place of what it has by then.
    async fn rolled_back_by_power_cut(&mut self) {
        let copy = self.dir.path().join("older");
        self.broker.stop().await;
        self.broker.save(&copy);
        self.broker.start().await;
        tokio::time::sleep(self.rng.pause(300, 2_500)).await;
        let gate = self.gate.clone();
        let _alone = gate.write().await;
        // What the broker held for the bridge is lost with it and nobody's fault; while the bridge
        // stands still that is known exactly.
        let from = now_ns();
        self.bridge.signal("STOP");
        self.history
            .deleted
            .extend(traffic::waiting(&self.js).await);
        self.seen.look(&self.js).await;
        let dies = self.rng.chance(50);
        if dies {
            self.kill_stopped(Who::Bridge, from);
        }
        self.broker.kill9();
        self.broker.put_back(&copy);
        self.rolled_back();
        if !dies {
            self.bridge.signal("CONT");
            self.note(Who::Frozen, from);
        }
        self.broker.start().await;
        if dies {
            self.bridge.spawn();
            self.bridge.ready().await;
        }
    }

    /// The bridge stands still for some seconds, in a long run now and then for longer than any
    /// acknowledgement, lock or connection is waited for.
    async fn frozen(&mut self) {
        let long = self.long && self.rng.chance(15);
        let still = if long {
            self.rng.pause(30_000, 40_000)
        } else {
            self.rng.pause(3_000, 6_000)
        };
        let from = now_ns();
        self.bridge.signal("STOP");
        tokio::time::sleep(still).await;
        self.bridge.signal("CONT");
        self.note(Who::Frozen, from);
    }

    async fn wire_unwell(&mut self) {
        let (to, mood, long) = wires::illness(&mut self.rng);
        if to == To::Door {
            // Two answers lost in a row lose what both held, by the protocol: one is the most.
            self.volt
                .fetching
                .brought_home(Duration::from_secs(10))
                .await;
        }
        let from = now_ns();
        self.wires.one(to).mood(mood);
        tokio::time::sleep(long).await;
        self.wires.one(to).mood(Mood::Well);
        // An answer of the bridge that its caller never saw is no attempt of the bridge's.
        if matches!(to, To::Relay | To::Node) {
            self.note(Who::Wire, from);
        }
        self.luck.push(format!("{to:?} {mood:?}"));
    }

    async fn clock_jumped(&mut self) {
        // Beyond what counts as steady, within what a peer takes for the same time.
        let by = i64::try_from(self.rng.within(8_000, 30_000)).unwrap_or_default();
        let back = self.rng.chance(50);
        self.set_clock(if back { -by } else { by });
        tokio::time::sleep(self.rng.pause(300, 2_000)).await;
        self.set_clock(0);
    }

    async fn delete_consumers(&mut self) {
        // Errors: the broker has not come round yet, and nothing is deleted.
        let Ok(stream) = self.js.get_stream("FED_OUT").await else {
            return;
        };
        let names: Vec<String> = stream
            .consumer_names()
            .try_collect()
            .await
            .unwrap_or_default();
        for name in names {
            let _ = stream.delete_consumer(&name).await;
        }
    }

    /// Deletes `FED_OUT` with what it holds; no publish is under way meanwhile, so that the list of
    /// what is gone is whole.
    async fn delete_outbound(&mut self) {
        let _alone = self.gate.write().await;
        let held = traffic::waiting(&self.js).await;
        // Ids first: an answer that got lost does not say that the stream is still there.
        self.history.deleted.extend(held);
        let _ = self.js.delete_stream("FED_OUT").await;
    }

    async fn database_locked(&mut self) {
        let held = if self.rng.chance(15) {
            self.rng.pause(5_500, 8_000)
        } else {
            self.rng.pause(200, 2_500)
        };
        let kill = self.rng.chance(40);
        let from = now_ns();
        let lock = self.ledger.lock().await;
        if kill {
            tokio::time::sleep(held / 2).await;
            self.kill(Who::Bridge);
        } else {
            tokio::time::sleep(held).await;
        }
        drop(lock);
        self.note(Who::Database, from);
        if kill {
            self.bridge.start().await;
        }
    }

    async fn database_gone(&mut self, down: Duration) {
        let from = now_ns();
        if let Ledger::Sqlite(_) = self.ledger {
            self.bridge.limit_files(Some(64 * 1024));
            tokio::time::sleep(down).await;
            self.bridge.limit_files(None);
        } else {
            self.ledger.kill9().await;
            tokio::time::sleep(down).await;
            self.ledger.start().await;
        }
        self.note(Who::Database, from);
    }
}
