//! How many new users a server may bring along in an hour (sheet, 6).

use std::sync::{Mutex, PoisonError};

use crate::clock::UnixMs;
use crate::trust::lru::Lru;

const HOUR_MS: i64 = 3_600_000;
/// Servers counted at most; past that the one asked for longest ago starts anew.
const SERVERS: usize = 4_096;

/// Users counted per server and hour of Unix time.
pub(super) struct Births {
    limit: u32,
    counts: Mutex<Lru<String, (i64, u32)>>,
}

impl Births {
    /// At most `limit` an hour and server; 0: any number.
    pub fn new(limit: u32) -> Self {
        Self {
            limit,
            counts: Mutex::new(Lru::new(SERVERS)),
        }
    }

    /// Counts one more user of this server; false: there were too many this hour. A refused one
    /// counts, too.
    pub fn admit(&self, server: &str, now_ms: UnixMs) -> bool {
        if self.limit == 0 {
            return true;
        }
        let hour = now_ms.div_euclid(HOUR_MS);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let server = server.to_ascii_lowercase();
        let Some(count) = counts.get_or_insert_with(server, || (hour, 0)) else {
            return false;
        };
        if count.0 != hour {
            *count = (hour, 0);
        }
        count.1 = count.1.saturating_add(1);
        count.1 <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_brings_so_many_users_an_hour_and_no_more() {
        let births = Births::new(2);
        assert!(births.admit("a.example", HOUR_MS));
        assert!(births.admit("A.example", HOUR_MS + 1));
        assert!(!births.admit("a.example", 2 * HOUR_MS - 1));
        assert!(births.admit("b.example", HOUR_MS));
        assert!(births.admit("a.example", 2 * HOUR_MS));
    }

    #[test]
    fn no_limit_is_no_limit() {
        let births = Births::new(0);
        assert!((0..1000).all(|n| births.admit("a.example", n)));
    }
}
