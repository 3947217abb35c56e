//! Answers and refusals in the protocol's own words (sheet, 5).
//!
//! A refusal is `{"code","details":null,"error":m,"message":m}`, fixed words that hold nothing of the
//! request; the reader of bodies and queries speaks plain text. Why a request was refused is for our
//! own log, not for whoever sent it: every wrong proof has one answer.

use std::borrow::Cow;

use ::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::store::StoreError;

/// How many events a minute we take from one server.
pub const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What stands there when we take any number.
const ANY_NUMBER: u32 = 1_000_000;
/// Seconds after which a limited server may come again.
const COME_AGAIN_S: u32 = 60;
/// Seconds after which a request that found no store may be repeated.
const STORE_AGAIN_S: u32 = 5;

/// A JSON answer.
pub fn reply(status: StatusCode, body: &Value) -> Response {
    json_bytes(status, Bytes::from(body.to_string()))
}

/// A JSON answer that is written already.
pub fn json_bytes(status: StatusCode, body: Bytes) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    )];
    (status, kind, body).into_response()
}

/// A JSON answer with status 200.
pub fn ok(body: &Value) -> Response {
    reply(StatusCode::OK, body)
}

/// An event is taken: 202, with the pace we keep up with (0: any).
pub fn accepted(body: &Value, events_per_minute: u32) -> Response {
    let mut answer = reply(StatusCode::ACCEPTED, body);
    let quota = match events_per_minute {
        0 => ANY_NUMBER,
        some => some,
    };
    if let Ok(policy) = HeaderValue::from_str(&format!("\"events\";q={quota};w=60")) {
        answer.headers_mut().insert(POLICY, policy);
    }
    answer
}

/// A refusal on its way to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fail {
    /// The status.
    pub status: StatusCode,
    /// The machine's word; `None`: a plain text.
    pub code: Option<&'static str>,
    /// The words.
    pub message: Cow<'static, str>,
    /// `Retry-After`, seconds.
    pub retry_after_s: Option<u32>,
}

impl Fail {
    fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code: Some(code),
            message: message.into(),
            retry_after_s: None,
        }
    }

    /// 400: the words stand behind `bad request: `.
    pub fn bad_request(what: &str) -> Self {
        let words = format!("bad request: {what}");
        Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", words)
    }

    /// 401: a header is missing or no number, a clock is off, an envelope is not signed.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "unauthorized")
    }

    /// 403: everything that is not proven or not allowed.
    pub fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "FORBIDDEN", "forbidden")
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", "not found")
    }

    /// 409: the signature was used before.
    pub fn conflict() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "CONFLICT",
            "conflict: replayed federation transport signature",
        )
    }

    /// 429.
    pub fn rate_limited() -> Self {
        Self {
            retry_after_s: Some(COME_AGAIN_S),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "RATE_LIMITED",
                "rate limited",
            )
        }
    }

    /// 503, come again after so many seconds. Why is logged by whoever knows.
    pub fn unavailable(retry_after_s: u32) -> Self {
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "SERVICE_UNAVAILABLE",
                "service unavailable",
            )
        }
    }

    /// 503: the store takes nothing now.
    pub fn store(error: &StoreError) -> Self {
        tracing::warn!(%error, "the ledger does not answer; a request is answered 503");
        Self::unavailable(STORE_AGAIN_S)
    }

    /// 413: the broker takes no message of that size.
    pub fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "PAYLOAD_TOO_LARGE",
            "payload too large",
        )
    }

    /// What the reader of bodies and queries says, as plain text.
    pub fn plain(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code: None,
            message: text.into(),
            retry_after_s: None,
        }
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let mut answer = match self.code {
            Some(code) => reply(
                self.status,
                &json!({
                    "code": code,
                    "details": null,
                    "error": self.message,
                    "message": self.message,
                }),
            ),
            None => {
                let kind = HeaderValue::from_static("text/plain; charset=utf-8");
                let text = self.message.into_owned();
                (self.status, [(header::CONTENT_TYPE, kind)], text).into_response()
            }
        };
        if let Some(seconds) = self.retry_after_s {
            let seconds = HeaderValue::from(seconds);
            answer.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(answer: Response) -> Value {
        let bytes = axum::body::to_bytes(answer.into_body(), 4096)
            .await
            .unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[tokio::test]
    async fn a_refusal_says_its_words_twice_and_nothing_else() {
        let answer = Fail::conflict().into_response();
        assert_eq!(answer.status(), 409);
        let words = "conflict: replayed federation transport signature";
        let wanted = json!({"code": "CONFLICT", "details": null, "error": words, "message": words});
        assert_eq!(body(answer).await, wanted);
        let answer = Fail::bad_request("Invalid user_id").into_response();
        assert_eq!(
            body(answer).await["message"],
            "bad request: Invalid user_id"
        );
    }

    #[test]
    fn what_may_be_tried_again_says_when() {
        for (fail, seconds) in [(Fail::rate_limited(), "60"), (Fail::unavailable(7), "7")] {
            let answer = fail.into_response();
            assert_eq!(answer.headers()[header::RETRY_AFTER], seconds);
        }
    }

    #[test]
    fn the_reader_speaks_plain_text() {
        let answer = Fail::plain(StatusCode::UNPROCESSABLE_ENTITY, "no").into_response();
        assert_eq!(answer.status(), 422);
        assert_eq!(
            answer.headers()[header::CONTENT_TYPE],
            "text/plain; charset=utf-8"
        );
    }

    #[test]
    fn a_taken_event_says_what_pace_is_kept_up_with() {
        let policy = |n| accepted(&json!({}), n).headers()[&POLICY].clone();
        assert_eq!(policy(120), "\"events\";q=120;w=60");
        assert_eq!(policy(0), "\"events\";q=1000000;w=60");
    }
}
