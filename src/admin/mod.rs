//! What operators and the command line ask of a running bridge, on the admin listener.
//!
//! `/healthz`, `/readyz` and `/metrics` are for machines; everything under `/api/v1` needs the
//! bearer token ([`token`]) and is described by `openapi.json` beside this file. One table
//! ([`routes::table`]) holds every route.
//!
//! | file | routes |
//! | --- | --- |
//! | `probes` | liveness, readiness, metrics |
//! | `queue` | rows of the outbound queue and dead letters; [`select`] says which, `bulk` changes many |
//! | `peers`, `lanes` | what is known of each peer; pause, resume, probe, reset, flush |
//! | `trust` | allow, block and quarantine rules; what is held of quarantined peers |
//! | `inbound` | inbound events whose bodies the ledger still holds |
//! | `keys` | our public keys; rotation |
//! | `calls` | a protocol's own methods, as backends call them over NATS |
//!
//! A refusal is `{"error": code, "detail": sentence}`: 400 for a request that cannot be read, 404 for
//! what is not there, 409 for what its state forbids, 422 for what names something unknown, 503 while
//! a part is down.

mod access;
mod bulk;
mod calls;
mod end;
mod explain;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod inbound;
mod keys;
mod lanes;
mod openapi;
pub mod params;
mod peers;
mod probes;
mod queue;
pub mod routes;
mod select;
pub mod token;
mod trust;

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use access::Access;
pub use explain::span;
pub use openapi::DOCUMENT as OPENAPI;
pub use routes::router;

use crate::clock::Clock;
use crate::config::{Config, MetricsAccess, Secret};
use crate::inbound::{Door, HeldError};
use crate::ops::Ops;
use crate::ops::health::Health;
use crate::outbound::{Control, ControlError};
use crate::peers::Peers;
use crate::protocol::{PeerName, Protocol, ProtocolId};
use crate::store::{Store, StoreError};
use crate::trust::Trust;

/// What the admin routes work on.
#[derive(Clone)]
pub struct AdminState {
    pub store: Store,
    pub peers: Peers,
    pub trust: Trust,
    /// Where events of quarantined peers are held; `None`: nothing is received here.
    pub door: Option<Door>,
    /// Orders to the lanes; `None`: nothing is sent from here.
    pub lanes: Option<Control>,
    pub health: Health,
    pub ops: Ops,
    pub clock: Clock,
    /// Protocols this bridge speaks.
    pub protocols: Vec<ProtocolId>,
    /// The same by value, for what only they know (keys).
    pub speakers: Vec<Arc<dyn Protocol>>,
    /// The bearer token of `/api/v1`.
    pub token: Secret,
    /// `/metrics` needs no token.
    pub metrics_open: bool,
    /// The listener is for this machine alone: requests must name it by a loopback host.
    pub loopback_only: bool,
}

impl AdminState {
    /// `metrics_open` of a configuration.
    pub fn metrics_open(config: &Config) -> bool {
        match config.admin_access.metrics {
            MetricsAccess::Auto => config.admin.address.ip().is_loopback(),
            MetricsAccess::Open => true,
            MetricsAccess::Token => false,
        }
    }

    /// The protocol of this name; of none, the only one there is.
    fn protocol(&self, name: Option<&str>) -> Result<ProtocolId, Fail> {
        let known = || match self.protocols.as_slice() {
            [] => "none is configured".to_owned(),
            some => format!("there are {}", some.join(", ")),
        };
        match (name, self.protocols.as_slice()) {
            (Some(name), all) => all.iter().copied().find(|p| *p == name).ok_or_else(|| {
                Fail::unknown(
                    "unknown_protocol",
                    format!("no protocol is called {name:?}; {}", known()),
                )
            }),
            (None, [only]) => Ok(only),
            (None, _) => Err(Fail::unknown(
                "protocol_needed",
                format!("name the protocol; {}", known()),
            )),
        }
    }
}

/// A refusal.
#[derive(Debug)]
pub struct Fail {
    pub status: StatusCode,
    /// What programs match on.
    pub code: &'static str,
    /// What people read.
    pub detail: String,
}

impl Fail {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
        }
    }

    /// 400: it cannot be read.
    pub(super) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 409: its state forbids it.
    pub(super) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 404: it is not there.
    pub(super) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 422: it names something that this bridge does not know.
    pub(super) fn unknown(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }
}

impl From<StoreError> for Fail {
    fn from(error: StoreError) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "store_unavailable",
            error.to_string(),
        )
    }
}

impl From<HeldError> for Fail {
    fn from(error: HeldError) -> Self {
        let detail = error.to_string();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "door_unavailable", detail)
    }
}

impl From<ControlError> for Fail {
    fn from(error: ControlError) -> Self {
        let (status, code) = match &error {
            ControlError::UnknownProtocol(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "unknown_protocol")
            }
            ControlError::Paused(_) => (StatusCode::CONFLICT, "paused"),
            ControlError::PauseIsOver => (StatusCode::BAD_REQUEST, "bad_end"),
            ControlError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            ControlError::Owner(_) => (StatusCode::CONFLICT, "refused_there"),
            ControlError::Elsewhere => (StatusCode::SERVICE_UNAVAILABLE, "elsewhere"),
            ControlError::NotWritten(_) | ControlError::Store(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
            }
        };
        Self::new(status, code, error.to_string())
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        failure(self.status, self.code, &self.detail)
    }
}

/// What every handler under `/api/v1` answers.
type Reply = Result<Response, Fail>;

/// A JSON answer that no cache keeps.
fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body.to_string()).into_response()
}

/// 200 with this.
fn ok(body: &Value) -> Reply {
    Ok(answer(StatusCode::OK, body))
}

/// A refusal: a code and a sentence.
fn failure(status: StatusCode, code: &str, detail: &str) -> Response {
    answer(status, &json!({"error": code, "detail": detail}))
}

/// A request's JSON body; an empty one is an object without members.
fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fail> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes)
        .map_err(|e| Fail::bad_request("bad_body", format!("the body is not as described: {e}")))
}

/// A server's name as a request gives it.
fn peer_name(text: &str) -> Result<PeerName, Fail> {
    PeerName::parse(&text.to_ascii_lowercase())
        .map_err(|e| Fail::bad_request("bad_peer", e.to_string()))
}

/// The state shared by all handlers.
type Shared = axum::extract::State<Arc<AdminState>>;
