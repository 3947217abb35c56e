//! What a checkpoint says of a stream as it is found now: pure.
//!
//! | found | meaning |
//! | --- | --- |
//! | another creation time | another stream: lost |
//! | last sequence below the checkpoint's | rolled back: lost |
//! | another id at the checkpoint's sequence | rolled back, and gone on from there: lost |
//! | first sequence above it | retention or a purge: not lost |
//! | no message at it, but around it | an operator deleted that one: not lost |

use crate::bus::StreamFacts;
use crate::clock::UnixMs;
use crate::store::{Checkpoint, Tip};

const SECOND: UnixMs = 1_000;
const MINUTE: UnixMs = 60 * SECOND;
const HOUR: UnixMs = 60 * MINUTE;

/// What the stream's state alone says of a message that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It and everything before it is there, or left by retention.
    Stands,
    /// It is lost.
    Lost,
    /// The message at the sequence decides.
    Ask,
}

/// The creation time as the checkpoints have it.
pub fn created_ns(facts: &StreamFacts) -> i64 {
    i64::try_from(facts.created_ns).unwrap_or(i64::MAX)
}

/// What the state says of a tip.
pub fn standing(tip: &Tip, facts: &StreamFacts) -> Standing {
    if tip.created_ns != created_ns(facts) || facts.last_seq < tip.seq {
        Standing::Lost
    } else if tip.seq == 0 || facts.first_seq > tip.seq {
        Standing::Stands
    } else {
        Standing::Ask
    }
}

/// What the message at the tip's sequence says (`None`: there is none). A tip without an id was
/// taken where none could be read.
pub fn is_same(tip: &Tip, found: Option<&str>) -> bool {
    tip.msg_id.is_empty() || found.is_none_or(|id| id == tip.msg_id)
}

/// Where to begin reading so that every event numbered `ledger` or higher is seen, if it is there:
/// above the newest checkpoint that was taken before any of them existed. `series` is of one
/// stream, newest first. `None`: no checkpoint is old enough.
pub fn first_sequence(series: &[Checkpoint], ledger: i64) -> Option<u64> {
    series
        .iter()
        .find(|c| c.top <= ledger)
        .map(|c| c.tip.seq.saturating_add(1))
}

/// How many sequences above `above` up to the last one the stream has given away and holds no more.
pub fn vanished(facts: &StreamFacts, above: u64, held: &[u64]) -> u64 {
    let between = |seq: &&u64| **seq > above && **seq <= facts.last_seq;
    let there = held.iter().filter(between).count();
    facts
        .last_seq
        .saturating_sub(above)
        .saturating_sub(u64::try_from(there).unwrap_or(u64::MAX))
}

/// The checkpoints of a series (newest first) that a thinner one does without: of those older than
/// a minute one a minute stays, of those older than an hour one an hour; older than `keep_ms` none.
pub fn thin(series: &[Checkpoint], now_ms: UnixMs, keep_ms: UnixMs) -> Vec<Checkpoint> {
    let mut gone = Vec::new();
    let mut last = None;
    for (n, checkpoint) in series.iter().enumerate().rev() {
        let age = now_ms.saturating_sub(checkpoint.at_ms);
        let span = match age {
            age if age <= MINUTE => continue,
            age if age <= HOUR => MINUTE,
            _ => HOUR,
        };
        // The first of a span stays: later it is also the first of the longer span, or goes whole.
        let slot = (span, checkpoint.at_ms.div_euclid(span));
        let newest = n == 0;
        if !newest && (age > keep_ms || last == Some(slot)) {
            gone.push(checkpoint.clone());
        } else {
            last = Some(slot);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(created: i128, first_seq: u64, last_seq: u64) -> StreamFacts {
        StreamFacts {
            created_ns: created,
            messages: last_seq.saturating_sub(first_seq) + 1,
            bytes: 0,
            first_seq,
            last_seq,
            max_age_ms: None,
        }
    }

    fn tip(seq: u64) -> Tip {
        Tip {
            created_ns: 1,
            seq,
            msg_id: "a".into(),
        }
    }

    fn at(seq: u64, ledger: i64, top: i64, at_ms: UnixMs) -> Checkpoint {
        Checkpoint {
            tip: tip(seq),
            ledger,
            top,
            at_ms,
        }
    }

    #[test]
    fn another_stream_or_a_shorter_one_has_lost_it() {
        assert_eq!(standing(&tip(5), &facts(2, 1, 9)), Standing::Lost);
        assert_eq!(standing(&tip(5), &facts(1, 1, 4)), Standing::Lost);
        assert_eq!(standing(&tip(5), &facts(1, 1, 5)), Standing::Ask);
        assert_eq!(standing(&tip(0), &facts(1, 0, 0)), Standing::Stands);
        assert_eq!(standing(&tip(0), &facts(2, 0, 0)), Standing::Lost);
    }

    #[test]
    fn retention_purge_and_the_deletion_of_one_message_are_no_loss() {
        assert_eq!(standing(&tip(5), &facts(1, 6, 5)), Standing::Stands);
        assert_eq!(standing(&tip(5), &facts(1, 6, 9)), Standing::Stands);
        assert!(is_same(&tip(5), None));
        assert!(is_same(&tip(5), Some("a")));
        assert!(!is_same(&tip(5), Some("b")));
    }

    #[test]
    fn reading_begins_where_none_of_the_events_existed_yet() {
        let series = [at(30, 29, 35, 3), at(20, 21, 24, 2), at(10, 11, 11, 1)];
        assert_eq!(first_sequence(&series, 29), Some(21));
        assert_eq!(first_sequence(&series, 24), Some(21));
        assert_eq!(first_sequence(&series, 21), Some(11));
        assert_eq!(first_sequence(&series, 9), None);
    }

    #[test]
    fn what_was_purged_above_a_checkpoint_is_counted() {
        assert_eq!(vanished(&facts(1, 8, 10), 5, &[8, 9, 10]), 2);
        assert_eq!(vanished(&facts(1, 11, 10), 5, &[]), 5);
        assert_eq!(vanished(&facts(1, 1, 10), 5, &[4, 5, 6, 7, 8, 9, 10]), 0);
    }

    #[test]
    fn a_series_thins_out_with_age_and_its_newest_stays() {
        let now = 100 * HOUR;
        let series: Vec<_> = (0..100_000)
            .map(|n| at(100_000 - n, 1, 1, now - i64::try_from(n).unwrap() * SECOND))
            .collect();
        let gone = thin(&series, now, 24 * HOUR);
        let gone: std::collections::HashSet<u64> = gone.iter().map(|c| c.tip.seq).collect();
        let rest: Vec<_> = series
            .iter()
            .filter(|c| !gone.contains(&c.tip.seq))
            .cloned()
            .collect();
        let left = rest.len();
        assert!((61 + 59 + 23..=61 + 61 + 25).contains(&left), "{left}");
        let oldest = rest.last().unwrap();
        assert!(now - oldest.at_ms > 23 * HOUR - MINUTE);
        // Thinning what is thin removes nothing.
        assert!(thin(&rest, now, 24 * HOUR).is_empty());
        assert!(thin(&series[..1], now + 1000 * HOUR, 24 * HOUR).is_empty());
    }
}
