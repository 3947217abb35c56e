//! Questions: ours to local backends (`fed.ask`), theirs to the bridge (`fed.do`).

use std::sync::Arc;
use std::time::Duration;

use async_nats::RequestErrorKind;
use async_nats::service::ServiceExt;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::Semaphore;

use super::subject::token;
use super::{Bus, BusError, BusErrorKind, CallHandler};
use crate::ops::defect;
use crate::protocol::Refusal;
use crate::retry::{self, Failure};

/// Calls answered at the same time at most; further ones wait in the subscription.
const CALLS: usize = 64;

/// A call that takes longer is answered with a refusal, so that a backend never hangs on us.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

impl Bus {
    /// A request to a local backend, `fed.ask.<protocol>.<method>`; a method may have several
    /// tokens, separated by `.`.
    pub async fn ask(
        &self,
        protocol: &str,
        method: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, BusError> {
        let method: Vec<String> = method.split('.').map(token).collect();
        let subject = format!(
            "{}.ask.{}.{}",
            self.prefix(),
            token(protocol),
            method.join(".")
        );
        self.request(subject, body, timeout).await
    }

    /// A request to the bridge itself, `fed.do.<protocol>.<method>`, as a local backend makes it.
    /// `Err(Refused)`: the bridge's own sentence.
    pub async fn call_bridge(
        &self,
        protocol: &str,
        method: &str,
        body: Bytes,
    ) -> Result<serde_json::Value, BusError> {
        let subject = format!("{}.do.{}.{method}", self.prefix(), token(protocol));
        let answer = self.request(subject, body, CALL_TIMEOUT).await?;
        let mut answer: serde_json::Value = serde_json::from_slice(&answer)
            .map_err(|e| BusError::unavailable(format!("the bridge's answer is no JSON: {e}")))?;
        if answer.get("ok") == Some(&serde_json::Value::Bool(true)) {
            let result = answer.get_mut("result").map(serde_json::Value::take);
            return Ok(result.unwrap_or_default());
        }
        let sentence = answer
            .pointer("/error/detail")
            .and_then(serde_json::Value::as_str)
            .unwrap_or("refused without a reason");
        Err(BusError::new(BusErrorKind::Refused, sentence.to_owned()))
    }

    pub(super) async fn request(
        &self,
        subject: String,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, BusError> {
        let request = async_nats::Request::new()
            .payload(body)
            .timeout(Some(timeout));
        // The outer limit also covers a connection that takes no more commands.
        let answer = tokio::time::timeout(
            timeout,
            self.inner.client.send_request(subject.clone(), request),
        )
        .await;
        match answer {
            Ok(Ok(message)) => Ok(message.payload),
            Ok(Err(e)) => Err(match e.kind() {
                RequestErrorKind::NoResponders => {
                    BusError::unavailable(format!("nobody answers {subject}"))
                }
                RequestErrorKind::TimedOut => {
                    BusError::unavailable(format!("no answer to {subject} in time"))
                }
                RequestErrorKind::MaxPayloadExceeded => BusError::new(
                    BusErrorKind::Refused,
                    format!("{subject}: larger than the broker's max_payload"),
                ),
                _ => BusError::unavailable(format!("{subject}: {e}")),
            }),
            Err(_) => Err(BusError::unavailable(format!(
                "no answer to {subject} in time"
            ))),
        }
    }

    /// Serves `fed.do.<protocol>.<method>` as the NATS micro service `drawbridge` until the bus is
    /// closed. Returns once requests are being taken; the serving goes on in the background. A
    /// method may have several tokens (`agent.put`). Answers `{"ok":true,"result":…}` or
    /// `{"ok":false,"error":{"code":…,"detail":…}}`.
    pub async fn serve_calls(&self, handler: CallHandler) -> Result<(), BusError> {
        let failed = |e: &dyn std::fmt::Display| {
            BusError::unavailable(format!("the call service cannot be started: {e}"))
        };
        let client = self.inner.client.clone();
        let service = client
            .service_builder()
            .description("Drawbridge: requests of local backends to the federation bridge")
            .start("drawbridge", env!("CARGO_PKG_VERSION"))
            .await
            .map_err(|e| failed(&e))?;
        let root = format!("{}.do", self.prefix());
        let mut endpoint = service
            .endpoint_builder()
            .name("do")
            .add(format!("{root}.*.>"))
            .await
            .map_err(|e| failed(&e))?;
        // The broker handles a connection's commands in order: once it answers this one it knows
        // the subscription. (A flush only empties our own buffer.)
        retry::until(self.inner.config.connect_timeout, || async {
            self.round_trip().await.map_err(Failure::Passing)
        })
        .await
        .map_err(|e| failed(&e))?;
        let closed = self.inner.closed.clone();
        tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(CALLS));
            loop {
                let work = async {
                    let permit = Arc::clone(&room).acquire_owned().await.ok()?;
                    Some((permit, endpoint.next().await?))
                };
                let next = tokio::select! {
                    biased;
                    () = closed.cancelled() => None,
                    next = work => next,
                };
                let Some((permit, request)) = next else {
                    break;
                };
                let call =
                    address(&root, request.message.subject.as_str()).map(|(protocol, method)| {
                        handler(protocol, method, request.message.payload.clone())
                    });
                tokio::spawn(async move {
                    let outcome = match call {
                        None => Err(Refusal::new(
                            "bad_subject",
                            "a call goes to fed.do.<protocol>.<method>",
                        )),
                        Some(call) => {
                            let work = defect::contained(call);
                            match tokio::time::timeout(CALL_TIMEOUT, work).await {
                                Ok(Ok(outcome)) => outcome,
                                Ok(Err(defect)) => {
                                    Err(Refusal::new("internal_error", defect.to_string()))
                                }
                                Err(_) => Err(Refusal::new("timeout", "the call took too long")),
                            }
                        }
                    };
                    if let Err(e) = request.respond(Ok(answer(outcome))).await {
                        tracing::debug!("nats: a call's answer was not sent: {e}");
                    }
                    drop(permit);
                });
            }
            // Dropping the service leaves `$SRV`.
            drop(service);
        });
        Ok(())
    }
}

impl Bus {
    /// Waits until the broker has handled what this connection sent so far: any answer to anything
    /// will do, and this is a question we may always ask.
    pub(super) async fn round_trip(&self) -> Result<(), BusError> {
        self.broker_time_ms("FED_OUT").await.map(|_| ())
    }
}

/// Protocol and method of a call's subject.
fn address(root: &str, subject: &str) -> Option<(String, String)> {
    let (protocol, method) = subject
        .strip_prefix(root)?
        .strip_prefix('.')?
        .split_once('.')?;
    Some((protocol.to_owned(), method.to_owned()))
}

fn answer(outcome: Result<serde_json::Value, Refusal>) -> Bytes {
    let value = match outcome {
        Ok(result) => json!({"ok": true, "result": result}),
        Err(refusal) => json!({
            "ok": false,
            "error": {"code": refusal.code, "detail": refusal.detail},
        }),
    };
    Bytes::from(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_may_have_several_tokens() {
        assert_eq!(
            address("fed.do", "fed.do.uam.agent.put"),
            Some(("uam".to_owned(), "agent.put".to_owned()))
        );
        assert_eq!(address("fed.do", "fed.do.uam"), None);
    }
}
