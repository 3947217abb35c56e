//! Invites, joins and leaves; reads.

use serde_json::{Value, json};

use super::{case, given, with_peer};
use crate::paracord::HttpCase;

/// Invites, joins and leaves.
pub fn memberships() -> Vec<HttpCase> {
    let room = "!{ALLOWED_GUILD}:{DOMAIN}";
    let invite = |max_age: Value| {
        json!({"origin_server": "bridge.example", "room_id": room, "sender": "@a:bridge.example",
            "max_age_seconds": max_age})
    };
    let bare = json!({"origin_server": "bridge.example", "room_id": room,
        "sender": "@a:bridge.example"});
    let user = |user_id: &str, room_id: &str| {
        let (origin, room) = ("bridge.example", room_id);
        json!({"origin_server": origin, "room_id": room, "user_id": user_id})
    };
    let alice = "@alice:bridge.example";
    let invited =
        |expires: i64| json!({"status": 200, "accepted": true, "expires_in_seconds": expires});
    let joined = json!({"status": 200, "joined": true});
    let forbidden = json!({"status": 403, "code": "FORBIDDEN"});
    let unauthorized = json!({"status": 401, "code": "UNAUTHORIZED"});
    let bad = |what: &str| {
        let message = format!("bad request: Invalid {what}");
        json!({"status": 400, "code": "BAD_REQUEST", "message": message})
    };
    let nothing = json!({});
    let normal = json!({"sign_over": "normal_form"});
    let no_query = json!({"signed_path": "/_paracord/federation/v1/invite"});
    let stranger = json!({"origin_server": "x.example", "room_id": room, "user_id": alice});
    let alias = with_peer(json!({"domain": "chat.bridge.example"}));
    let all = [
        (
            "a short invite",
            "invite",
            invite(json!(1)),
            &nothing,
            invited(60),
        ),
        (
            "a long invite",
            "invite",
            invite(json!(i64::MAX)),
            &nothing,
            invited(86_400),
        ),
        (
            "an invite of less than nothing",
            "invite",
            invite(json!(i64::MIN)),
            &nothing,
            invited(60),
        ),
        (
            "an invite in its normal form",
            "invite",
            bare.clone(),
            &normal,
            invited(3_600),
        ),
        (
            "an invite of a text",
            "invite",
            invite(json!("7")),
            &nothing,
            json!({"status": 422, "plain_text": "invalid type"}),
        ),
        (
            "an invite with a query",
            "invite?x=1",
            bare,
            &no_query,
            invited(3_600),
        ),
        (
            "a join under our server name",
            "join",
            user(alice, "!+300:NODE-A.example "),
            &nothing,
            joined.clone(),
        ),
        (
            "a join in capitals",
            "join",
            user("@alice:BRIDGE.example", room),
            &nothing,
            joined.clone(),
        ),
        (
            "a join to no room",
            "join",
            user(alice, "300"),
            &nothing,
            bad("room_id format"),
        ),
        (
            "a leave of nobody",
            "leave",
            user("@:x", room),
            &nothing,
            bad("user_id"),
        ),
        (
            "an origin that is another's is told before the clock",
            "join",
            stranger.clone(),
            &json!({"timestamp_offset_ms": -70_000}),
            forbidden.clone(),
        ),
        (
            "a header that is missing is told before the origin",
            "join",
            stranger,
            &json!({"omit_headers": ["X-Paracord-Origin"]}),
            unauthorized,
        ),
        (
            "a join by the registered domain",
            "join",
            user("@a:chat.bridge.example", room),
            &json!({"given": alias}),
            joined,
        ),
        (
            "a join while paused",
            "join",
            user(alice, room),
            &json!({"given": given(json!({"enabled": false}))}),
            forbidden,
        ),
    ];
    let request = |route: &str, body: Value| {
        let path = format!("/_paracord/federation/v1/{route}");
        json!({"method": "POST", "path": path, "json": body})
    };
    all.into_iter()
        .map(|(name, route, body, how, expect)| {
            case(name, request(route, body), how.clone(), expect)
        })
        .collect()
}

/// What anybody reads, and what nobody finds.
pub fn reads() -> Vec<HttpCase> {
    let not_found = json!({"status": 404, "code": "NOT_FOUND"});
    let none = "/_paracord/federation/v1/event/none";
    let unsigned = json!({"unsigned": true});
    let get = |path: &str| json!({"method": "GET", "path": path});
    let base = |route: &str| get(&format!("/_paracord/federation/v1/{route}"));
    [
        (
            "a query of one event is not signed",
            base("event/none?x=1"),
            json!({"signed_path": none}),
            not_found.clone(),
        ),
        (
            "a path beyond ASCII",
            base("event/$m_reaction_add:1:👍:5:x"),
            json!({}),
            not_found.clone(),
        ),
        (
            "a room that is none",
            base("events?room_id=junk"),
            json!({}),
            not_found,
        ),
        (
            "a limit that is none",
            base("events?room_id=x&limit=abc"),
            unsigned.clone(),
            json!({"status": 400, "plain_text": "Failed"}),
        ),
        (
            "keys",
            base("keys"),
            unsigned.clone(),
            json!({"status": 200}),
        ),
        (
            "the discovery page",
            get("/.well-known/paracord/server"),
            unsigned,
            json!({"status": 200}),
        ),
    ]
    .into_iter()
    .map(|(name, request, how, expect)| case(name, request, how, expect))
    .collect()
}
