//! Notices of dead rows on `FED_DEAD`. Dead is a state of the row; this tells the backends.
//!
//! A notice is published with `Nats-Msg-Id` = `dead:<protocol>:<row>:<time>` and marked when JetStream acknowledged it,
//! so a crash in between repeats it under the same id.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusError, BusErrorKind, BusMessage, subject};
use crate::faults;
use crate::store::{QueueRow, Store, StoreError};

/// Rows noticed at once.
const PAGE: usize = 100;
/// Notices that wait for their acknowledgement at once.
const IN_FLIGHT: usize = 16;

/// Pause after a pass that found nothing more to do, or nothing that trying again would help, ...
const PAUSE: Duration = Duration::from_secs(30);
/// ... and after one that the broker or the store was away for.
const PAUSE_AWAY: Duration = Duration::from_secs(2);

/// Why rows are left without their notice.
struct Left {
    why: String,
    again_in: Duration,
}

/// Publishes notices when woken, and every [`PAUSE`] in any case, until `stop`.
pub async fn run(bus: Bus, store: Store, wake: Arc<Notify>, stop: CancellationToken) {
    let mut after = 0;
    loop {
        let wait = match publish(&bus, &store, &mut after).await {
            Ok(()) => PAUSE,
            Err(Left { why, again_in }) => {
                tracing::warn!(error = why, "dead letters wait to be published");
                again_in
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One pass over the rows behind `after` that want a notice. A notice that the broker refuses (larger
/// than it takes now) is passed by: it must not hide those behind it. A page that it refuses whole, as
/// when its stream is full, is enough for one pass; the next goes on behind it.
async fn publish(bus: &Bus, store: &Store, after: &mut i64) -> Result<(), Left> {
    let mut left: Result<(), Left> = Ok(());
    loop {
        let rows = store.unnoticed_dead(*after, PAGE).await?;
        let full = rows.len() == PAGE;
        let last = rows.last().filter(|_| full).map(|row| row.id);
        let mut sent = Vec::new();
        let mut away = false;
        for (id, outcome) in tell(bus, rows).await {
            match outcome {
                Ok(_) => sent.push(id),
                Err(e) => {
                    away |= e.kind != BusErrorKind::Refused;
                    left = Err(Left {
                        why: e.to_string(),
                        again_in: if away { PAUSE_AWAY } else { PAUSE },
                    });
                }
            }
        }
        let some = !sent.is_empty();
        if some {
            faults::crash_point("dead_told");
            store.noticed(sent).await?.await?;
        }
        *after = last.filter(|_| !away).unwrap_or(0);
        if *after == 0 || !some {
            return left;
        }
    }
}

impl From<StoreError> for Left {
    fn from(error: StoreError) -> Self {
        Self {
            why: error.to_string(),
            again_in: PAUSE_AWAY,
        }
    }
}

/// Publishes the notices of these rows, a few in flight at a time.
async fn tell(bus: &Bus, rows: Vec<QueueRow>) -> Vec<(i64, Result<(u64, bool), BusError>)> {
    futures_util::stream::iter(rows)
        .map(|row| async move { (row.id, bus.publish(notice(bus.prefix(), &row)).await) })
        .buffered(IN_FLIGHT)
        .collect()
        .await
}

fn notice(prefix: &str, row: &QueueRow) -> BusMessage {
    let kind: Vec<String> = row.event_type.split('.').map(subject::token).collect();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut headers = vec![
        (
            "Nats-Msg-Id".to_owned(),
            // One that was redriven and died again is another notice.
            format!(
                "dead:{}:{}:{}",
                row.protocol,
                row.id,
                row.settled_ms.unwrap_or_default()
            ),
        ),
        ("Fed-Msg-Id".to_owned(), row.msg_id.clone()),
        ("Fed-Event-Id".to_owned(), row.event_id.clone()),
        ("Fed-Type".to_owned(), row.event_type.clone()),
        ("Fed-Peer".to_owned(), row.peer.clone()),
        ("Fed-Out-Seq".to_owned(), row.out_seq.to_string()),
        ("Fed-Attempts".to_owned(), row.attempts.to_string()),
        ("Fed-Reason-Code".to_owned(), text(&row.reason_code)),
        ("Fed-Reason".to_owned(), text(&row.reason)),
        ("Fed-Queue-Id".to_owned(), row.id.to_string()),
    ];
    headers.extend(
        row.traceparent
            .clone()
            .map(|t| ("traceparent".to_owned(), t)),
    );
    for (_, value) in &mut headers {
        value.retain(|c| !c.is_control());
    }
    BusMessage {
        subject: format!(
            "{prefix}.dead.{}.{}.{}",
            row.protocol,
            subject::token(&row.peer),
            kind.join(".")
        ),
        headers,
        payload: row.body.clone(),
        stream: "FED_DEAD",
    }
}
