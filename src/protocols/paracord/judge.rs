//! What a server's answer to a push means.

use crate::protocol::{Answer, Judgement, PeerRecord, Refusal, TransportError, Try, Verdict};

/// [`crate::protocol::Protocol::judge`].
pub fn judge(
    _answer: Result<&Answer, &TransportError>,
    _peer: &PeerRecord,
    _attempt: &Try,
) -> Judgement {
    Judgement {
        verdict: Verdict::Hold(Refusal::new("undecided", "not yet")),
        learned: Vec::new(),
    }
}
