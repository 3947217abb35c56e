//! The routes on the public listener.
//!
//! Media, files and the administration of other servers are no part of the bridge: those routes say
//! that they are not there.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};

use super::answer::Fail;
use super::{BASE, Paracord, WELL_KNOWN, event, member, pages, read};

/// Routes of the protocol that a bridge has no use for.
const ABSENT: [&str; 6] = [
    "/media/token",
    "/media/relay",
    "/file/token",
    "/file/{attachment_id}",
    "/servers",
    "/servers/{server_name}",
];

/// The routes on the public listener.
pub fn router(p: Arc<Paracord>) -> axum::Router {
    let at = |path: &str| format!("{BASE}{path}");
    let mut router = axum::Router::new()
        .route(WELL_KNOWN, get(description))
        .route(&at("/keys"), get(keys))
        .route(&at("/event"), post(push))
        .route(&at("/event/{event_id}"), get(event_by_id))
        .route(&at("/events"), get(events))
        .route(&at("/invite"), post(invite))
        .route(&at("/join"), post(join))
        .route(&at("/leave"), post(leave));
    for path in ABSENT {
        router = router.route(&at(path), any(absent));
    }
    router.with_state(p)
}

type Shared = State<Arc<Paracord>>;

fn answered(answer: Result<Response, Fail>) -> Response {
    answer.unwrap_or_else(IntoResponse::into_response)
}

async fn description(State(p): Shared) -> Response {
    pages::description(&p)
}

async fn keys(State(p): Shared, request: Request) -> Response {
    pages::keys(&p, &request.into_parts().0)
}

async fn push(State(p): Shared, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    answered(event::receive(&p, parts, body).await)
}

async fn event_by_id(State(p): Shared, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    answered(read::event(&p, &parts).await)
}

async fn events(State(p): Shared, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    answered(read::events(&p, &parts).await)
}

async fn invite(State(p): Shared, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    answered(member::invite(&p, &parts, body).await)
}

async fn join(State(p): Shared, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    answered(member::join(&p, &parts, body).await)
}

async fn leave(State(p): Shared, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    answered(member::leave(&p, &parts, body).await)
}

async fn absent() -> Response {
    Fail::not_found().into_response()
}
