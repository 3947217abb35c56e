//! What goes to disk, and what is read back.

use std::sync::Arc;

use super::{Item, Lane};
use crate::store::QueueRow;

impl Lane {
    /// There are rows on disk from `first` on (start-up, or a row that came back).
    pub fn has_tail(&mut self, first: i64) {
        self.loaded_to = self.loaded_to.min(first - 1);
        self.tail = true;
        self.missed |= self.loading.is_some();
    }

    /// A page asked for by [`Step::Load`]: the rows to take, whether the page was full, and the last
    /// number read (rows whose outcome is on its way are left out of `rows`).
    pub fn loaded(&mut self, rows: Vec<QueueRow>, full: bool, last: Option<i64>) {
        self.asked = self.asked.saturating_sub(self.page);
        self.page = 0;
        if self.loading.take().is_some_and(|a| self.loaded_to < a) {
            self.missed = false;
            return; // the reading starts again further back; `tail` stands
        }
        for row in rows {
            self.loaded_to = self.loaded_to.max(row.id);
            self.admit(row.into());
        }
        self.loaded_to = self.loaded_to.max(last.unwrap_or(0));
        self.met_to = self.met_to.max(self.loaded_to);
        self.tail = full || self.missed;
        self.missed = false;
    }

    /// Rows asked for by [`Step::LoadKey`]: the rows to take, the limit asked for, and how many and
    /// up to which number were read (rows whose outcome is on its way are left out of `rows`).
    pub fn loaded_key(
        &mut self,
        name: &Arc<str>,
        rows: Vec<QueueRow>,
        limit: usize,
        full: bool,
        last: Option<i64>,
    ) {
        self.asked = self.asked.saturating_sub(limit);
        let met = self.loaded_to;
        let Some(key) = self.keys.get_mut(name) else {
            return;
        };
        key.busy = false;
        let from = key.reading.take().unwrap_or(0);
        // `None` when everything went back to disk meanwhile: the lane's own reading meets it all.
        let stands = key.disk_from.take().is_some();
        let missed = key.missed.take();
        if !stands || missed.is_some_and(|m| m < from) {
            let first = if stands { Some(from) } else { None };
            key.disk_from = match (first, missed) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            return self.after(name);
        }
        let next = last.map_or(from, |l| l + 1);
        for row in rows {
            // Above `loaded_to` the lane's own reading meets them, or their arrival does.
            if row.id <= met {
                self.admit(row.into());
            }
        }
        if let Some(key) = self.keys.get_mut(name) {
            key.disk_from = if full && next <= met {
                Some(next)
            } else {
                // The lowest of those missed; the read may have shown it and not the ones behind it.
                missed.map(|m| m.max(next))
            };
        }
        self.after(name);
    }

    /// Keeps a row that is not due yet; what stands behind it goes to disk.
    pub(super) fn park(&mut self, mut item: Item) {
        item.body = None;
        let (name, at) = (item.key.clone(), item.next_at_ms);
        self.spill(&name);
        self.held.insert(item.id);
        if let Some(key) = self.keys.get_mut(&name) {
            key.waits_until = Some(at);
            key.items.push_front(item);
            self.waiting.insert((at, name));
        }
    }

    /// Forgets a key's rows in memory: they are on disk.
    pub(super) fn spill(&mut self, name: &Arc<str>) {
        if let Some(key) = self.keys.get_mut(name) {
            for item in std::mem::take(&mut key.items) {
                self.held.remove(&item.id);
                key.disk_from = Some(key.disk_from.map_or(item.id, |d| d.min(item.id)));
            }
        }
    }

    /// Everything that is not in flight goes back to disk.
    pub(super) fn spill_all(&mut self) {
        let mut first = i64::MAX;
        let held = &mut self.held;
        self.keys.retain(|_, key| {
            for item in std::mem::take(&mut key.items) {
                held.remove(&item.id);
                first = first.min(item.id);
            }
            if let Some(from) = key.disk_from.take() {
                first = first.min(from);
            }
            key.waits_until = None;
            key.queued = false;
            if let Some(missed) = key.missed.take() {
                first = first.min(missed);
            }
            key.busy
        });
        self.runnable.clear();
        self.waiting.clear();
        self.freed.clear();
        if first != i64::MAX {
            self.loaded_to = self.loaded_to.min(first - 1);
            self.tail = true;
        }
    }

    /// The rows on disk have changed: what is in memory is forgotten and read anew, a page that is
    /// being read is thrown away.
    pub fn reread(&mut self, first: i64) {
        self.spill_all();
        if let Some(after) = self.loading {
            self.loaded_to = self.loaded_to.min(after - 1);
        }
        self.has_tail(first);
    }
}
