//! Every path the protocol answers: which one a request means, who may ask, and in what order that is
//! found out.
//!
//! Paths have no case and may end in a slash. So the router hands over whatever has the shape of
//! one of ours, and the words are compared here; what turns out not to be ours is answered as the
//! listener answers any unknown path. The words `push` and `fetch` come before the id of a peer.

use std::sync::Arc;

use ::http::{HeaderMap, Method, Uri};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper::body::Body as HttpBody;

use super::answer::{Fail, ok};
use super::operator::authorise;
use super::request::{self, Received};
use super::servers::Description;
use super::{
    VoltChat, admin, fetch, handshake, heartbeat, invite_routes, member, pages, push, queue,
    servers,
};
use crate::config::OperatorRole;
use crate::http::server::ClientAddr;
use crate::http::unrouted;
use crate::protocols::room::{COME_AGAIN_S, Full};
use crate::protocols::wire::{self, client_window};

/// The routes on the public listener.
pub fn router(v: Arc<VoltChat>) -> axum::Router {
    axum::Router::new()
        .route("/{api}/{federation}/{*rest}", any(answer))
        .route("/{well_known}/{voltchat}", any(answer))
        .route("/{well_known}/{voltchat}/", any(answer))
        .with_state(v)
}

/// What a path means. Ids are decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Info,
    Discover,
    Handshake,
    Ping,
    Push,
    Fetch,
    /// An operator's message to this peer.
    Queue(String),
    Peers,
    RequestPeer,
    Peer(String),
    AcceptPeer(String),
    RejectPeer(String),
    RemovePeer(String),
    PublicInvites,
    Invites,
    ShareInvite,
    /// By id or code.
    UseInvite(String),
    RemoveInvite(String),
    Servers,
    Server(Description, String),
    MemberJoined,
    /// Under our base, and no route.
    Unknown,
    /// Not ours.
    Foreign,
    /// Not readable.
    Malformed,
}

impl Route {
    fn of(method: &Method, uri: &Uri) -> Self {
        let path = uri.path();
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut words = path.split('/').skip(1);
        let first = words.next().unwrap_or_default();
        let second = words.next().unwrap_or_default();
        let is = |word: &str, wanted: &str| word.eq_ignore_ascii_case(wanted);
        let get = method == Method::GET || method == Method::HEAD;
        if is(first, ".well-known") && is(second, "voltchat") {
            return match (get, words.next(), words.next()) {
                (true, None, _) => Self::Discover,
                (true, Some(word), None) if is(word, "mainnet") => Self::Discover,
                _ => Self::Foreign,
            };
        }
        if !(is(first, "api") && is(second, "federation")) {
            return Self::Foreign;
        }
        let Some(words) = words.map(wire::unescaped).collect::<Option<Vec<String>>>() else {
            return Self::Malformed;
        };
        let lower: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        // The word as it was written: ids have a case.
        let id = |at: usize| words.get(at).cloned().unwrap_or_default();
        let method = if get { "GET" } else { method.as_str() };
        match (method, lower.as_slice()) {
            ("GET", ["info"]) => Self::Info,
            ("GET", ["discover"]) => Self::Discover,
            ("POST", ["handshake"]) => Self::Handshake,
            ("POST", ["ping"]) => Self::Ping,
            ("POST", ["relay", "push"]) => Self::Push,
            ("POST", ["relay", "fetch"]) => Self::Fetch,
            ("POST", ["relay", _]) => Self::Queue(id(1)),
            ("GET", ["peers"]) => Self::Peers,
            ("POST", ["peers"]) => Self::RequestPeer,
            ("GET", ["peers", _]) => Self::Peer(id(1)),
            ("DELETE", ["peers", _]) => Self::RemovePeer(id(1)),
            ("POST", ["peers", _, "accept"]) => Self::AcceptPeer(id(1)),
            ("POST", ["peers", _, "reject"]) => Self::RejectPeer(id(1)),
            ("GET", ["invites", "public"]) => Self::PublicInvites,
            ("GET", ["invites"]) => Self::Invites,
            ("POST", ["invites", "share"]) => Self::ShareInvite,
            ("POST", ["invites", _, "use"]) => Self::UseInvite(id(1)),
            ("DELETE", ["invites", _]) => Self::RemoveInvite(id(1)),
            ("GET", ["servers"]) => Self::Servers,
            ("GET", ["server-info", _]) => Self::Server(Description::Info, id(1)),
            ("GET", ["server-snapshot", _]) => Self::Server(Description::Snapshot, id(1)),
            ("POST", ["member-joined"]) => Self::MemberJoined,
            _ => Self::Unknown,
        }
    }

    /// Who may ask: an operator of this role. `None`: not an operator's route.
    fn role(&self) -> Option<OperatorRole> {
        match self {
            Self::Peers | Self::Peer(_) | Self::Invites => Some(OperatorRole::Reader),
            Self::Queue(_)
            | Self::RequestPeer
            | Self::AcceptPeer(_)
            | Self::RejectPeer(_)
            | Self::RemovePeer(_)
            | Self::ShareInvite
            | Self::UseInvite(_)
            | Self::RemoveInvite(_) => Some(OperatorRole::Moderator),
            _ => None,
        }
    }

    /// Whether a token is its proof.
    fn takes_token(&self) -> bool {
        matches!(
            self,
            Self::Ping
                | Self::Push
                | Self::Fetch
                | Self::Servers
                | Self::Server(..)
                | Self::MemberJoined
        )
    }
}

async fn answer(State(v): State<Arc<VoltChat>>, request: Request) -> Response {
    let route = Route::of(request.method(), request.uri());
    if route == Route::Foreign {
        return unrouted::not_found();
    }
    serve(&v, route, request)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

/// The checks in front of a route in the order of sheet 6.1, then the route.
async fn serve(v: &Arc<VoltChat>, route: Route, request: Request) -> Result<Response, Fail> {
    let now_ms = v.clock.now_ms();
    let client = request.extensions().get::<ClientAddr>();
    let client = client.map(|ClientAddr(ip)| client_window(*ip));
    if route.takes_token() || route == Route::Handshake {
        request::may_try(v, client.as_deref())?;
    }
    if route == Route::Handshake {
        handshake::may_try(v, client.as_deref())?;
    }
    let (parts, body) = request.into_parts();
    let place = v.room.take(HttpBody::size_hint(&body).upper());
    let _place =
        place.map_err(|Full| Fail::unavailable("large bodies fill their room", COME_AGAIN_S))?;
    let r = Received::read(parts, body, now_ms).await?;
    if let Some(role) = route.role() {
        may(v, &r.headers, client.as_deref(), role)?;
    }
    let enabled = v.config.enabled;
    match route {
        Route::Info => Ok(ok(&pages::info(&v.own, enabled, &handshake::features()))),
        Route::Discover => Ok(ok(&pages::discover(&v.own, enabled, now_ms))),
        Route::Handshake => handshake::receive(v, &r).await,
        Route::Ping => heartbeat::receive(v, &r).await,
        Route::Push => push::receive(v, &r).await,
        Route::Fetch => fetch::serve(v, &r).await,
        Route::Queue(id) => queue::post(v, &id, &r).await,
        Route::Peers => Ok(admin::list(v)),
        Route::Peer(id) => admin::show(v, &id),
        Route::RequestPeer => admin::request(v, &r).await,
        Route::AcceptPeer(id) => admin::accept(v, &id).await,
        Route::RejectPeer(id) => admin::reject(v, &id).await,
        Route::RemovePeer(id) => admin::remove(v, &id).await,
        Route::PublicInvites => invite_routes::public(v, &r),
        Route::Invites => invite_routes::list(v),
        Route::ShareInvite => invite_routes::share(v, &r).await,
        Route::UseInvite(id) => invite_routes::spend(v, &id).await,
        Route::RemoveInvite(id) => invite_routes::remove(v, &id).await,
        Route::Servers => servers::list(v, &r).await,
        Route::Server(what, id) => servers::describe(v, &r, what, &id).await,
        Route::MemberJoined => member::receive(v, &r).await,
        Route::Malformed => Err(Fail::malformed(now_ms)),
        Route::Unknown | Route::Foreign => Err(Fail::no_route(now_ms)),
    }
}

/// Lets an operator through, and says who changed something.
fn may(
    v: &VoltChat,
    headers: &HeaderMap,
    client: Option<&str>,
    role: OperatorRole,
) -> Result<(), Fail> {
    let operator = authorise(v, headers, client, role)?;
    if role.moderates() {
        tracing::info!(operator = %operator.name, "an operator changes peers, relays or invites");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, path: &str) -> Route {
        Route::of(&method.parse().unwrap(), &path.parse().unwrap())
    }

    #[test]
    fn paths_have_no_case_and_may_end_in_a_slash() {
        for path in ["/api/federation/ping", "/API/Federation/PING/"] {
            assert_eq!(of("POST", path), Route::Ping, "{path}");
        }
        assert_eq!(of("GET", "/api/federation/Peers/"), Route::Peers);
    }

    #[test]
    fn what_we_are_is_told_at_three_places() {
        for path in [
            "/.well-known/voltchat",
            "/.well-known/VoltChat/mainnet/",
            "/api/federation/discover",
        ] {
            assert_eq!(of("GET", path), Route::Discover, "{path}");
        }
        assert_eq!(of("HEAD", "/api/federation/info"), Route::Info);
        assert_eq!(of("GET", "/.well-known/uam.json"), Route::Foreign);
        assert_eq!(of("GET", "/.well-known/voltchat/other"), Route::Foreign);
    }

    #[test]
    fn an_id_keeps_its_case_and_is_decoded() {
        let id = |text: &str| Route::AcceptPeer(text.to_owned());
        assert_eq!(of("POST", "/api/federation/peers/A%20b/Accept"), id("A b"));
        assert_eq!(
            of("POST", "/api/federation/peers/A_z.9:@-/accept"),
            id("A_z.9:@-")
        );
        assert_eq!(of("GET", "/api/federation/peers/%ff"), Route::Malformed);
        assert_eq!(of("GET", "/api/federation/peers/%4"), Route::Malformed);
    }

    #[test]
    fn what_is_no_route_is_unknown_and_what_is_elsewhere_is_not_ours() {
        assert_eq!(of("GET", "/api/federation/ping"), Route::Unknown);
        assert_eq!(
            of("POST", "/api/federation/peers/x/accept/y"),
            Route::Unknown
        );
        assert_eq!(of("GET", "/api/other/peers"), Route::Foreign);
    }
}
