//! Groups that are requests: each is sent to a bridge of its own, by the routes of a running one.

use std::collections::BTreeMap;

use drawbridge::identity::hmac::SharedSecret;
use drawbridge::protocols::voltchat::allow::AllowList;
use drawbridge::protocols::voltchat::record::{Direction, Status};
use drawbridge::protocols::voltchat::{host, token};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Case;
use super::answer::{has, matches};
use super::given::{Given, GivenPeer};
use super::words::{Sender, Words, asks_twice};
use super::world::{Ask, World};
use crate::check::{read, same, status_fits};
use crate::support::nats::NatsServer;

/// Groups that are checked here.
pub const GROUPS: [&str; 3] = ["request_auth", "captured", "http"];

pub async fn case(nats: &NatsServer, n: usize, case: &Case) -> Result<(), String> {
    let members = &Value::Object(case.members.clone());
    match case.group.as_str() {
        "request_auth" => auth_case(nats, n, read(members)?).await,
        "captured" => captured_case(nats, n, read(members)?).await,
        "http" => http_case(nats, n, read(members)?).await,
        other => Err(format!("unknown group {other:?}")),
    }
}

fn known_peer(host: &str, secret: &str, status: Status) -> GivenPeer {
    GivenPeer {
        id: "peer_1600000000000_00000001".into(),
        name: "the peer".into(),
        host: host.into(),
        url: format!("https://{host}"),
        status,
        direction: Direction::Incoming,
        features: Map::new(),
        secret: secret.into(),
        last_seen: None,
        remote_peer_id: None,
    }
}

// ------------------------------------------------------------------------------- request_auth

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    input: AuthInput,
    expected: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AuthInput {
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Value,
    peer: Option<AuthPeer>,
    #[serde(default)]
    allowed_servers: Value,
    #[serde(rename = "now_ms")]
    now_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthPeer {
    host: String,
    secret: String,
    status: Status,
}

/// The check stands in front of many routes; a ping shows what it says.
async fn auth_case(nats: &NatsServer, n: usize, case: Auth) -> Result<(), String> {
    let input = case.input;
    let allowed = match &input.allowed_servers {
        Value::Null => Vec::new(),
        list => {
            if AllowList::from_json(list).is_err() {
                return same("expected", "reject", case.expected.as_str());
            }
            read(list)?
        }
    };
    let mut given = Given::empty(input.now_ms, allowed);
    let peer = input.peer.as_ref();
    given.peers = peer
        .map(|peer| known_peer(&peer.host, &peer.secret, peer.status))
        .into_iter()
        .collect();
    let world = World::build(nats, n, &given, &[]).await;
    let mut headers: Vec<(String, String)> = input.headers.into_iter().collect();
    headers.push(("content-type".into(), "application/json".into()));
    let answer = world
        .ask(&Ask {
            method: "POST".into(),
            path: "/api/federation/ping".into(),
            headers,
            body: match input.body {
                Value::Null => "{}".into(),
                body => body.to_string(),
            },
        })
        .await;
    world.end().await;
    let (status, json) = answer?;
    let ours = match status {
        200 => "accept",
        401 => "reject",
        other => return Err(format!("status {other}: {json:?}")),
    };
    if case.expected == "either" {
        return Ok(());
    }
    same("expected", ours, case.expected.as_str())
}

// ------------------------------------------------------------------------------------ captured

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Captured {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body_text: String,
    secret: String,
    claimed_host: String,
    now_ms: i64,
}

/// A request of the reference itself: its token holds, and the route takes it.
async fn captured_case(nats: &NatsServer, n: usize, case: Captured) -> Result<(), String> {
    let body: Value = match case.body_text.as_str() {
        "" => Value::Null,
        text => serde_json::from_str(text).map_err(|e| e.to_string())?,
    };
    let in_header = case.headers.get("x-federation-token").map(String::as_str);
    let sent = in_header.or_else(|| body.get("token")?.as_str());
    let offered = body.get("sharedSecret").and_then(Value::as_str);
    let claimed = host::normal(&case.claimed_host);
    let mut given = Given::empty(case.now_ms, vec![case.claimed_host.clone()]);
    if let Some(sent) = sent {
        let secret = SharedSecret::new(&case.secret).ok_or("no secret")?;
        token::verify(Some(&secret), &claimed, sent, case.now_ms)
            .map_err(|why| format!("the token is refused: {why}"))?;
        given.peers = vec![known_peer(&claimed, &case.secret, Status::Connected)];
    }
    if let Some(offered) = offered {
        same("secret", offered, case.secret.as_str())?;
    }
    // Anybody may read a public page; whoever does so is nobody we know.
    let sent_by_peer = sent.is_some() || offered.is_some();
    let world = World::build(nats, n, &given, &[]).await;
    let answer = world
        .ask(&Ask {
            method: case.method,
            path: case.path,
            headers: case.headers.into_iter().collect(),
            body: case.body_text,
        })
        .await;
    let peers = world.peers().await;
    world.end().await;
    let (status, json) = answer?;
    if status != 200 {
        return Err(format!("status {status}: {json:?}"));
    }
    let known = peers?.iter().any(|peer| peer["host"] == *claimed);
    same("known afterwards", known, sent_by_peer)
}

// ---------------------------------------------------------------------------------------- http

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    #[serde(rename = "server")]
    _server: Option<Value>,
    #[serde(rename = "peer_state")]
    _peer_state: Option<Value>,
    request: HttpRequest,
    response: HttpResponse,
    #[serde(default, deserialize_with = "present")]
    after: Option<Value>,
    given: Given,
}

fn present<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(reader).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpRequest {
    method: String,
    path: String,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(default, deserialize_with = "present")]
    body: Option<Value>,
    raw: Option<String>,
    #[serde(default)]
    no_content_type: bool,
    #[serde(rename = "note")]
    _note: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpResponse {
    status: Value,
    #[serde(default, deserialize_with = "present")]
    body: Option<Value>,
}

async fn http_case(nats: &NatsServer, n: usize, case: Http) -> Result<(), String> {
    let given = &case.given;
    let words = words(given, &case.request);
    let ask = asked(&words, &case.request)?;
    let twice = [Value::Object(case.request.headers.clone())]
        .iter()
        .chain(&case.request.body)
        .any(asks_twice);
    let world = World::build(nats, n, given, &servers(&case)).await;
    let result = async {
        if twice {
            let (status, json) = world.ask(&ask).await?;
            if status != 200 {
                return Err(format!("the first time: status {status}, {json:?}"));
            }
        }
        let (status, json) = world.ask(&ask).await?;
        if !status_fits(status, &case.response.status)? {
            let expected = &case.response.status;
            return Err(format!("status {status} ({json:?}), expected {expected}"));
        }
        if let Some(expected) = &case.response.body {
            matches(&json.unwrap_or_default(), expected).map_err(|e| format!("body{e}"))?;
        }
        match &case.after {
            None => Ok(()),
            Some(after) => afterwards(&world, given, after).await,
        }
    };
    let result = result.await;
    world.end().await;
    result
}

/// Servers that are ours: those of the vectors, and those a case shares invites of.
fn servers(case: &Http) -> Vec<String> {
    let mut all = vec!["srv_lab1".to_owned()];
    all.extend(case.given.invites.iter().map(|i| i.server_id.clone()));
    let unknown = case.response.body.as_ref();
    let unknown = unknown.is_some_and(|body| body["error"] == "Server not found");
    let body = case.request.body.as_ref();
    if let Some(named) = body.and_then(|body| body.get("serverId")?.as_str())
        && case.request.path.ends_with("/invites/share")
        && !unknown
        && drawbridge::protocols::voltchat::ids::id(named) == Some(named)
    {
        all.push(named.to_owned());
    }
    all
}

/// What words mean in this case. Its tokens are those of the peer that the request claims to be; if
/// none of them is known, of the first.
fn words(given: &Given, request: &HttpRequest) -> Words {
    let body = request.body.as_ref();
    let of_body = |key: &str| body.and_then(|body| body.get(key)?.as_str());
    let claimed = request
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("x-federation-host"))
        .and_then(|(_, value)| value.as_str())
        .or(of_body("host"))
        .or(of_body("fromHost"))
        .map(host::normal);
    let by_name = |peer: &&GivenPeer| Some(&peer.host) == claimed.as_ref();
    let peer = given.peers.iter().find(by_name).or(given.peers.first());
    let sender = Sender {
        peer_id: "peer_1600000000000_0fedcba9".into(),
        host: peer
            .map(|peer| peer.host.clone())
            .or(claimed)
            .unwrap_or_else(|| "volt-b.example:8443".into()),
        name: peer.map_or_else(|| "Stub".into(), |peer| peer.name.clone()),
        secret: peer.map_or_else(|| "0123456789abcdef".repeat(4), |peer| peer.secret.clone()),
        secret_sent: given.secret_sent.clone(),
    };
    Words {
        now_ms: given.now_ms,
        peer_id: given.peers.first().map(|peer| peer.id.clone()),
        invite_id: given.invites.first().map(|invite| invite.id.clone()),
        bearers: given.bearers(),
        sender,
    }
}

fn asked(words: &Words, request: &HttpRequest) -> Result<Ask, String> {
    let mut headers = Vec::new();
    for (name, value) in &request.headers {
        let value = value
            .as_str()
            .ok_or(format!("not understood: header {name}"))?;
        headers.push((name.to_ascii_lowercase(), words.text(value)?));
    }
    let typed = headers.iter().any(|(name, _)| name == "content-type");
    let carries = matches!(request.method.as_str(), "POST" | "DELETE" | "PUT" | "PATCH");
    if carries && !typed && !request.no_content_type {
        headers.push(("content-type".into(), "application/json".into()));
    }
    let body = match (&request.raw, &request.body) {
        (Some(raw), _) => raw.clone(),
        (None, Some(body)) => words.value(body)?.to_string(),
        (None, None) => String::new(),
    };
    if !body.is_empty() {
        headers.push(("content-length".into(), body.len().to_string()));
    }
    Ok(Ask {
        method: request.method.clone(),
        path: words.text(&request.path)?,
        headers,
        body,
    })
}

/// The peer as it is shown afterwards; null: there is none.
async fn afterwards(world: &World, given: &Given, after: &Value) -> Result<(), String> {
    let peers = world.peers().await?;
    let first = given.peers.first();
    if after.is_null() {
        let left = match first {
            None => peers.first(),
            Some(first) => peers.iter().find(|peer| peer["id"] == *first.id),
        };
        return match left {
            None => Ok(()),
            Some(peer) => Err(format!("after: {peer} is still there")),
        };
    }
    let listed = match (after["host"].as_str(), first) {
        (Some(host), _) => peers.iter().find(|peer| peer["host"] == *host),
        (None, Some(first)) => peers.iter().find(|peer| peer["id"] == *first.id),
        (None, None) => peers.first(),
    };
    let listed = listed.ok_or(format!("after: no such peer among {peers:?}"))?;
    let id = listed["id"].as_str().unwrap_or_default();
    let shown = world
        .peer(id)
        .await?
        .ok_or("after: GET /peers/:id has none")?;
    same("GET /peers and GET /peers/:id", listed, &shown)?;
    has(&shown, after).map_err(|error| format!("after{error}"))
}
