//! Answers and refusals in the protocol's words: `{"error": TEXT}`, and where the real server's frame
//! speaks, `{"error", "code", "timestamp", "requestId"}`.

use ::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::text;
use crate::clock::UnixMs;
use crate::protocols::wire;
use crate::store::StoreError;

/// Seconds after which a limited client may come again.
const COME_AGAIN_S: u32 = 60;
/// Seconds after which a request that found no store may be repeated.
const STORE_AGAIN_S: u32 = 5;

/// A JSON answer.
pub fn reply(status: StatusCode, body: &Value) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    )];
    (status, kind, body.to_string()).into_response()
}

/// A JSON answer with status 200.
pub fn ok(body: &Value) -> Response {
    reply(StatusCode::OK, body)
}

/// A refusal on its way to a peer or an operator. The text is the protocol's, fixed, and holds nothing
/// of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fail {
    pub status: StatusCode,
    /// `error`.
    pub error: &'static str,
    /// `Retry-After`, seconds.
    pub retry_after_s: Option<u32>,
    /// Further members of the answer.
    pub with: Option<(&'static str, Value)>,
    /// In the words of the server's frame: with status, time and id, at this time.
    pub frame_at_ms: Option<UnixMs>,
}

impl Fail {
    /// A refusal with these words.
    pub fn new(status: StatusCode, error: &'static str) -> Self {
        Self {
            status,
            error,
            retry_after_s: None,
            with: None,
            frame_at_ms: None,
        }
    }

    /// 400.
    pub fn bad(error: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 404.
    pub fn not_found(error: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// 403: the protocol is switched off.
    pub fn disabled() -> Self {
        Self::new(StatusCode::FORBIDDEN, "Federation is not enabled")
    }

    /// 401: whatever is wrong with a token, its host or the state of the peer.
    pub fn credentials() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "Missing or invalid federation credentials",
        )
    }

    /// 403: the host is not one we peer with.
    pub fn policy() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Peer host is not allowed by federation policy",
        )
    }

    /// 429.
    pub fn limited() -> Self {
        Self {
            retry_after_s: Some(COME_AGAIN_S),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "API rate limit exceeded")
        }
    }

    /// 413.
    pub fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large")
    }

    /// 503, come again after so many seconds. The cause is logged, not told.
    pub fn unavailable(cause: &str, retry_after_s: u32) -> Self {
        tracing::warn!(cause, "answered 503");
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Service temporarily unavailable",
            )
        }
    }

    /// 503: the store takes nothing now.
    pub fn store(error: &StoreError) -> Self {
        Self::unavailable(&error.to_string(), STORE_AGAIN_S)
    }

    /// 400 of the frame: a body that is no JSON object or array.
    pub fn malformed(now_ms: UnixMs) -> Self {
        Self {
            frame_at_ms: Some(now_ms),
            ..Self::bad("The request was invalid. Please check your input.")
        }
    }

    /// 404 of the frame: no such route.
    pub fn no_route(now_ms: UnixMs) -> Self {
        Self {
            frame_at_ms: Some(now_ms),
            ..Self::not_found("The requested resource was not found.")
        }
    }

    /// With one more member.
    pub fn with(mut self, name: &'static str, value: Value) -> Self {
        self.with = Some((name, value));
        self
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let mut body = json!({"error": self.error});
        if let Some(members) = body.as_object_mut() {
            if let Some((name, value)) = self.with {
                members.insert(name.to_owned(), value);
            }
            if let Some(now_ms) = self.frame_at_ms {
                members.insert("code".into(), self.status.as_u16().into());
                members.insert("timestamp".into(), text::iso(now_ms).into());
                members.insert("requestId".into(), wire::request_id().into());
            }
        }
        let mut answer = reply(self.status, &body);
        if let Some(seconds) = self.retry_after_s {
            answer
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}
