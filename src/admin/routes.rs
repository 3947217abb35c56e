//! One table of routes, from which the router is built and against which a test holds the OpenAPI
//! document.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{self, MethodRouter};

use super::access::{self, Access};
use super::{
    AdminState, calls, failure, inbound, keys, lanes, openapi, peers, probes, queue, trust,
};

/// One route.
pub struct Route {
    /// `GET`, `POST`.
    pub method: &'static str,
    /// As axum and OpenAPI write it: `/api/v1/queue/{id}`.
    pub path: &'static str,
    pub access: Access,
    handler: MethodRouter<Arc<AdminState>>,
}

/// A route that reads.
pub(super) fn get<H, T>(path: &'static str, access: Access, handler: H) -> Route
where
    H: Handler<T, Arc<AdminState>>,
    T: 'static,
{
    Route {
        method: "GET",
        path,
        access,
        handler: routing::get(handler),
    }
}

/// A route that changes something; it always needs the token.
pub(super) fn post<H, T>(path: &'static str, handler: H) -> Route
where
    H: Handler<T, Arc<AdminState>>,
    T: 'static,
{
    Route {
        method: "POST",
        path,
        access: Access::Token,
        handler: routing::post(handler),
    }
}

/// Every route there is.
pub fn table() -> Vec<Route> {
    let mut table = vec![
        get("/healthz", Access::Open, probes::healthz),
        get("/readyz", Access::Open, probes::readyz),
        get("/metrics", Access::Metrics, probes::metrics),
        get("/api/v1/openapi.json", Access::Token, openapi::document),
    ];
    table.extend(queue::routes());
    table.extend(peers::routes());
    table.extend(lanes::routes());
    table.extend(trust::routes());
    table.extend(inbound::routes());
    table.extend(keys::routes());
    table.extend(calls::routes());
    table
}

/// The admin listener's routes.
pub fn router(state: AdminState) -> Router {
    let state = Arc::new(state);
    let mut router = Router::new();
    for route in table() {
        let handler = match route.access {
            Access::Open => route.handler,
            Access::Token => route
                .handler
                .route_layer(from_fn_with_state(state.clone(), access::with_token)),
            Access::Metrics => route.handler.route_layer(from_fn_with_state(
                state.clone(),
                access::with_token_unless_open,
            )),
        };
        router = router.route(route.path, handler);
    }
    router
        .fallback(|| async {
            failure(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is nothing under this path",
            )
        })
        .method_not_allowed_fallback(|| async {
            failure(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path knows other methods; see /api/v1/openapi.json",
            )
        })
        .layer(from_fn_with_state(state.clone(), access::named_rightly))
        .with_state(state)
}
