//! Delays between attempts to reach the broker or the database.
//!
//! The only place that uses the `backoff` crate: one function, so that replacing the crate (it is
//! no longer maintained) is a change of a few lines.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// Whether trying again can help.
pub(crate) enum Failure<E> {
    /// It may heal.
    Passing(E),
    /// It will not.
    Final(E),
}

/// Runs `attempt` until it succeeds, fails for good, or `patience` is over; delays grow from 50 ms
/// to 2 s and are jittered. Answers the last failure.
pub(crate) async fn until<T, E>(
    patience: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, Failure<E>>,
) -> Result<T, E> {
    let mut delays = ExponentialBackoff {
        current_interval: Duration::from_millis(50),
        initial_interval: Duration::from_millis(50),
        max_interval: Duration::from_secs(2),
        max_elapsed_time: Some(patience),
        ..ExponentialBackoff::default()
    };
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(error)) => match delays.next_backoff() {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            },
        }
    }
}

/// Delay before the `attempt`-th reconnect: at once, then 50 ms doubling to 4 s, half of it at
/// random, so that many clients do not come back in step.
pub(crate) fn reconnect_delay(attempt: usize) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(7);
    let ceiling = (50u64 << doublings).min(4_000);
    let mut dice = [0u8; 2];
    // Without randomness the delay is only less spread.
    let spread = match getrandom::fill(&mut dice) {
        Ok(()) => u64::from(u16::from_le_bytes(dice)),
        Err(_) => u64::from(u16::MAX),
    };
    Duration::from_millis(ceiling / 2 + (ceiling / 2) * spread / u64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnecting_never_waits_longer_than_four_seconds() {
        for attempt in [0, 1, 2, 3, 9, 100, usize::MAX] {
            assert!(reconnect_delay(attempt) <= Duration::from_secs(4));
        }
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        assert!(reconnect_delay(50) >= Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_final_failure_is_not_tried_again() {
        let mut tries = 0;
        let answer: Result<(), u8> = until(Duration::from_secs(60), async || {
            tries += 1;
            Err(Failure::Final(7))
        })
        .await;
        assert_eq!((answer, tries), (Err(7), 1));
    }
}
