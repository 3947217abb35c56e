//! A bus in memory for unit tests: it takes everything, and says truly what it has.

use std::sync::{Mutex, MutexGuard};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::message::msg_id_of;
use super::outlet::{Held, Outlet, PubAck};
use crate::bus::{BusError, BusMessage, ScanFrom, StreamFacts};
use crate::store::Way;

/// What was published, in order; its numbers are sequences from 1.
#[derive(Default)]
pub(crate) struct Memory(Mutex<Vec<BusMessage>>);

impl Memory {
    /// The messages there are.
    pub(crate) fn messages(&self) -> MutexGuard<'_, Vec<BusMessage>> {
        self.0.lock().unwrap()
    }

    fn ids(&self) -> Vec<String> {
        let messages = self.messages();
        let ids = messages.iter().map(|m| msg_id_of(&m.headers));
        ids.map(|id| id.unwrap_or_default().to_owned()).collect()
    }
}

fn now<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, Result<T, BusError>> {
    Box::pin(std::future::ready(Ok(value)))
}

impl Outlet for Memory {
    fn prefix(&self) -> &str {
        "fed"
    }
    fn connected(&self) -> bool {
        true
    }
    fn connection(&self) -> Option<watch::Receiver<bool>> {
        None
    }
    fn losses(&self) -> u64 {
        0
    }
    fn max_body(&self) -> usize {
        16 * 1024 * 1024
    }
    fn publish(&self, message: BusMessage) -> BoxFuture<'_, Result<PubAck, BusError>> {
        let mut messages = self.messages();
        messages.push(message);
        let ack: PubAck = now((messages.len() as u64, false));
        now(ack)
    }
    fn facts(&self, _way: Way) -> BoxFuture<'_, Result<Option<StreamFacts>, BusError>> {
        let count = self.messages().len() as u64;
        now(Some(StreamFacts {
            created_ns: 1,
            messages: count,
            bytes: 0,
            first_seq: 1,
            last_seq: count,
            max_age_ms: None,
        }))
    }
    fn id_at(&self, _way: Way, seq: u64) -> BoxFuture<'_, Result<Option<String>, BusError>> {
        let at = usize::try_from(seq).unwrap().checked_sub(1);
        now(at.and_then(|at| self.ids().get(at).cloned()))
    }
    fn holds(&self, _way: Way, _from: ScanFrom) -> BoxFuture<'_, Result<Held, BusError>> {
        let mut held = Held::default();
        for (seq, id) in (1..).zip(self.ids()) {
            held.add(seq, &id);
        }
        now(held)
    }
    fn ensure(&self) -> BoxFuture<'_, Result<(), BusError>> {
        now(())
    }
}
