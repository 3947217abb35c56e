//! Room for large bodies: how much of them may be in memory at one time.
//!
//! A message may be some mebibytes, and who sends a body is not known before it is read. Small bodies
//! need no room; large ones share a bounded one, so that many senders at once cost what few do. Who
//! finds it full is told to come again.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A body up to this many bytes needs no room.
const SMALL: usize = 256 * 1024;
/// Bytes one permit stands for.
const UNIT: usize = 64 * 1024;

/// Seconds after which a sender that found no place may come again.
pub(super) const COME_AGAIN_S: u32 = 2;

/// The room of one protocol.
#[derive(Debug)]
pub(super) struct Room {
    places: Arc<Semaphore>,
    largest: usize,
}

/// There is no place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Room {
    /// Room for this many bytes of bodies, each at most `largest`.
    pub fn new(bytes: usize, largest: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(bytes / UNIT)),
            largest,
        }
    }

    /// Takes the place that a body of at most this many bytes (`None`: nobody knows) may need; it is
    /// given back when the answer is dropped. `Ok(None)`: it needs none.
    pub fn take(&self, at_most: Option<u64>) -> Result<Option<OwnedSemaphorePermit>, Full> {
        let bytes = at_most.and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.map_or(self.largest, |bytes| bytes.min(self.largest));
        if bytes <= SMALL {
            return Ok(None);
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.places).try_acquire_many_owned(units);
        place.map(Some).map_err(|_| Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_share_a_bounded_room_and_small_ones_need_none() {
        const ROOM: usize = 64 * 1024 * 1024;
        const LARGEST: usize = 10 * 1024 * 1024;
        let room = Room::new(ROOM, LARGEST);
        let large = Some(LARGEST as u64);
        let mut held = Vec::new();
        while let Ok(place) = room.take(large) {
            held.push(place.expect("a large body needs room"));
            assert!(held.len() * LARGEST <= ROOM);
        }
        assert_eq!(held.len(), ROOM / LARGEST);
        assert!(room.take(None).is_err(), "it may be large");
        assert!(room.take(Some(SMALL as u64)).unwrap().is_none());
        held.pop();
        assert!(room.take(large).unwrap().is_some(), "it is given back");
    }
}
