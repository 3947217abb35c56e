//! Faults on purpose: broken promises that the crash test must notice.
//!
//! A test that has never failed proves little. With the cargo feature `faults` the environment
//! variable `DRAWBRIDGE_FAULT` names faults (comma between them) and the places that keep a promise
//! break it; `tests/crash.rs` then has to turn red. Without the feature [`on`] is `false` at compile
//! time and nothing of this is in the binary.
//!
//! | name | what it breaks |
//! | --- | --- |
//! | `ack_before_commit` | promise 1: `FED_OUT` is acknowledged although no row is durable |
//! | `shuffle_keys` | promise 4: rows of one order key leave in another order |
//! | `dedup_off` | promise 3: an event id that is known reaches `fed.in` again |
//! | `stale_consumer` | an earlier process's consumer is kept instead of renewed |
//! | `one_handout` | a message that was fetched once counts as delivered, lost answer or not |
//! | `flat_depth` | events that a room sees in one second have one depth |
//! | `poll_forward` | a poll begins where the last one ended, and never looks back |

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

#[cfg(test)]
mod tests {
    #[test]
    fn no_fault_is_on_unless_it_is_asked_for() {
        assert!(!super::on("ack_before_commit"));
    }
}
