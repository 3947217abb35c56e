//! Rows that came to their end while the disk may still show them as pending.
//!
//! A page is read at one moment and looked at later; between the two a row may be delivered. Its
//! number stays here until its outcome is committed *and* every read begun before that has ended,
//! so a late page cannot send it twice. A row that is to be tried again is never here: what is read
//! of it is true as soon as its outcome was handed to the writer.

use std::collections::{BTreeSet, HashSet, VecDeque};

/// The numbers, and the reads in progress.
#[derive(Debug, Default)]
pub struct Ended {
    rows: HashSet<i64>,
    /// Committed while reads were in progress: (number of the next read then, row).
    lingering: VecDeque<(u64, i64)>,
    reads: BTreeSet<u64>,
    next_read: u64,
}

impl Ended {
    /// This row is delivered, dead or held; its outcome is on its way to the disk.
    pub fn add(&mut self, row: i64) {
        self.rows.insert(row);
    }

    /// Whether a page that shows this row is out of date.
    pub fn has(&self, row: i64) -> bool {
        self.rows.contains(&row)
    }

    /// The row's outcome is on disk.
    pub fn committed(&mut self, row: i64) {
        if self.reads.is_empty() {
            self.rows.remove(&row);
        } else if self.rows.contains(&row) {
            self.lingering.push_back((self.next_read, row));
        }
    }

    /// A read begins; answers its number.
    pub fn read_begins(&mut self) -> u64 {
        let read = self.next_read;
        self.next_read += 1;
        self.reads.insert(read);
        read
    }

    /// That read's rows were looked at.
    pub fn read_ends(&mut self, read: u64) {
        self.reads.remove(&read);
        let oldest = self.reads.first().copied().unwrap_or(u64::MAX);
        while let Some((_, row)) = self.lingering.pop_front_if(|(stamp, _)| *stamp <= oldest) {
            self.rows.remove(&row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ended;

    #[test]
    fn a_committed_row_is_forgotten_at_once_when_nothing_is_being_read() {
        let mut ended = Ended::default();
        ended.add(1);
        assert!(ended.has(1));
        ended.committed(1);
        assert!(!ended.has(1));
    }

    #[test]
    fn a_row_is_remembered_until_every_read_begun_before_its_commit_has_ended() {
        let mut ended = Ended::default();
        let (first, second) = (ended.read_begins(), ended.read_begins());
        ended.add(1);
        ended.committed(1);
        let later = ended.read_begins();
        ended.read_ends(second);
        assert!(ended.has(1), "the first read may still show it");
        ended.read_ends(first);
        assert!(
            !ended.has(1),
            "a read begun after the commit does not matter"
        );
        ended.read_ends(later);
    }

    #[test]
    fn a_row_without_a_commit_outlasts_every_read() {
        let mut ended = Ended::default();
        ended.add(1);
        let read = ended.read_begins();
        ended.read_ends(read);
        assert!(ended.has(1));
    }
}
