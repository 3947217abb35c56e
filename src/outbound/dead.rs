//! Notices of dead rows on `FED_DEAD`. Dead is a state of the row; this tells the backends.
//!
//! A notice is published with `Nats-Msg-Id` = `dead:<protocol>:<row>:<time>` and marked when JetStream acknowledged it,
//! so a crash in between repeats it under the same id.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusError, BusMessage, subject};
use crate::faults;
use crate::store::{QueueRow, Store};

/// Rows noticed at once.
const PAGE: usize = 100;

/// Publishes notices when woken, and every 30 s in any case, until `stop`.
pub async fn run(bus: Bus, store: Store, wake: Arc<Notify>, stop: CancellationToken) {
    loop {
        let wait = match publish(&bus, &store).await {
            Ok(()) => Duration::from_secs(30),
            Err(error) => {
                tracing::warn!(error, "dead letters wait to be published");
                Duration::from_secs(2)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn publish(bus: &Bus, store: &Store) -> Result<(), String> {
    loop {
        let rows = store
            .unnoticed_dead(PAGE)
            .await
            .map_err(|e| e.to_string())?;
        let full = rows.len() == PAGE;
        let mut sent = Vec::new();
        let mut failed: Option<BusError> = None;
        for row in rows {
            match bus.publish(notice(bus.prefix(), &row)).await {
                Ok(_) => sent.push(row.id),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        if !sent.is_empty() {
            faults::crash_point("dead_told");
            store
                .noticed(sent)
                .await
                .map_err(|e| e.to_string())?
                .await
                .map_err(|e| e.to_string())?;
        }
        match failed {
            Some(e) => return Err(e.to_string()),
            None if !full => return Ok(()),
            None => {}
        }
    }
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
