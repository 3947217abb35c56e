//! Who is told what became of an operation: its own caller, or one caller for many operations.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ops::Answer;
use super::types::StoreError;

/// The end of an operation's way back.
#[derive(Debug)]
pub(super) enum Told {
    /// Somebody waits for this operation alone.
    One(oneshot::Sender<Result<Answer, StoreError>>),
    /// One of many that were handed in together, and its number among them.
    Of(Arc<Together>, usize),
    /// Nobody.
    Nobody,
}

impl Told {
    /// Tells. Whoever asked may have gone; the write stands all the same.
    pub fn tell(self, result: Result<Answer, StoreError>) {
        match self {
            Self::One(asked) => drop(asked.send(result)),
            Self::Of(together, number) => together.note(number, result),
            Self::Nobody => {}
        }
    }
}

/// Operations of one caller, who is told once when the last of them is done.
#[derive(Debug)]
pub(super) struct Together {
    state: Mutex<State>,
    /// The room they take together.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct State {
    left: usize,
    failed: Failed,
    done: Option<oneshot::Sender<Failed>>,
}

/// Which of the operations failed, by number, and why.
pub(super) type Failed = Vec<(usize, StoreError)>;

impl Together {
    /// So many operations, at least one.
    pub fn new(count: usize, room: OwnedSemaphorePermit) -> (Arc<Self>, oneshot::Receiver<Failed>) {
        let (done, told) = oneshot::channel();
        let state = State {
            left: count,
            failed: Vec::new(),
            done: Some(done),
        };
        let together = Self {
            state: Mutex::new(state),
            _room: room,
        };
        (Arc::new(together), told)
    }

    fn note(&self, number: usize, result: Result<Answer, StoreError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = result {
            state.failed.push((number, error));
        }
        state.left = state.left.saturating_sub(1);
        if state.left == 0
            && let Some(done) = state.done.take()
        {
            let _ = done.send(std::mem::take(&mut state.failed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::types::StoreErrorKind;

    #[tokio::test]
    async fn the_caller_of_many_is_told_once_of_those_that_failed() {
        let room = Arc::new(tokio::sync::Semaphore::new(8));
        let permit = room.clone().acquire_many_owned(8).await.unwrap();
        let (together, mut told) = Together::new(3, permit);
        let error = StoreError {
            kind: StoreErrorKind::Corrupt,
            detail: "no".into(),
        };
        Told::Of(together.clone(), 2).tell(Err(error));
        Told::Of(together.clone(), 0).tell(Ok(Answer::Done));
        assert!(told.try_recv().is_err());
        Told::Of(together, 1).tell(Ok(Answer::Done));
        let failed = told.await.unwrap();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, 2);
        assert_eq!(room.available_permits(), 8);
    }
}
