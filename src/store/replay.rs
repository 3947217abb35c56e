//! Replay ids spent without an event: a credential that may be used once proves a request that
//! enters nothing (a heartbeat, a fetch).
//!
//! The table has no bound of its own. An id leaves with its time, and only a request that was proven
//! spends one, so it holds at most what the rates of the accepted peers let through in that time.

use super::ops::{Answer, Single, Statement, Work};
use super::types::StoreError;
use super::{Commit, Store};
use crate::protocol::{ProtocolId, ReplayId};

/// Nothing is written, and no row counted, while the id is known and its time not over.
const CLAIM: &str = "INSERT INTO federation_replay (protocol, scope, id, expires_ms) \
                     VALUES ($1, $2, $3, $4) ON CONFLICT (protocol, scope, id) DO UPDATE SET \
                     expires_ms = excluded.expires_ms WHERE federation_replay.expires_ms <= $5";

impl Store {
    /// Spends an id: true for one caller only until its time is over, also beside
    /// [`Store::accept`] of an event that carries it. A commit whose outcome the database left open
    /// may spend an id and answer an error or false: the caller makes a fresh one.
    pub async fn claim_replay(
        &self,
        protocol: ProtocolId,
        id: ReplayId,
    ) -> Result<Commit<bool>, StoreError> {
        let now_ms = self.inner.clock.now_ms();
        let claim = Statement::new(CLAIM).bind(protocol).bind(id.scope);
        let claim = claim.bind(id.id).bind(id.expires_ms).bind(now_ms);
        self.write(
            Work::Single(Single::Execute(vec![claim])),
            |answer| matches!(answer, Answer::Number(n) if n > 0),
        )
        .await
    }
}
