//! Starting while the database is away, as it may be for a moment whenever machines start together.

use std::future::Future;
use std::time::Duration;

use super::StartError;
use crate::bus::BusErrorKind;
use crate::outbound;
use crate::protocols::uam::UamError;
use crate::retry::{self, Failure};
use crate::store::{StoreError, StoreErrorKind};

/// Takes a step of the start, and again while it fails because something is away, for `patience`.
pub(super) async fn patiently<T, E, F>(
    patience: Duration,
    mut step: impl FnMut() -> F,
) -> Result<T, StartError>
where
    F: Future<Output = Result<T, E>>,
    StartError: From<E>,
{
    let mut told = false;
    retry::until(patience, || {
        let taken = step();
        let first = !std::mem::replace(&mut told, true);
        async move {
            taken.await.map_err(|error| {
                let error = StartError::from(error);
                if !may_pass(&error) {
                    return Failure::Final(error);
                }
                if first {
                    tracing::warn!(%error, "cannot start yet; trying for {patience:?}");
                }
                Failure::Passing(error)
            })
        }
    })
    .await
}

/// Whether it may have passed in a moment.
fn may_pass(error: &StartError) -> bool {
    match error {
        StartError::Store(e)
        | StartError::Uam(UamError::Store(e))
        | StartError::Outbound(outbound::StartError::Store(e)) => is_away(e),
        StartError::Bus(e) => e.kind == BusErrorKind::Unavailable,
        _ => false,
    }
}

fn is_away(error: &StoreError) -> bool {
    error.kind == StoreErrorKind::Unavailable
}
