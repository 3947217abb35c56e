//! What a relay serves: the delivery route, its own description, its agents' keys.

use std::sync::Arc;

use ::http::{StatusCode, header};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use super::answer::{Fail, reply};
use super::discover::{DELIVER_PATH, WELL_KNOWN_PATH};
use super::{Uam, admin, deliver};

/// Version of the protocol as the well-known file says it.
const WELL_KNOWN_VERSION: &str = "0.1";
/// Version that `/health` of a real relay says.
const HEALTH_VERSION: &str = "0.1.0";

/// The routes on the public listener. What no route answers is the listener's
/// ([`crate::http::unrouted::answered`]), for several protocols share it.
pub fn router(uam: Arc<Uam>) -> axum::Router {
    axum::Router::new()
        .route(DELIVER_PATH, post(deliver::route))
        .route(WELL_KNOWN_PATH, get(well_known))
        .route("/.well-known/uam.json", get(agents_file))
        .route("/api/v1/versions", get(versions))
        .route("/health", get(health))
        .route("/api/v1/agents/{address}/public-key", get(agent_key))
        .merge(admin::routes())
        .with_state(uam)
}

async fn well_known(State(uam): State<Arc<Uam>>) -> Result<Response, Fail> {
    if !uam.config.enabled {
        return Err(Fail::disabled());
    }
    Ok(ok(&json!({
        "relay_domain": uam.domain(),
        "federation_endpoint": uam.endpoint(),
        "public_key": uam.public_key_text(),
        "version": WELL_KNOWN_VERSION,
    })))
}

fn ok(body: &Value) -> Response {
    reply(StatusCode::OK, body)
}

async fn versions() -> Response {
    ok(&json!({"uam_version": "0.1", "supported_major_versions": ["0"]}))
}

async fn health(State(uam): State<Arc<Uam>>) -> Response {
    ok(&json!({
        "status": "ok",
        "agents_online": uam.agents.count(),
        "version": HEALTH_VERSION,
    }))
}

async fn agent_key(
    State(uam): State<Arc<Uam>>,
    address: Result<Path<String>, PathRejection>,
) -> Result<Response, Fail> {
    // What does not decode to text is nobody's address.
    let address = address.map(|Path(text)| text).unwrap_or_default();
    let key = uam.agents.own(&address).ok_or_else(|| {
        let shown: String = address.chars().take(256).collect();
        Fail::not_found(format!("Agent not found: {shown}"))
    })?;
    Ok(ok(&json!({
        "address": address,
        "public_key": key,
        "tier": 1,
        "verified_domain": null,
    })))
}

/// The file by which SDK agents elsewhere find the keys of our agents (sheet, section 11).
async fn agents_file(State(uam): State<Arc<Uam>>) -> Response {
    let mut agents = Map::new();
    for (address, key) in uam.agents.all() {
        if let Some((name, _)) = address.split_once("::") {
            agents.insert(name.to_owned(), json!({"key": format!("ed25519:{key}")}));
        }
    }
    let cache = [(header::CACHE_CONTROL, "max-age=60")];
    (cache, ok(&json!({"v": "uam1", "agents": agents}))).into_response()
}
