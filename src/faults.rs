//! Faults on purpose: broken promises that the crash test must notice, and deaths in the moments that
//! matter most.
//!
//! A test that has never failed proves little. With the cargo feature `faults` the environment
//! variable `DRAWBRIDGE_FAULT` names faults (comma between them) and the places that keep a promise
//! break it; `tests/crash` then has to turn red. Without the feature [`on`] is `false` at compile
//! time and nothing of this is in the binary.
//!
//! | name | what it breaks |
//! | --- | --- |
//! | `ack_before_commit` | promise 1: `FED_OUT` is acknowledged although no row is durable |
//! | `shuffle_keys` | promise 4: rows of one order key leave in another order |
//! | `dedup_off` | promise 3: an event id that is known reaches `fed.in` again |
//! | `answer_before_commit` | promise 2: success is answered before the event is in the ledger |
//! | `no_repair` | promise 2: what a rolled-back broker lost is not given to it again |
//! | `stale_consumer` | an earlier process's consumer is kept instead of renewed |
//! | `one_handout` | a message that was fetched once counts as delivered, lost answer or not |
//! | `flat_depth` | events that a room sees in one second have one depth |
//! | `poll_forward` | a poll begins where the last one ended, and never looks back |
//!
//! A process that is killed at random dies where it spends its time, seldom between two steps that
//! follow at once. So a build with debug assertions, which serves nobody, ends itself at a
//! [`crash_point`] that `DRAWBRIDGE_CRASH_AT` names, at the pass whose number follows a colon
//! (`in_committed:20`), and its [`clock`] follows the jumps that a file asks for. [`POINTS`] are all
//! the arrows of both walks.

use crate::clock::Clock;

/// Where a process can be told to end itself, in the order of the walks.
pub const POINTS: [&str; 17] = [
    "out_pulled",
    "out_queued",
    "out_committed",
    "out_acked",
    "out_dressed",
    "out_answered",
    "out_settling",
    "out_settled",
    "dead_told",
    "mailbox_left",
    "mailbox_noted",
    "in_verified",
    "in_committed",
    "in_published",
    "in_acked",
    "in_marked",
    "in_answered",
];

/// Whether the fault of this name is switched on.
#[cfg(not(feature = "faults"))]
#[must_use]
pub const fn on(_name: &str) -> bool {
    false
}

/// Whether the fault of this name is switched on; the environment is read once.
#[cfg(feature = "faults")]
#[must_use]
pub fn on(name: &str) -> bool {
    static NAMES: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    NAMES
        .get_or_init(|| {
            std::env::var("DRAWBRIDGE_FAULT")
                .unwrap_or_default()
                .split(',')
                .map(|n| n.trim().to_owned())
                .filter(|n| !n.is_empty())
                .collect()
        })
        .iter()
        .any(|n| n == name)
}

/// Nothing: a build for use has no such places.
#[cfg(not(debug_assertions))]
pub const fn crash_point(_name: &str) {}

/// Ends the process at once, as a kill would, when it was started to end here.
#[cfg(debug_assertions)]
pub fn crash_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct End {
        at: String,
        passes: AtomicU64,
    }
    static END: OnceLock<Option<End>> = OnceLock::new();
    let end = END.get_or_init(|| {
        let text = std::env::var("DRAWBRIDGE_CRASH_AT").ok()?;
        let (at, passes) = text.split_once(':').unwrap_or((&text, "1"));
        Some(End {
            at: at.to_owned(),
            passes: AtomicU64::new(passes.parse().unwrap_or(1).max(1)),
        })
    });
    if let Some(end) = end
        && end.at == name
        && end.passes.fetch_sub(1, Ordering::AcqRel) == 1
    {
        tracing::error!(name, "ends itself here, as it was told to");
        std::process::abort();
    }
}

/// The machine's clock.
#[cfg(not(debug_assertions))]
#[must_use]
pub fn clock() -> Clock {
    Clock::system()
}

/// The machine's clock, set by as many milliseconds as the file holds that `DRAWBRIDGE_CLOCK_FILE`
/// names; it is read many times a second.
#[cfg(debug_assertions)]
#[must_use]
pub fn clock() -> Clock {
    let Some(file) = std::env::var_os("DRAWBRIDGE_CLOCK_FILE") else {
        return Clock::system();
    };
    let clock = Clock::shifted();
    let set = clock.clone();
    let mut ahead = 0;
    let mut follow = move || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Ok(wanted) = text.trim().parse::<i64>() {
            set.shift(wanted.saturating_sub(ahead));
            ahead = wanted;
        }
    };
    follow();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(std::time::Duration::from_millis(20));
            follow();
        }
    });
    clock
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_fault_is_on_unless_it_is_asked_for() {
        assert!(!super::on("ack_before_commit"));
    }

    #[test]
    fn a_process_goes_on_through_places_that_nobody_named() {
        super::POINTS.into_iter().for_each(super::crash_point);
    }
}
