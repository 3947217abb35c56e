//! What an instance does about the leases, worked out from what the tables say: plain data in, plain
//! data out.
//!
//! Everybody's share is the same, rounded up. Who has less takes what is free; who has more gives the
//! surplus back, and another takes it. So a new instance gets its share within a few looks, and one that
//! died leaves a smaller number to divide by.

use std::time::Duration;

use crate::store::{Lease, LeaseTable, Unit};

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Free units to take.
    pub claim: Vec<Unit>,
    /// Leases to give back.
    pub give_back: Vec<Lease>,
    /// When the next lease of another runs out, if none is renewed: a reason to look then.
    pub look_in: Option<Duration>,
}

/// What an instance of that name does that serves `units` and holds `held`; those it is giving back
/// already are `leaving`.
pub fn deal(
    me: &str,
    units: &[Unit],
    held: &[Lease],
    leaving: &[Lease],
    table: &LeaseTable,
) -> Steps {
    let others = table.instances.iter().filter(|name| *name != me).count();
    let share = units.len().div_ceil(others + 1);
    let staying: Vec<Lease> = held
        .iter()
        .filter(|lease| !leaving.contains(lease))
        .copied()
        .collect();
    let mut steps = Steps::default();
    if staying.len() > share {
        steps.give_back = staying.get(share..).unwrap_or_default().to_vec();
    }
    let mut free = Vec::new();
    for unit in units {
        let name = unit.to_string();
        let Some(row) = table.leases.iter().find(|row| row.unit == name) else {
            continue;
        };
        if held.iter().any(|lease| lease.unit == *unit) {
            continue;
        }
        if row.left_ms <= 0 {
            free.push(*unit);
        } else if let Ok(left) = u64::try_from(row.left_ms) {
            let left = Duration::from_millis(left);
            steps.look_in = Some(steps.look_in.map_or(left, |soonest| soonest.min(left)));
        }
    }
    // Each begins elsewhere, so that those who look at the same time seldom want the same one.
    if !free.is_empty() {
        let start = me.bytes().fold(0usize, |sum, b| {
            sum.wrapping_mul(31).wrapping_add(usize::from(b))
        });
        let start = start % free.len();
        free.rotate_left(start);
    }
    free.truncate(share.saturating_sub(staying.len()));
    steps.claim = free;
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LeaseRow;

    fn unit(part: u8) -> Unit {
        Unit {
            protocol: "uam",
            part: Some(part),
        }
    }

    fn lease(part: u8) -> Lease {
        Lease {
            unit: unit(part),
            epoch: 1,
        }
    }

    /// Eight units with these owners, and these instances.
    fn table(owners: [&str; 8], instances: &[&str]) -> LeaseTable {
        LeaseTable {
            leases: owners
                .iter()
                .zip(0u8..)
                .map(|(owner, part)| LeaseRow {
                    unit: unit(part).to_string(),
                    owner: (*owner).to_owned(),
                    epoch: 1,
                    left_ms: if owner.is_empty() { 0 } else { 4_000 },
                })
                .collect(),
            instances: instances.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn all() -> Vec<Unit> {
        (0..8).map(unit).collect()
    }

    #[test]
    fn who_is_alone_takes_everything() {
        let steps = deal("a", &all(), &[], &[], &table([""; 8], &["a"]));
        let mut claim = steps.claim;
        claim.sort_unstable();
        assert_eq!(claim, all());
        // The list may not have us yet.
        let steps = deal("a", &all(), &[], &[], &table([""; 8], &[]));
        assert_eq!(steps.claim.len(), 8);
    }

    #[test]
    fn who_has_more_than_a_share_gives_the_surplus_back_and_takes_nothing() {
        let held: Vec<_> = (0..8).map(lease).collect();
        let table = table(["a"; 8], &["a", "b", "c"]);
        let steps = deal("a", &all(), &held, &[], &table);
        assert_eq!(steps.give_back, [3, 4, 5, 6, 7].map(lease));
        assert!(steps.claim.is_empty());
        let again = deal("a", &all(), &held, &steps.give_back, &table);
        assert!(again.give_back.is_empty(), "those are on their way");
    }

    #[test]
    fn the_units_of_one_that_died_are_divided_among_the_others() {
        let dead = table(["a", "a", "a", "b", "b", "b", "", ""], &["a", "b"]);
        let held: Vec<_> = (0..3).map(lease).collect();
        let steps = deal("a", &all(), &held, &[], &dead);
        assert_eq!(steps.claim.len(), 1);
        assert_eq!(steps.look_in, Some(Duration::from_secs(4)));
    }
}
