//! Operator events and the log.

use serde_json::json;

use super::super::attempt::Finished;
use super::super::lane::Item;
use super::super::outcome::Fate;
use super::{LaneKey, Shard};
use crate::ops::{metrics, trace};
use crate::protocol::{Refusal, Verdict};
use crate::store::Outcome;

impl Shard {
    pub(super) fn report(&self, lane: &LaneKey, item: &Item, finished: &Finished, fate: &Fate) {
        let said = |attempts: u32, reason: &Refusal| {
            let body = json!({"msg_id": item.msg_id, "out_seq": item.out_seq, "event_id": item.event_id, "peer": lane.1.as_str(),
                "attempts": attempts, "code": reason.code, "detail": reason.detail, "queue_id": item.id});
            trace::named(body, item.traceparent.as_deref())
        };
        let (ops, peer) = (&self.shared.ops, lane.1.as_str());
        let outcome = fate.settle.as_ref().map(|s| &s.outcome);
        match (outcome, &fate.reason) {
            (Some(Outcome::Delivered { .. }), _) => {
                ops.tally("delivery", "delivered", lane.0, peer, || {
                    let code = if finished.verdict == Verdict::Duplicate {
                        "duplicate"
                    } else {
                        "delivered"
                    };
                    said(fate.attempts, &Refusal::new(code, ""))
                })
            }
            (Some(Outcome::Retry { next_at_ms, .. }), Some(reason)) => {
                metrics::retry(lane.0);
                let mut body = said(fate.attempts, reason);
                if let Some(members) = body.as_object_mut() {
                    members.insert("next_at_ms".to_owned(), json!(next_at_ms));
                }
                ops.event("delivery", "retrying", lane.0, peer, body);
            }
            (Some(Outcome::Dead { .. }), Some(reason)) => {
                self.report_dead(lane, item, fate.attempts, reason)
            }
            (Some(Outcome::Held { .. }), Some(reason)) => {
                ops.event(
                    "delivery",
                    "held",
                    lane.0,
                    peer,
                    said(fate.attempts, reason),
                );
            }
            // An attempt before the row's time that failed: the peer was tried, the row is as it was.
            (None, Some(reason)) => {
                ops.event("peer", "probed", lane.0, peer, said(fate.attempts, reason));
            }
            _ => {}
        }
    }

    pub(super) fn report_dead(&self, lane: &LaneKey, item: &Item, attempts: u32, reason: &Refusal) {
        metrics::dead(lane.0, reason.code);
        tracing::warn!(
            protocol = lane.0, peer = %lane.1, queue_id = item.id, event_id = item.event_id, msg_id = item.msg_id,
            attempts, code = reason.code, reason = reason.detail, "federation delivery failed for good"
        );
        let body = json!({"msg_id": item.msg_id, "out_seq": item.out_seq, "event_id": item.event_id,
            "peer": lane.1.as_str(), "attempts": attempts, "code": reason.code, "detail": reason.detail,
            "queue_id": item.id});
        let body = trace::named(body, item.traceparent.as_deref());
        self.shared
            .ops
            .event("delivery", "dead", lane.0, lane.1.as_str(), body);
    }
}
