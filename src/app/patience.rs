//! Starting while the database or the broker is away, as they may be for a moment whenever machines
//! start together.

use std::time::Duration;

use super::StartError;
use crate::bus::BusErrorKind;
use crate::outbound;
use crate::protocols::paracord::ParacordError;
use crate::protocols::paracord::book::BookError as ParacordBookError;
use crate::protocols::uam::UamError;
use crate::protocols::voltchat::VoltChatError;
use crate::protocols::voltchat::book::BookError;
use crate::retry::{self, Failure};
use crate::store::{StoreError, StoreErrorKind};

/// Takes a step of the start, and again while it fails because something is away, for `patience`.
pub(super) async fn patiently<T, E>(
    patience: Duration,
    step: impl AsyncFn() -> Result<T, E>,
) -> Result<T, StartError>
where
    StartError: From<E>,
{
    let mut told = false;
    retry::until(patience, async || {
        let error = match step().await {
            Ok(done) => return Ok(done),
            Err(error) => StartError::from(error),
        };
        if !may_pass(&error) {
            return Err(Failure::Final(error));
        }
        if !told {
            told = true;
            tracing::warn!(%error, "cannot start yet; trying for {patience:?}");
        }
        Err(Failure::Passing(error))
    })
    .await
}

/// Whether it may have passed in a moment.
fn may_pass(error: &StartError) -> bool {
    match error {
        StartError::Store(e)
        | StartError::Uam(UamError::Store(e))
        | StartError::VoltChat(
            VoltChatError::Store(e) | VoltChatError::Book(BookError::Store(e)),
        )
        | StartError::Paracord(
            ParacordError::Store(e) | ParacordError::Book(ParacordBookError::Store(e)),
        )
        | StartError::Outbound(outbound::StartError::Store(e)) => is_away(e),
        StartError::Bus(e) => e.kind == BusErrorKind::Unavailable,
        _ => false,
    }
}

fn is_away(error: &StoreError) -> bool {
    error.kind == StoreErrorKind::Unavailable
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::bus::BusError;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn failed(kind: BusErrorKind) -> BusError {
        let detail = "no answer".into();
        BusError { kind, detail }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_is_taken_again_until_what_was_away_is_back() {
        let taken = Cell::new(0);
        let step = || async {
            taken.set(taken.get() + 1);
            match taken.get() {
                1 | 2 => Err(failed(BusErrorKind::Unavailable)),
                n => Ok(n),
            }
        };
        assert_eq!(patiently(PATIENCE, step).await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_waiting_mends_ends_the_start_at_once() {
        let taken = Cell::new(0);
        let step = || async {
            taken.set(taken.get() + 1);
            Err::<(), _>(failed(BusErrorKind::Stream))
        };
        assert!(patiently(PATIENCE, step).await.is_err());
        assert_eq!(taken.get(), 1);
    }
}
