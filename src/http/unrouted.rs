//! What the public listener answers where no protocol has a route.

use axum::Router;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

/// Adds the answers for an unknown path (404) and a wrong method (405) to the routes of all protocols
/// together: a router may have one fallback only, so none of theirs brings its own. The words are
/// those of the frameworks that the real servers run on.
pub fn answered(routes: Router) -> Router {
    routes
        .fallback(|| async { not_found() })
        .method_not_allowed_fallback(|| async {
            reply(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
        })
}

/// The answer for an unknown path, for a route that looks at more than it answers.
pub fn not_found() -> Response {
    reply(StatusCode::NOT_FOUND, "Not Found")
}

fn reply(status: StatusCode, detail: &str) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    let body = serde_json::json!({"detail": detail}).to_string();
    (status, kind, body).into_response()
}
