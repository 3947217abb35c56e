//! Ways to make a request that the shared file has no case of, with the answers that the sheet (4 and
//! 5) and the decisions say: so that a file that uses them finds them understood.

mod others;
mod pushes;

use serde_json::{Value, json};

use super::HttpCase;

/// The cases, on a bridge as most of the shared file's.
pub fn cases() -> Vec<HttpCase> {
    let mut cases = pushes::cases();
    cases.extend(others::memberships());
    cases.extend(others::reads());
    cases
}

fn case(name: &str, mut members: Value, how: Value, expect: Value) -> HttpCase {
    members["given"] = given(json!({}));
    for (member, value) in how.as_object().expect("an object") {
        members[member] = value.clone();
    }
    members["expect"] = expect;
    HttpCase {
        name: format!("own: {name}"),
        members,
    }
}

fn given(with: Value) -> Value {
    let mut given = json!({
        "now_ms": 1_700_000_000_000i64,
        "enabled": true,
        "names": {"SERVER_NAME": "node-a.example", "DOMAIN": "chat.example", "ALLOWED_GUILD": "300"},
        "peers": [{
            "server_name": "bridge.example",
            "domain": "bridge.example",
            "trusted": true,
            "keys": [{"key_id": "ed25519:auto", "seed_hex": "fe".repeat(32)}],
        }],
        "rooms": [{"room_id": "!{ALLOWED_GUILD}:{DOMAIN}", "allowed": true}],
    });
    for (member, value) in with.as_object().expect("an object") {
        given[member] = value.clone();
    }
    given
}

fn with_peer(with: Value) -> Value {
    let mut given = given(json!({}));
    for (member, value) in with.as_object().expect("an object") {
        given["peers"][0][member] = value.clone();
    }
    given
}

fn with_third() -> Value {
    let mut given = given(json!({}));
    let peers = given["peers"].as_array_mut().expect("a list");
    peers.push(json!({
        "server_name": "third.example",
        "domain": "chat.third.example",
        "trusted": true,
        "keys": [{"key_id": "ed25519:3", "seed_hex": "33".repeat(32)}],
    }));
    given
}
