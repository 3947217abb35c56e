//! Publishing: done when JetStream acknowledged it, ordered when a window is in flight, and never
//! awaited where it is only a notice.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::parse::{FORWARDED_ID, FORWARDED_PEER};
use super::subject::{hex, token};
use super::{Bus, BusError, BusErrorKind, BusMessage};
use crate::protocol::OutEvent;

impl Bus {
    /// Publishes and awaits the PubAck; answers the stream sequence and whether it was a duplicate.
    pub async fn publish(&self, message: BusMessage) -> Result<(u64, bool), BusError> {
        self.publish_windowed(message).await?.await
    }

    /// Publishes in order with a window in flight: resolves to one receiver per message, in order
    /// of PubAck. The outer future waits for room in the window, so the order of calls is the
    /// order in the stream.
    pub async fn publish_windowed(
        &self,
        message: BusMessage,
    ) -> Result<BoxFuture<'static, Result<(u64, bool), BusError>>, BusError> {
        let stream = self.stream(message.stream);
        let mut headers = headers(&message.headers)?;
        headers.insert(
            async_nats::header::NATS_EXPECTED_STREAM,
            HeaderValue::from_str(&stream).map_err(|e| {
                BusError::new(BusErrorKind::Config, format!("stream name {stream}: {e}"))
            })?,
        );
        let publish = PublishMessage::build()
            .payload(message.payload)
            .headers(headers);
        let permit = Arc::clone(&self.inner.window)
            .acquire_owned()
            .await
            .map_err(|_| BusError::unavailable("the connection is closed"))?;
        let subject = message.subject;
        let sent = tokio::time::timeout(
            self.patience(),
            self.inner.js.send_publish(subject.clone(), publish),
        )
        .await
        .map_err(|_| BusError::unavailable(format!("publishing {subject}: not sent in time")))?
        .map_err(|e| publish_error(&e, &subject))?;
        Ok(Box::pin(async move {
            let answer = sent.await;
            drop(permit);
            answer
                .map(|ack| (ack.sequence, ack.duplicate))
                .map_err(|e| publish_error(&e, &subject))
        }))
    }

    /// Publishes an outbound message as a backend would: `fed.out.<protocol>.<peer>.<type>`. A
    /// peer that begins with `_` is one of the contract's words (`_all`, `_to`) and stays literal;
    /// the type's tokens are separated by `.`.
    pub async fn publish_out(
        &self,
        protocol: &str,
        peer: &str,
        event_type: &str,
        headers: Vec<(String, String)>,
        payload: Bytes,
    ) -> Result<(u64, bool), BusError> {
        let peer = if peer.starts_with('_') {
            peer.to_owned()
        } else {
            token(peer)
        };
        let kind: Vec<String> = event_type.split('.').map(token).collect();
        self.publish(BusMessage {
            subject: format!(
                "{}.out.{}.{peer}.{}",
                self.prefix(),
                token(protocol),
                kind.join(".")
            ),
            headers,
            payload,
            stream: "FED_OUT",
        })
        .await
    }

    /// Sends a message on as a copy for one of its targets: to everybody but the broker it is the
    /// message that was published, with its id and headers. The order of calls is the order in the
    /// stream; the inner future resolves when JetStream acknowledged it. A copy sent before, within
    /// the broker's window for duplicates, is not stored again.
    pub async fn forward_out(
        &self,
        protocol: &str,
        peer: &str,
        event: &OutEvent,
    ) -> Result<BoxFuture<'static, Result<(u64, bool), BusError>>, BusError> {
        let kind: Vec<String> = event.event_type.split('.').map(token).collect();
        let mut id = Sha256::new();
        for part in [event.msg_id.as_bytes(), peer.as_bytes()] {
            id.update((part.len() as u64).to_be_bytes());
            id.update(part);
        }
        let mut headers = vec![
            (
                "Nats-Msg-Id".to_owned(),
                format!("fwd:{}", hex(&id.finalize())),
            ),
            (FORWARDED_ID.to_owned(), event.msg_id.clone()),
            (FORWARDED_PEER.to_owned(), peer.to_owned()),
        ];
        let expires = event
            .expires_ms
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let given = [
            ("Fed-Order", event.order.clone()),
            ("Fed-Expires", expires.map(|at| at.to_string())),
            ("Fed-Hops", event.hops.map(|hops| hops.to_string())),
            ("Fed-Peer", event.came_from.clone()),
            ("traceparent", event.traceparent.clone()),
        ];
        for (name, value) in given {
            headers.extend(value.map(|value| (name.to_owned(), value)));
        }
        self.publish_windowed(BusMessage {
            subject: format!(
                "{}.out.{}.{}.{}",
                self.prefix(),
                token(protocol),
                token(peer),
                kind.join(".")
            ),
            headers,
            payload: event.payload.clone(),
            stream: "FED_OUT",
        })
        .await
    }

    /// Core publish without acknowledgement (ops events go through JetStream stream FED_OPS but
    /// are not awaited). When too many wait to be sent the notice is dropped and counted
    /// ([`Bus::notices_dropped`]): operators' events never slow a delivery.
    pub fn notify(&self, subject: String, payload: Bytes) {
        if self.inner.notices.try_send((subject, payload)).is_err() {
            let before = self.inner.notices_dropped.fetch_add(1, Ordering::Relaxed);
            if before.is_power_of_two() || before == 0 {
                tracing::warn!("nats: {} ops events dropped so far", before + 1);
            }
        }
    }
}

/// Sends notices one after the other until the bus is closed and none is left.
pub(super) async fn send_notices(
    client: async_nats::Client,
    mut queue: mpsc::Receiver<(String, Bytes)>,
    closed: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            biased;
            next = queue.recv() => next,
            () = closed.cancelled() => None,
        };
        let Some((subject, payload)) = next else {
            return;
        };
        if let Err(e) = client.publish(subject, payload).await {
            tracing::debug!("nats: an ops event was not sent: {e}");
        }
    }
}

fn headers(pairs: &[(String, String)]) -> Result<HeaderMap, BusError> {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let refused = || {
            BusError::new(
                BusErrorKind::Refused,
                format!("the header {name:?} or its value cannot be carried by NATS"),
            )
        };
        let key = HeaderName::from_str(name).map_err(|_| refused())?;
        map.append(key, HeaderValue::from_str(value).map_err(|_| refused())?);
    }
    Ok(map)
}

fn publish_error(error: &PublishError, subject: &str) -> BusError {
    match error.kind() {
        PublishErrorKind::StreamNotFound => BusError::new(
            BusErrorKind::Stream,
            format!("publishing {subject}: no stream takes it; was the stream deleted?"),
        ),
        PublishErrorKind::MaxPayloadExceeded => BusError::new(
            BusErrorKind::Refused,
            format!("publishing {subject}: larger than the broker's max_payload"),
        ),
        PublishErrorKind::TimedOut => {
            BusError::unavailable(format!("publishing {subject}: no acknowledgement in time"))
        }
        PublishErrorKind::Other => {
            let inner = std::error::Error::source(error)
                .and_then(|e| e.downcast_ref::<async_nats::jetstream::Error>());
            match inner {
                Some(inner) => js_error(inner, &format!("publishing {subject}")),
                None => BusError::unavailable(format!("publishing {subject}: {error}")),
            }
        }
        _ => BusError::unavailable(format!("publishing {subject}: {error}")),
    }
}

/// What a JetStream error answer means.
pub(super) fn js_error(error: &async_nats::jetstream::Error, doing: &str) -> BusError {
    let code = error.error_code();
    let kind = if code == ErrorCode::STREAM_NOT_FOUND || code == ErrorCode::STREAM_NOT_MATCH {
        BusErrorKind::Stream
    } else if code == ErrorCode::STREAM_STORE_FAILED {
        BusErrorKind::Refused
    } else if error.code() == 503 {
        BusErrorKind::Unavailable
    } else {
        BusErrorKind::Refused
    };
    BusError::new(kind, format!("{doing}: {error}"))
}
