//! Room for large bodies: how much of them may be in memory at one time.
//!
//! A relay message may be 10 MiB, and who sends a body is not known before it is read. Small bodies
//! need no room; large ones share a bounded one, so that many senders at once cost what few do. Who
//! finds it full is told to come again.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::MAX_BODY;
use super::answer::Fail;

/// A body up to this many bytes needs no room.
const SMALL: usize = 256 * 1024;
/// Bytes of large bodies held at one time.
const ROOM: usize = 256 * 1024 * 1024;
/// Bytes one permit stands for.
const UNIT: usize = 64 * 1024;
/// Seconds after which a sender may come again.
const COME_AGAIN_S: u32 = 2;

/// The room of one bridge.
#[derive(Debug)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM / UNIT)))
    }
}

impl Room {
    /// Takes the place that a body of at most this many bytes (`None`: nobody knows) may need; it is
    /// given back when the answer is dropped. `Ok(None)`: it needs none.
    pub fn take(&self, at_most: Option<u64>) -> Result<Option<OwnedSemaphorePermit>, Fail> {
        let bytes = at_most.and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.map_or(MAX_BODY, |bytes| bytes.min(MAX_BODY));
        if bytes <= SMALL {
            return Ok(None);
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        match Arc::clone(&self.0).try_acquire_many_owned(units) {
            Ok(place) => Ok(Some(place)),
            Err(_) => Err(Fail::unavailable(
                "large bodies fill their room",
                COME_AGAIN_S,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_share_a_bounded_room_and_small_ones_need_none() {
        let room = Room::default();
        let large = Some(MAX_BODY as u64);
        let mut held = Vec::new();
        while let Ok(place) = room.take(large) {
            held.push(place.expect("a large body needs room"));
            assert!(held.len() * MAX_BODY <= ROOM);
        }
        assert_eq!(held.len(), ROOM / MAX_BODY);
        assert_eq!(room.take(large).unwrap_err().status.as_u16(), 503);
        assert!(room.take(None).is_err(), "it may be large");
        assert!(room.take(Some(SMALL as u64)).unwrap().is_none());
        held.pop();
        assert!(room.take(large).unwrap().is_some(), "it is given back");
    }
}
