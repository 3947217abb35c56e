//! What a reference answers: its routes, with the checks in the order of the sheet's section 5.

// A refusal is the answer itself, here and at once.
#![allow(clippy::result_large_err)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{Extension, Path, State as Shared};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;

use super::typed::{self, Envelope, Invite, Member};
use super::{Inner, room_parts};
use crate::support::paracord_client::{BASE, WELL_KNOWN, holds, now_ms, sha256, string_to_sign};
use crate::support::uam_client::now_ns;

/// Cuts the connection a request came over, at once and without an answer.
#[derive(Clone)]
struct Cut(Arc<Notify>);

impl Cut {
    async fn now(&self) -> Response {
        self.0.notify_one();
        std::future::pending().await
    }
}

/// A listener at an address that an earlier one may just have left.
pub(super) async fn bind(address: SocketAddr) -> TcpListener {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        let socket = TcpSocket::new_v4().expect("a socket");
        let _ = socket.set_reuseaddr(true);
        match socket.bind(address).and_then(|()| socket.listen(1024)) {
            Ok(listener) => return listener,
            Err(e) if std::time::Instant::now() > end => panic!("{address}: {e}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    use axum::routing::{get, post};
    let router = axum::Router::new()
        .route(WELL_KNOWN, get(well_known))
        .route(&format!("{BASE}/keys"), get(keys))
        .route(&format!("{BASE}/event"), post(event))
        .route(&format!("{BASE}/event/{{id}}"), get(one_event))
        .route(&format!("{BASE}/events"), get(events))
        .route(&format!("{BASE}/invite"), post(invite))
        .route(&format!("{BASE}/join"), post(join))
        .route(&format!("{BASE}/leave"), post(leave))
        .with_state(inner);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let cut = Cut(Arc::default());
        let service = TowerToHyperService::new(router.clone().layer(Extension(cut.clone())));
        connections.spawn(async move {
            let http = hyper::server::conn::http1::Builder::new();
            tokio::select! {
                _ = http.serve_connection(TokioIo::new(stream), service) => {}
                () = cut.0.notified() => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

fn answer(status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    let kind = [("content-type", "application/json")];
    (status, kind, body.to_string()).into_response()
}

fn error(status: u16, message: &str) -> Response {
    let code = match status {
        400 => "BAD_REQUEST",
        401 => "UNAUTHORIZED",
        403 => "FORBIDDEN",
        404 => "NOT_FOUND",
        409 => "CONFLICT",
        429 => "RATE_LIMITED",
        _ => "INTERNAL_ERROR",
    };
    let body = json!({"code": code, "details": null, "error": message, "message": message});
    answer(status, &body)
}

const UNAUTHORIZED: (u16, &str) = (401, "unauthorized");
const FORBIDDEN: (u16, &str) = (403, "forbidden");

/// What a request's headers say.
struct Claim {
    origin: String,
    key_id: String,
    timestamp: i64,
    signature: String,
}

impl Inner {
    /// Refuses, and remembers that somebody had to be refused.
    fn refuse(&self, what: &str, (status, message): (u16, &str), why: &str) -> Response {
        self.complain(format!("{what}: {status} {message}: {why}"));
        error(status, message)
    }

    /// The body reader.
    fn read<T: DeserializeOwned>(&self, headers: &HeaderMap, body: &[u8]) -> Result<T, Response> {
        let kind = headers.get("content-type").and_then(|v| v.to_str().ok());
        let plain = |status: u16, text: String| {
            self.complain(format!("{status} {text}"));
            let status = StatusCode::from_u16(status).expect("a status");
            (status, text).into_response()
        };
        if !kind.is_some_and(|k| k.starts_with("application/json")) {
            return Err(plain(415, format!("Expected JSON, not {kind:?}")));
        }
        if body.len() > 2 * 1024 * 1024 {
            return Err(plain(413, "length limit exceeded".into()));
        }
        typed::decode(body).map_err(|(status, text)| plain(status, text))
    }

    fn claim(&self, what: &str, headers: &HeaderMap) -> Result<Claim, Response> {
        let header = |name: &str| {
            let value = headers.get(format!("x-paracord-{name}"));
            let text = value.and_then(|v| v.to_str().ok()).unwrap_or_default();
            Some(text.trim().to_owned()).filter(|t| !t.is_empty())
        };
        let claim = || {
            Some(Claim {
                origin: header("origin")?,
                key_id: header("key-id")?,
                timestamp: header("timestamp")?.parse().ok()?,
                signature: header("signature")?,
            })
        };
        claim().ok_or_else(|| self.refuse(what, UNAUTHORIZED, "a header is missing"))
    }

    /// Skew, trust, key, signature; `path` as the route checks it.
    fn check(
        &self,
        what: &str,
        claim: &Claim,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(), Response> {
        let apart = now_ms().checked_sub(claim.timestamp);
        if apart.is_none_or(|ms| ms.abs() > 60_000) {
            return Err(self.refuse(what, UNAUTHORIZED, "its clock is off"));
        }
        let (trusted, key) = {
            let state = self.state();
            let trusted = state.trusted(&claim.origin).is_some();
            (trusted, state.key(&claim.origin, &claim.key_id).cloned())
        };
        if !trusted {
            return Err(self.refuse(what, FORBIDDEN, "not trusted"));
        }
        let Some(key) = key else {
            return Err(self.refuse(what, FORBIDDEN, "no such key, or expired"));
        };
        let text = string_to_sign(method, path, claim.timestamp, body);
        if !holds(&key.public, text.as_bytes(), &claim.signature) {
            return Err(self.refuse(what, FORBIDDEN, "the signature does not hold"));
        }
        Ok(())
    }

    /// By the signature's text, origin, key, time and path.
    fn replayed(&self, claim: &Claim, path: &str) -> Option<Response> {
        let line = [
            claim.origin.as_str(),
            &claim.key_id,
            &claim.timestamp.to_string(),
            path,
            &claim.signature,
        ]
        .join("\n");
        let new = self.state().replays.insert(sha256(line.as_bytes()));
        let text = "conflict: replayed federation transport signature";
        (!new).then(|| self.refuse(path, (409, text), "seen before"))
    }

    /// Everything in front of a POST route but `/event`.
    fn posted<T: DeserializeOwned + Serialize>(
        &self,
        route: &str,
        headers: &HeaderMap,
        body: &[u8],
        origin: impl Fn(&T) -> Option<&str>,
    ) -> Result<(T, Claim), Response> {
        let body: T = self.read(headers, body)?;
        let path = format!("{BASE}{route}");
        let claim = self.claim(&path, headers)?;
        if origin(&body).is_some_and(|o| o != claim.origin) {
            return Err(self.refuse(&path, FORBIDDEN, "another origin_server"));
        }
        // Not the bytes received: the body as it would encode it.
        self.check(&path, &claim, "POST", &path, &typed::normal(&body))?;
        if let Some(answer) = self.replayed(&claim, &path) {
            return Err(answer);
        }
        Ok((body, claim))
    }

    /// Whether a server is over its limit in this minute.
    fn over_limit(&self, origin: &str) -> bool {
        let minute = now_ms() / 60_000;
        let mut state = self.state();
        let rate = state.rates.entry(origin.to_owned()).or_default();
        if rate.0 != minute {
            *rate = (minute, 0);
        }
        rate.1 += 1;
        self.options.limit > 0 && rate.1 > self.options.limit
    }
}

async fn well_known(Shared(me): Shared<Arc<Inner>>) -> Response {
    let identity = &me.options.identity;
    let body = json!({
        "domain": identity.domain,
        "enabled": true,
        "federation_endpoint": BASE,
        "server_name": identity.name,
        "version": "federation-v1",
    });
    answer(200, &body)
}

/// Its own key was valid for the day after its first start, and that was long ago.
async fn keys(Shared(me): Shared<Arc<Inner>>) -> Response {
    me.state().counts.keys_fetched += 1;
    me.happened();
    let identity = &me.options.identity;
    let listed = me.state().listed.clone();
    let keys = listed.unwrap_or_else(|| {
        json!([{
            "key_id": identity.key_id,
            "public_key": identity.public(),
            "server_name": identity.name,
            "valid_until": now_ms() - 30 * 86_400_000,
        }])
    });
    answer(200, &json!({"keys": keys, "server_name": identity.name}))
}

async fn event(
    Shared(me): Shared<Arc<Inner>>,
    Extension(cut): Extension<Cut>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let at = now_ns();
    let taken = me.posted::<Envelope>("/event", &headers, &body, |_| None);
    let (envelope, claim) = match taken {
        Ok(taken) => taken,
        Err(answer) => return answer,
    };
    let unwell = match me.mood.load(Ordering::Relaxed) {
        0 if me.over_limit(&claim.origin) => {
            me.state().counts.limited += 1;
            429
        }
        0 => me.flaky(&envelope),
        mood => mood,
    };
    let (status, answered) = if unwell != 0 {
        (unwell, error(unwell, "rate limited"))
    } else if let Err(why) = me.proven(&envelope) {
        let what = format!("POST /event {}", envelope.event_id);
        (403, me.refuse(&what, FORBIDDEN, &why))
    } else {
        (202, accepted(&me, &envelope))
    };
    let Some(place) = me.kept(&claim, &envelope, status, at) else {
        return cut.now().await;
    };
    me.happened();
    let lost = me
        .dice
        .lock()
        .expect("no dice panic")
        .chance(me.options.losses);
    if lost && status == 202 {
        me.state().counts.losses += 1;
        return cut.now().await;
    }
    me.state().arrived[place].answered = Some(now_ns());
    answered
}

/// The 202, written before the event is stored: `inserted` says whether it is new.
fn accepted(me: &Inner, envelope: &Envelope) -> Response {
    let inserted = !me.state().ids.contains_key(&envelope.event_id);
    let body = json!({"event_id": envelope.event_id, "inserted": inserted});
    let mut response = answer(202, &body);
    if let Some(policy) = &me.options.policy
        && let Ok(value) = policy.parse()
    {
        response.headers_mut().insert("ratelimit-policy", value);
    }
    response
}

impl Inner {
    /// Stores what was taken and notes what came; its place in the list. `None`: it has stopped.
    fn kept(&self, claim: &Claim, envelope: &Envelope, status: u16, at: u64) -> Option<usize> {
        let sent = u64::try_from(claim.timestamp).unwrap_or(0) * 1_000_000;
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let inserted = status == 202 && state.store(envelope.clone());
        if inserted {
            state.mirror(envelope);
        }
        let place = state.note(&claim.origin, envelope, inserted, sent);
        state.arrived[place].status = status;
        state.arrived[place].at = at;
        Some(place)
    }

    /// A content `{"flaky": n}` is answered 503 the first n times, `{"answer": 403}` always so.
    fn flaky(&self, envelope: &Envelope) -> u16 {
        if let Some(status) = envelope.content["answer"].as_u64() {
            return u16::try_from(status).unwrap_or(500);
        }
        let times = envelope.content["flaky"].as_u64().unwrap_or(0);
        let mut state = self.state();
        let count = state
            .turned_away
            .entry(envelope.event_id.clone())
            .or_default();
        if *count < times {
            *count += 1;
            return 503;
        }
        0
    }
}

/// The raw path as received, without query.
async fn one_event(
    Shared(me): Shared<Arc<Inner>>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let checked = me
        .claim("GET /event", &headers)
        .and_then(|claim| me.check("GET /event", &claim, "GET", uri.path(), b""));
    if let Err(answer) = checked {
        return answer;
    }
    let state = me.state();
    match state.ids.get(&id) {
        Some(at) => answer(200, &state.events[*at].value()),
        None => error(404, "not found"),
    }
}

/// The raw path with its query.
async fn events(Shared(me): Shared<Arc<Inner>>, uri: Uri, headers: HeaderMap) -> Response {
    let mut room = None;
    let (mut since, mut limit) = (0_i64, 100_i64);
    for (key, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*key {
            "room_id" => room = Some(value.into_owned()),
            "since_depth" => since = value.parse().unwrap_or(0),
            "limit" => limit = value.parse().unwrap_or(100),
            _ => {}
        }
    }
    let Some(room) = room else {
        return (StatusCode::BAD_REQUEST, "missing field `room_id`").into_response();
    };
    let raw = uri.path_and_query().map_or(uri.path(), |p| p.as_str());
    let checked = me
        .claim("GET /events", &headers)
        .and_then(|claim| me.check("GET /events", &claim, "GET", raw, b""));
    if let Err(answer) = checked {
        return answer;
    }
    let mut state = me.state();
    let wanted = state.events.iter();
    let mut found: Vec<&Envelope> = wanted
        .filter(|e| e.room_id == room && e.depth > since.max(0))
        .collect();
    // By depth alone.
    found.sort_by_key(|e| e.depth);
    found.truncate(usize::try_from(limit.clamp(1, 1000)).unwrap_or(100));
    let body = json!({"events": found.iter().map(|e| e.value()).collect::<Vec<_>>()});
    state.counts.read += 1;
    drop(state);
    me.happened();
    answer(200, &body)
}

/// Room and guild name, if this is a room of ours that may be joined.
fn hosted(me: &Inner, room: &str, must_be_there: bool) -> Result<(i64, String), Response> {
    let parts = room_parts(room).filter(|(_, server)| me.is_me(server));
    let Some((guild, _)) = parts else {
        return Err(error(400, "bad request: Invalid room_id format"));
    };
    if !me.options.allowed.contains(&guild) {
        return Err(error(403, "forbidden"));
    }
    match me.options.guilds.get(&guild) {
        Some(name) => Ok((guild, name.clone())),
        None if must_be_there => Err(error(404, "not found")),
        None => Ok((guild, String::new())),
    }
}

async fn invite(Shared(me): Shared<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let taken = me.posted::<Invite>("/invite", &headers, &body, |b| {
        Some(b.origin_server.as_str())
    });
    let (body, _) = match taken {
        Ok(taken) => taken,
        Err(answer) => return answer,
    };
    let (guild, name) = match hosted(&me, &body.room_id, true) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let body = json!({
        "accepted": true,
        "default_channel_id": "20",
        "expires_in_seconds": body.max_age_seconds.unwrap_or(3600).clamp(60, 86_400),
        "guild_id": guild.to_string(),
        "guild_name": name,
        "join_endpoint": format!("{BASE}/join"),
        "room_id": format!("!{guild}:{}", me.options.identity.domain),
    });
    answer(200, &body)
}

impl Inner {
    /// A user speaks for the server that asks.
    fn of_origin(&self, user: &str, origin: &str) -> Result<(), Response> {
        let parsed = user
            .strip_prefix('@')
            .and_then(|u| u.split_once(':'))
            .filter(|(local, server)| !local.is_empty() && !server.is_empty());
        let Some((_, server)) = parsed else {
            return Err(error(400, "bad request: Invalid user_id"));
        };
        let state = self.state();
        let same = |p: &super::Peer| {
            [&p.name, &p.domain]
                .iter()
                .any(|n| n.eq_ignore_ascii_case(server))
        };
        let known = state.trusted(origin).is_some_and(same);
        if server.eq_ignore_ascii_case(origin) || known {
            return Ok(());
        }
        Err(error(403, "forbidden"))
    }
}

async fn join(Shared(me): Shared<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let taken = me.posted::<Member>("/join", &headers, &body, |b| Some(b.origin_server.as_str()));
    let (body, claim) = match taken {
        Ok(taken) => taken,
        Err(answer) => return answer,
    };
    if let Err(answer) = me.of_origin(&body.user_id, &claim.origin) {
        return answer;
    }
    let (guild, _) = match hosted(&me, &body.room_id, true) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let room = format!("!{guild}:{}", me.options.identity.domain);
    let mut state = me.state();
    state.members.insert((room.clone(), body.user_id.clone()));
    state.mapped.insert(body.user_id.clone());
    drop(state);
    me.happened();
    let body = json!({
        "guild_id": guild.to_string(),
        "joined": true,
        "local_user_id": "77",
        "room_id": room,
    });
    answer(200, &body)
}

async fn leave(Shared(me): Shared<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let taken = me.posted::<Member>("/leave", &headers, &body, |b| {
        Some(b.origin_server.as_str())
    });
    let (body, claim) = match taken {
        Ok(taken) => taken,
        Err(answer) => return answer,
    };
    if let Err(answer) = me.of_origin(&body.user_id, &claim.origin) {
        return answer;
    }
    let (guild, _) = match hosted(&me, &body.room_id, false) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let room = format!("!{guild}:{}", me.options.identity.domain);
    let mut state = me.state();
    state.members.remove(&(room.clone(), body.user_id.clone()));
    let left = state.mapped.contains(&body.user_id);
    drop(state);
    me.happened();
    let body = json!({"guild_id": guild.to_string(), "left": left, "room_id": room});
    answer(200, &body)
}
