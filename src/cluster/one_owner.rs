//! A protocol that one instance serves as a whole, as the other parts of every instance see it.
//!
//! Who does not hold it answers its routes with 503, beats for nobody, writes nothing of its memory
//! down, and passes the calls of backends and operators on to who does. Who gains it makes it anew from
//! the store, over a handle that writes under the new lease only: nothing that was in memory when it was
//! another's can be seen, and nothing an earlier owner still has in hand can be written.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::tenure::{Hold, Tenure};
use crate::bus::Bus;
use crate::protocol::{
    Answer, Beats, Judgement, MailboxBounds, OutEvent, OwnKey, PeerName, PeerRecord, Protocol,
    ProtocolId, Refusal, Request, Rotation, Schedule, Scope, Sealed, Targets, Tell, TransportError,
    Try, Via,
};
use crate::store::{Store, Unit};

/// The first token of a call passed on; protocol and method follow.
pub const CALL: &str = "call";
/// How long a call that was passed on may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// When to come again for what another instance serves, seconds.
const AGAIN: u64 = 5;
/// Codes of refusals that came from other instances, kept at most.
const CODES: usize = 1_024;
/// A code is no longer than this.
const CODE: usize = 64;

/// Makes the protocol anew from the store; `Err`: why it cannot be.
pub type Make =
    Arc<dyn Fn(Store) -> BoxFuture<'static, Result<Arc<dyn Protocol>, String>> + Send + Sync>;

/// The protocol and who may serve it.
pub struct OneOwner {
    id: ProtocolId,
    schedule: Schedule,
    current: ArcSwap<Current>,
    make: Make,
    store: Store,
    tenure: Tenure,
    bus: Bus,
}

/// As it was last made.
struct Current {
    inner: Arc<dyn Protocol>,
    routes: axum::Router,
}

impl Current {
    fn new(inner: Arc<dyn Protocol>) -> Arc<Self> {
        let routes = inner.clone().routes();
        Arc::new(Self { inner, routes })
    }
}

impl OneOwner {
    /// Wraps a protocol, made over `store`, that one instance serves as a whole.
    pub fn over(
        first: Arc<dyn Protocol>,
        make: Make,
        store: &Store,
        tenure: &Tenure,
        bus: &Bus,
    ) -> Arc<dyn Protocol> {
        Arc::new(Self {
            id: first.id(),
            schedule: first.schedule().clone(),
            current: ArcSwap::new(Current::new(first)),
            make,
            store: store.clone(),
            tenure: tenure.clone(),
            bus: bus.clone(),
        })
    }

    fn inner(&self) -> Arc<dyn Protocol> {
        self.current.load().inner.clone()
    }

    fn unit(&self) -> Unit {
        Unit {
            protocol: self.id,
            part: None,
        }
    }

    fn is_ours(&self) -> bool {
        self.tenure.answers_for(self.id)
    }

    async fn pass_on(&self, method: &str, body: Bytes) -> Result<Value, Refusal> {
        let nobody = || {
            let id = self.id;
            Refusal::new(
                "owner_unavailable",
                format!("no instance serves {id} at the moment; try again in a few seconds"),
            )
        };
        let owner = self.tenure.owner(self.unit()).ok_or_else(nobody)?;
        let what = format!("{CALL}.{}.{method}", self.id);
        let answer = self.bus.ask_instance(&owner, &what, body, PATIENCE).await;
        let answer = answer.map_err(|error| {
            tracing::debug!(%error, owner, "a call could not be passed on");
            nobody()
        })?;
        read_answer(&answer).unwrap_or_else(|| Err(nobody()))
    }
}

/// What came of a call, as one instance tells another.
pub fn written_answer(answer: Result<Value, Refusal>) -> Bytes {
    let value = match answer {
        Ok(result) => json!({"ok": true, "result": result}),
        Err(refusal) => json!({"ok": false, "code": refusal.code, "detail": refusal.detail}),
    };
    Bytes::from(value.to_string())
}

fn read_answer(bytes: &[u8]) -> Option<Result<Value, Refusal>> {
    let mut answer: Value = serde_json::from_slice(bytes).ok()?;
    if answer.get("ok")?.as_bool()? {
        return Some(Ok(answer.get_mut("result")?.take()));
    }
    let code = code_named(answer.get("code")?.as_str()?);
    let detail = answer.get("detail")?.as_str()?;
    Some(Err(Refusal::new(code, detail)))
}

/// The code as those of this process are. Other instances run the same program, so there are few; the
/// number is bounded all the same.
fn code_named(code: &str) -> &'static str {
    static MET: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut met = MET.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = met.get(code) {
        return known;
    }
    if met.len() >= CODES || code.len() > CODE {
        return "refused";
    }
    let kept: &'static str = Box::leak(code.to_owned().into_boxed_str());
    met.insert(kept);
    kept
}

impl Protocol for OneOwner {
    fn id(&self) -> ProtocolId {
        self.id
    }

    fn enabled(&self) -> bool {
        self.inner().enabled()
    }

    fn max_body(&self) -> usize {
        self.inner().max_body()
    }

    fn targets(&self, event: &OutEvent) -> Result<Targets, Refusal> {
        self.inner().targets(event)
    }

    fn scope(&self, event: &OutEvent) -> Option<Scope> {
        self.inner().scope(event)
    }

    fn seal(&self, event: &OutEvent, previous: Option<&str>) -> Result<Sealed, Refusal> {
        self.inner().seal(event, previous)
    }

    fn prepare(
        &self,
        event: &OutEvent,
        previous: Option<&str>,
    ) -> Result<(Targets, Sealed), Refusal> {
        self.inner().prepare(event, previous)
    }

    fn via(&self, peer: &PeerName) -> Via {
        self.inner().via(peer)
    }

    fn dress(&self, sealed: &Sealed, peer: &PeerRecord, attempt: &Try) -> Result<Request, Refusal> {
        self.inner().dress(sealed, peer, attempt)
    }

    fn judge(
        &self,
        answer: Result<&Answer, &TransportError>,
        peer: &PeerRecord,
        attempt: &Try,
    ) -> Judgement {
        self.inner().judge(answer, peer, attempt)
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn discover<'a>(
        &'a self,
        name: &'a PeerName,
    ) -> BoxFuture<'a, Result<PeerRecord, TransportError>> {
        let inner = self.inner();
        Box::pin(async move { inner.discover(name).await })
    }

    /// Its routes, open while it is ours.
    fn routes(self: Arc<Self>) -> axum::Router {
        let routes = self.inner().routes();
        let gate = move |request: axum::extract::Request, _: axum::middleware::Next| {
            let this = self.clone();
            async move {
                if this.is_ours() {
                    // Those of the protocol as it is now; the ones here only say what there is.
                    let routes = this.current.load().routes.clone();
                    return match routes.oneshot(request).await {
                        Ok(response) => response,
                        Err(never) => match never {},
                    };
                }
                let detail = format!("another instance serves {} now", this.id);
                let headers = [
                    (header::RETRY_AFTER, AGAIN.to_string()),
                    (header::CONTENT_TYPE, "application/json".to_owned()),
                ];
                let body = json!({"detail": detail}).to_string();
                (StatusCode::SERVICE_UNAVAILABLE, headers, body).into_response()
            }
        };
        routes.layer(axum::middleware::from_fn(gate))
    }

    fn call<'a>(&'a self, method: &'a str, body: Bytes) -> BoxFuture<'a, Result<Value, Refusal>> {
        if self.is_ours() {
            let inner = self.inner();
            return Box::pin(async move { inner.call(method, body).await });
        }
        Box::pin(self.pass_on(method, body))
    }

    fn probe<'a>(
        &'a self,
        name: &'a PeerName,
        tell: Tell<'a>,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        let inner = self.inner();
        Box::pin(async move { inner.probe(name, tell).await })
    }

    fn keys(&self) -> Vec<OwnKey> {
        self.inner().keys()
    }

    fn rotate(&self, wanted: Rotation) -> BoxFuture<'_, Result<Value, Refusal>> {
        if self.is_ours() {
            let inner = self.inner();
            return Box::pin(async move { inner.rotate(wanted).await });
        }
        let owner = self.tenure.owner(self.unit());
        let owner = owner.unwrap_or_else(|| "none at the moment".to_owned());
        let refusal = Refusal::new(
            "not_the_owner",
            format!(
                "the instance that serves {} changes its keys: {owner}; ask its admin listener",
                self.id
            ),
        );
        Box::pin(std::future::ready(Err(refusal)))
    }

    fn reload(&self) -> Result<(), Refusal> {
        self.inner().reload()
    }

    /// Only what is true is written down: the owner's.
    fn flush(&self) -> BoxFuture<'_, ()> {
        match self.tenure.of_unit(self.unit()) {
            Hold::Under(held) if held.is_sure() => {
                let inner = self.inner();
                Box::pin(async move { inner.flush().await })
            }
            _ => Box::pin(std::future::ready(())),
        }
    }

    fn divisible(&self) -> bool {
        false
    }

    fn refresh(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let Some(lease) = self.tenure.of_unit(self.unit()).lease() else {
                let why = "it is another instance's again";
                return Err(Refusal::new("not_the_owner", why));
            };
            let made = (self.make)(self.store.under(lease)).await;
            let made = made.map_err(|why| Refusal::new("not_made", why))?;
            self.current.store(Current::new(made));
            Ok(())
        })
    }

    fn pace(&self, peer: &PeerName) -> Option<u32> {
        self.inner().pace(peer)
    }

    fn keeps_ids(&self) -> bool {
        self.inner().keeps_ids()
    }

    fn room_events_kept(&self) -> Option<Duration> {
        self.inner().room_events_kept()
    }

    fn mailbox(&self) -> Option<MailboxBounds> {
        self.inner().mailbox()
    }

    fn beats(&self) -> Option<Beats> {
        self.inner().beats()
    }

    fn beating(&self) -> Vec<PeerName> {
        if self.is_ours() {
            self.inner().beating()
        } else {
            Vec::new()
        }
    }

    fn beat<'a>(&'a self, peer: &'a PeerName) -> BoxFuture<'a, ()> {
        if self.is_ours() {
            let inner = self.inner();
            Box::pin(async move { inner.beat(peer).await })
        } else {
            Box::pin(std::future::ready(()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reads_as_it_was_written() {
        let good = written_answer(Ok(json!({"n": 1})));
        assert_eq!(read_answer(&good), Some(Ok(json!({"n": 1}))));
        let refusal = Refusal::new("unknown_peer", "no such peer");
        let bad = written_answer(Err(refusal.clone()));
        assert_eq!(read_answer(&bad), Some(Err(refusal)));
        assert_eq!(read_answer(b"{}"), None);
    }

    #[test]
    fn a_code_that_no_program_of_ours_has_is_not_kept() {
        assert_eq!(code_named(&"x".repeat(CODE + 1)), "refused");
        assert_eq!(code_named("bad_thing"), "bad_thing");
    }
}
