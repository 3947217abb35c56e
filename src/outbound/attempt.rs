//! One attempt: resolve → dress → send → judge, and the one log line it leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::{Clock, UnixMs};
use crate::faults;
use crate::http::client::Client;
use crate::ops::{defect, metrics, trace};
use crate::peers::Peers;
use crate::protocol::{
    Answer, Fault, PeerName, PeerRecord, Protocol, Refusal, Sealed, TransportError, TransportKind,
    Try, Verdict,
};

use super::lane::Item;

/// What an attempt needs besides the row.
#[derive(Clone)]
pub struct Tools {
    pub client: Client,
    pub peers: Peers,
    pub clock: Clock,
    /// Total time of one request.
    pub timeout: Duration,
    /// Largest answer read, bytes.
    pub max_answer: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Finished {
    /// Never `Again` nor `Rediscover`.
    pub verdict: Verdict,
    pub status: Option<u16>,
    pub started_ms: UnixMs,
    pub elapsed: Duration,
}

/// Other forms tried within one attempt at most.
const MAX_AGAIN: u32 = 2;

/// Makes one attempt and logs it.
pub async fn run(
    tools: &Tools,
    protocol: &Arc<dyn Protocol>,
    peer: &PeerName,
    item: &Item,
    body: bytes::Bytes,
) -> Finished {
    let (started_ms, begun) = (tools.clock.now_ms(), Instant::now());
    let sealed = Sealed {
        event_id: item.event_id.clone(),
        body,
        order_key: item.key.to_string(),
        expires_ms: item.expires_ms,
        records: Vec::new(),
        room_event: None,
        state: None,
    };
    // A defect of ours must not cost the place in the window, nor the row.
    let work = defect::contained(verdict(tools, protocol, peer, item, &sealed));
    let (verdict, status) = work.await.unwrap_or_else(|_| {
        let detail = "the attempt ended in a defect of the bridge; its log says where";
        (retry_message("internal_error", detail.into()), None)
    });
    let finished = Finished {
        verdict,
        status,
        started_ms,
        elapsed: begun.elapsed(),
    };
    log(protocol.id(), peer, item, &finished);
    finished
}

async fn verdict(
    tools: &Tools,
    protocol: &Arc<dyn Protocol>,
    peer: &PeerName,
    item: &Item,
    sealed: &Sealed,
) -> (Verdict, Option<u16>) {
    let mut record = match tools.peers.resolve(protocol, peer).await {
        Ok(record) => record,
        Err(e) => return (retry_peer(e.kind.code(), e.detail), None),
    };
    let span = item.traceparent.as_deref().and_then(trace::child);
    let mut again = 0;
    let mut rediscovered = false;
    loop {
        let attempt = Try {
            number: item.attempts + 1,
            now_ms: tools.clock.now_ms(),
            again,
            traceparent: span.clone(),
        };
        let answer = match send(tools, protocol, &record, sealed, &attempt).await {
            Ok(answer) => answer,
            Err(refusal) => return (Verdict::Refused(refusal), None),
        };
        let status = answer.as_ref().ok().map(|a| a.status);
        let judged = protocol.judge(answer.as_ref(), &record, &attempt);
        if !judged.learned.is_empty() {
            tools.peers.learn(protocol.id(), peer, &judged.learned);
        }
        match judged.verdict {
            Verdict::Again if again < MAX_AGAIN => {
                again += 1;
                if let Some(fresh) = tools.peers.known(protocol.id(), peer) {
                    record = fresh;
                }
            }
            Verdict::Again => {
                return (
                    retry_message(
                        "no_common_form",
                        "the peer accepted none of the forms tried".into(),
                    ),
                    status,
                );
            }
            Verdict::Rediscover { .. } if !rediscovered => {
                rediscovered = true;
                again += 1;
                match tools.peers.refresh(protocol, peer).await {
                    Ok(Some(fresh)) => record = fresh,
                    Ok(None) => {}
                    Err(e) => {
                        tracing::debug!(peer = %peer, error = %e, "looking the peer up anew failed")
                    }
                }
            }
            Verdict::Rediscover { fault, reason } => {
                return (
                    Verdict::Retry {
                        fault,
                        reason,
                        after: None,
                    },
                    status,
                );
            }
            other => return (other, status),
        }
    }
}

/// Sends to the endpoint, then, while none answers, to the alternatives.
async fn send(
    tools: &Tools,
    protocol: &Arc<dyn Protocol>,
    record: &Arc<PeerRecord>,
    sealed: &Sealed,
    attempt: &Try,
) -> Result<Result<Answer, TransportError>, Refusal> {
    let first = protocol.dress(sealed, record, attempt)?;
    faults::crash_point("out_dressed");
    let mut answer = tools
        .client
        .send(first, tools.timeout, tools.max_answer)
        .await;
    for endpoint in &record.alternatives {
        let elsewhere = matches!(
            answer,
            Err(TransportError {
                kind: TransportKind::Dns | TransportKind::Connect | TransportKind::Tls,
                ..
            })
        );
        if !elsewhere {
            break;
        }
        let other = PeerRecord {
            endpoint: endpoint.clone(),
            ..(**record).clone()
        };
        let request = protocol.dress(sealed, &other, attempt)?;
        answer = tools
            .client
            .send(request, tools.timeout, tools.max_answer)
            .await;
    }
    faults::crash_point("out_answered");
    Ok(answer)
}

fn retry_peer(code: &'static str, detail: String) -> Verdict {
    Verdict::Retry {
        fault: Fault::Peer,
        reason: Refusal { code, detail },
        after: None,
    }
}

fn retry_message(code: &'static str, detail: String) -> Verdict {
    Verdict::Retry {
        fault: Fault::Message,
        reason: Refusal { code, detail },
        after: None,
    }
}

fn log(protocol: &'static str, peer: &PeerName, item: &Item, finished: &Finished) {
    let ms = u64::try_from(finished.elapsed.as_millis()).unwrap_or(u64::MAX);
    let number = item.attempts + 1;
    let (outcome, reason) = match &finished.verdict {
        Verdict::Delivered => ("delivered", None),
        Verdict::Duplicate => ("duplicate", None),
        Verdict::Retry { reason, .. } => ("retry", Some(reason)),
        Verdict::Throttled { reason, .. } => ("throttled", Some(reason)),
        Verdict::Refused(reason) => ("refused", Some(reason)),
        Verdict::Hold(reason) => ("held", Some(reason)),
        Verdict::Mailbox(reason) => ("mailbox", Some(reason)),
        Verdict::Again | Verdict::Rediscover { .. } => ("again", None),
    };
    let trace_id = item.traceparent.as_deref().and_then(trace::id);
    metrics::attempt(protocol, outcome, finished.elapsed.as_secs_f64());
    match reason {
        None => tracing::info!(
            protocol, peer = %peer, queue_id = item.id, event_id = item.event_id, msg_id = item.msg_id,
            attempt = number, status = finished.status, ms, outcome, trace_id,
            "{}", if number > 1 { "federation retry delivered" } else { "federation delivered" }
        ),
        Some(why) if matches!(finished.verdict, Verdict::Mailbox(_)) => tracing::info!(
            protocol, peer = %peer, queue_id = item.id, msg_id = item.msg_id, status = finished.status,
            code = why.code, "{}", why.detail
        ),
        Some(why) => tracing::warn!(
            protocol, peer = %peer, queue_id = item.id, event_id = item.event_id, msg_id = item.msg_id,
            attempt = number, status = finished.status, ms, outcome, code = why.code, reason = why.detail,
            trace_id, "federation attempt failed"
        ),
    }
    if number == 1 && finished.verdict == Verdict::Duplicate {
        metrics::duplicate_first(protocol);
        tracing::warn!(
            protocol, peer = %peer, event_id = item.event_id,
            "the peer answered duplicate to a first attempt: it may have lost the message"
        );
    }
}
