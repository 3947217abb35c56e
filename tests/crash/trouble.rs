//! What goes wrong: one piece of bad luck at a time, and the end of it.

use std::time::Duration;

use futures_util::TryStreamExt as _;

use crate::support::checker::{Fault, Who};
use crate::support::sink;
use crate::support::traffic;
use crate::support::uam_client::now_ns;
use crate::world::{Ledger, World};

/// A piece of bad luck and how often it comes, in hundredths.
const TROUBLES: [(Trouble, u64); 11] = [
    (Trouble::BridgeKilled, 24),
    (Trouble::BrokerKilled, 8),
    (Trouble::ReceiverKilled, 14),
    (Trouble::BridgeAndBrokerKilled, 6),
    (Trouble::BridgeAndReceiverKilled, 6),
    (Trouble::BrokerRestarted, 6),
    (Trouble::ConsumerDeleted, 6),
    (Trouble::StreamDeleted, 6),
    (Trouble::DatabaseLocked, 7),
    (Trouble::DatabaseGone, 7),
    (Trouble::PeerUnwell, 10),
];

#[derive(Clone, Copy, Debug)]
enum Trouble {
    BridgeKilled,
    BrokerKilled,
    ReceiverKilled,
    BridgeAndBrokerKilled,
    BridgeAndReceiverKilled,
    /// SIGTERM, and up again.
    BrokerRestarted,
    /// The bridge's consumer of `FED_OUT`.
    ConsumerDeleted,
    /// `FED_IN`, which the ledger can fill again, or `FED_OUT`, which nobody can.
    StreamDeleted,
    /// Somebody holds a lock; now and then the bridge is killed meanwhile.
    DatabaseLocked,
    /// PostgreSQL: SIGKILL. SQLite: no file may grow (a full disk, a quota).
    DatabaseGone,
    /// 503, 429 or slow answers.
    PeerUnwell,
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

    fn kill(&mut self, who: Who) {
        let from = now_ns();
        match who {
            Who::Bridge => self.bridge.kill9(),
            Who::Broker => self.broker.kill9(),
            Who::Receiver => self.sink.kill9(),
            Who::Database => {}
        }
        self.note(who, from);
    }

    fn note(&mut self, who: Who, from: u64) {
        let to = now_ns();
        self.history.faults.push(Fault { who, from, to });
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
        let held = self.rng.pause(200, 2_500);
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
