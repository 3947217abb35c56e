//! Refusals in the words of the protocol: `{"error": CODE, "detail": TEXT}`.

use ::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::verify::Rejection;
use crate::protocols::wire;

/// A JSON answer.
pub fn reply(status: StatusCode, body: &Value) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    )];
    (status, kind, body.to_string()).into_response()
}

/// A refusal on its way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fail {
    /// Status.
    pub status: StatusCode,
    /// `error`.
    pub code: &'static str,
    /// `detail`.
    pub detail: String,
    /// `Retry-After`, seconds.
    pub retry_after_s: Option<u32>,
    /// The answer carries a `request_id` (version errors do).
    pub request_id: bool,
}

impl Fail {
    /// A refusal with these words.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            retry_after_s: None,
            request_id: false,
        }
    }

    /// 400.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    /// 401.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 422.
    pub fn validation(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", detail)
    }

    /// 429, come again after so many seconds.
    pub fn rate_limited(detail: impl Into<String>, retry_after_s: u32) -> Self {
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
        }
    }

    /// 501.
    pub fn disabled() -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            "error",
            "Federation not enabled",
        )
    }

    /// 503, come again after so many seconds. The cause is logged, not told.
    pub fn unavailable(cause: &str, retry_after_s: u32) -> Self {
        tracing::warn!(cause, "answered 503");
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                "This relay cannot take the request now; please try again later",
            )
        }
    }
}

impl From<Rejection> for Fail {
    fn from(rejection: Rejection) -> Self {
        Self {
            status: StatusCode::from_u16(rejection.status).unwrap_or(StatusCode::BAD_REQUEST),
            code: rejection.error,
            detail: rejection.detail,
            retry_after_s: None,
            request_id: rejection.with_request_id,
        }
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let mut body = json!({"error": self.code, "detail": self.detail});
        if self.request_id
            && let Some(map) = body.as_object_mut()
        {
            map.insert("request_id".into(), wire::request_id().into());
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
