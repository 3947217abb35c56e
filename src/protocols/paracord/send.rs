//! From a backend's message to a push.

use super::Paracord;
use crate::protocol::{OutEvent, PeerRecord, Refusal, Request, Scope, Sealed, Targets, Try};

/// Whom an event goes to.
pub fn targets(_p: &Paracord, _event: &OutEvent) -> Result<Targets, Refusal> {
    Err(Refusal::new("bad_message", "not yet"))
}

/// In which room it is sealed.
pub fn scope(_p: &Paracord, _event: &OutEvent) -> Option<Scope> {
    None
}

/// Makes it final.
pub fn seal(_p: &Paracord, _event: &OutEvent, _previous: Option<&str>) -> Result<Sealed, Refusal> {
    Err(Refusal::new("bad_message", "not yet"))
}

/// Signs one attempt.
pub fn dress(
    _p: &Paracord,
    _sealed: &Sealed,
    _peer: &PeerRecord,
    _attempt: &Try,
) -> Result<Request, Refusal> {
    Err(Refusal::new("bad_message", "not yet"))
}
