//! The description of this API; a test holds it against the routes, both ways.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

/// OpenAPI 3.1, as JSON.
pub const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /api/v1/openapi.json`
pub(super) async fn document() -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], DOCUMENT).into_response()
}
