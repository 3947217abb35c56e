//! Shared invites between two real bridges, over HTTP, NATS and the command line; and the small routes
//! beside them.

use std::process::Output;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

#[path = "support"]
#[allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]
mod support {
    pub mod bridge;
    pub mod checker;
    pub mod nats;
    pub mod traffic;
    pub mod uam_client;
    pub mod volt_client;
    pub mod volt_world;
}

use support::volt_client::{Answered, get, post, token};
use support::volt_world::{MODERATOR, READER, Setup, Volt, connect, pair};

/// What the bridge's own command line prints.
async fn cli(volt: &Volt, args: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .args(args)
        .arg("--config")
        .arg(volt.bridge.config())
        .output()
        .await
        .expect("the command runs")
}

async fn cli_rows(volt: &Volt, args: &[&str]) -> Vec<Value> {
    let output = cli(volt, args).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
        .collect()
}

/// A call that must be answered.
async fn done(volt: &Volt, method: &str, body: Value) -> Value {
    let mut answer = volt.call(method, body).await;
    assert_eq!(answer["ok"], true, "{method}: {answer}");
    answer["result"].take()
}

/// The code of a call that must be refused.
async fn refused(volt: &Volt, method: &str, body: Value) -> String {
    let answer = volt.call(method, body).await;
    assert_eq!(answer["ok"], false, "{method}: {answer}");
    answer["error"]["code"].as_str().unwrap_or_default().into()
}

fn codes(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    list.iter().filter_map(|i| i["code"].as_str()).collect()
}

fn invite(code: &str) -> Value {
    json!({"code": code, "serverId": "srv_lab1", "serverName": "My Cool Server"})
}

async fn public(volt: &Volt, query: &str) -> Value {
    let path = format!("/invites/public{query}");
    let (status, list) = volt.api("GET", &path, None, None).await;
    assert_eq!(status, 200, "{list}");
    list
}

/// A bridge with one server of its own.
async fn alone(setup: &Setup) -> Volt {
    let volt = Volt::start(setup).await;
    done(&volt, "server.put", json!({"id": "srv_lab1"})).await;
    volt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_is_one_thing_by_every_way() {
    let a = Volt::start(&Setup::new("Volt A")).await;
    let mut ops = a
        .client
        .subscribe("fed.ops.invite.>")
        .await
        .expect("subscribed");
    a.client.flush().await.expect("the broker knows it");
    let output = cli(&a, &["invites", "servers", "add", "srv_lab1"]).await;
    assert!(output.status.success(), "{output:?}");

    let moderator = Some(MODERATOR);
    let (status, answer) = a.api("DELETE", "/invites/nope", moderator, None).await;
    assert_eq!(
        (status, &answer["error"]),
        (404, &json!("Invite not found"))
    );
    let mut wanted = invite("ABC123");
    wanted["maxUses"] = 2.into();
    wanted["expiresAt"] = "2099-12-31T23:59:59+01:00".into();
    let first = a.moderate("POST", "/invites/share", Some(wanted)).await;
    assert_eq!(first["expiresAt"], "2099-12-31T22:59:59.000Z");
    assert_eq!(first["sourceMainline"], "Volt A");
    let second = done(&a, "invite.share", invite("OVERNATS")).await;
    assert_eq!(second["uses"], 0);
    let third = cli(&a, &["invites", "share", "BYHAND", "srv_lab1", "--json"]).await;
    let third: Value = serde_json::from_slice(&third.stdout).expect("the invite");

    let all = a.moderate("GET", "/invites", None).await;
    assert_eq!(
        all,
        json!([first, second, third]),
        "in the order of sharing"
    );
    assert_eq!(done(&a, "invite.list", json!({})).await, all);
    let rows = cli_rows(&a, &["invites", "list", "--json"]).await;
    assert_eq!(Value::from(rows), all);
    let open = public(&a, "").await;
    assert_eq!(done(&a, "invite.public", json!({})).await, open);
    assert_eq!(
        Value::from(cli_rows(&a, &["invites", "public", "--json"]).await),
        open
    );

    let used = a.moderate("POST", "/invites/ABC123/use", None).await;
    assert_eq!(used["uses"], 1);
    let used = done(&a, "invite.use", json!({"id": first["id"]})).await;
    assert_eq!(used["uses"], 2);
    let body = Some(json!({}));
    let (status, answer) = a.api("POST", "/invites/ABC123/use", moderator, body).await;
    assert_eq!((status, &answer["error"]), (400, &json!("Invite expired")));
    let spent = refused(&a, "invite.use", json!({"id": "ABC123"})).await;
    assert_eq!(spent, "invite_spent");
    assert_eq!(codes(&public(&a, "").await), ["OVERNATS", "BYHAND"]);

    let (status, _) = a.api("GET", "/invites", Some(READER), None).await;
    assert_eq!(status, 200, "a reader looks");
    let path = "/invites/OVERNATS/use";
    let (status, answer) = a.api("POST", path, Some(READER), None).await;
    assert_eq!(
        (status, &answer["error"]),
        (403, &json!("Moderator access required")),
        "and changes nothing"
    );
    let (status, _) = a.api("GET", "/invites", None, None).await;
    assert_eq!(status, 401);

    let id = third["id"].as_str().expect("an id");
    let gone = a.moderate("DELETE", &format!("/invites/{id}"), None).await;
    assert_eq!(gone, json!({"success": true}));
    let again = a.moderate("DELETE", &format!("/invites/{id}"), None).await;
    assert_eq!(again, json!({"success": true}), "also when it is gone");
    let output = cli(&a, &["invites", "servers", "remove", "srv_lab1"]).await;
    assert!(output.status.success(), "{output:?}");
    let (status, answer) = a
        .api("POST", "/invites/share", moderator, Some(invite("LATE")))
        .await;
    assert_eq!(
        (status, &answer["error"]),
        (404, &json!("Server not found"))
    );

    // A backend that follows has seen it all.
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let event = tokio::time::timeout(Duration::from_secs(10), ops.next()).await;
        let event = event.expect("in time").expect("an event");
        let body: Value = serde_json::from_slice(&event.payload).expect("JSON");
        let what = event
            .subject
            .split('.')
            .nth(3)
            .unwrap_or_default()
            .to_owned();
        seen.push((what, body));
    }
    let whats: Vec<&str> = seen.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(
        whats,
        [
            "server_put",
            "shared",
            "shared",
            "shared",
            "used",
            "used",
            "removed",
            "server_removed"
        ]
    );
    assert_eq!(seen[1].1["invite"], first);
    assert_eq!(seen[5].1["invite"]["uses"], 2);
    assert_eq!(seen[6].1["invite"]["id"], third["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_browses_what_is_for_it_and_remembers_it_while_we_are_away() {
    let (a, b) = pair();
    let (mut a, b) = tokio::join!(alone(&a), Volt::start(&b));
    let early = refused(&b, "invite.browse", json!({"peer": a.host})).await;
    assert_eq!(early, "unknown_peer");
    connect(&a, &b).await;
    a.moderate("POST", "/invites/share", Some(invite("ALL")))
        .await;
    let mut aimed = invite("ONLYB");
    aimed["targetPeerId"] = a.id_of(&b.host).await.into();
    aimed["maxUses"] = 5.into();
    let aimed = a.moderate("POST", "/invites/share", Some(aimed)).await;
    let mut by_host = invite("BYHOST");
    by_host["targetPeerId"] = b.host.clone().into();
    let by_host = done(&a, "invite.share", by_host).await;
    assert_eq!(by_host["targetPeerId"], aimed["targetPeerId"]);
    done(&a, "invite.remove", json!({"id": by_host["id"]})).await;

    assert_eq!(codes(&public(&a, "").await), ["ALL"]);
    assert_eq!(codes(&public(&a, "?host=volt-x.example").await), ["ALL"]);
    assert_eq!(
        codes(&public(&a, &format!("?host={}", b.host)).await),
        ["ALL", "ONLYB"]
    );
    let (status, answer) = a.api("GET", "/invites/public?host=a/b", None, None).await;
    assert_eq!(
        (status, &answer["error"]),
        (400, &json!("Invalid host query parameter"))
    );

    let fresh = done(&b, "invite.browse", json!({"peer": a.host})).await;
    assert_eq!(codes(&fresh["invites"]), ["ALL", "ONLYB"]);
    assert_eq!(
        (&fresh["cached"], &fresh["error"]),
        (&json!(false), &Value::Null)
    );
    let id = b.id_of(&a.host).await;

    // Uses at once, by both ways, and a kill in the middle of nothing: never more than allowed.
    let tries = (0..20).map(|n| {
        let a = &a;
        async move {
            if n % 2 == 0 {
                let path = "/invites/ONLYB/use";
                a.api("POST", path, Some(MODERATOR), None).await.0 == 200
            } else {
                let answer = a.call("invite.use", json!({"id": "ONLYB"})).await;
                answer["ok"] == true
            }
        }
    });
    let good = futures_util::future::join_all(tries).await;
    assert_eq!(good.into_iter().filter(|good| *good).count(), 5);
    let before = a.moderate("GET", "/invites", None).await;
    a.bridge.kill9();

    // Older than the moment in which it is not asked again.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let away = done(&b, "invite.browse", json!({"peer": id})).await;
    assert_eq!(away["invites"], fresh["invites"]);
    assert_eq!(
        (&away["cached"], &away["fetchedAt"]),
        (&json!(true), &fresh["fetchedAt"])
    );
    assert!(away["error"].is_string(), "{away}");
    let rows = cli_rows(&b, &["invites", "browse", &a.host, "--json"]).await;
    assert_eq!(Value::from(rows), fresh["invites"]);

    a.bridge.start().await;
    let after = a.moderate("GET", "/invites", None).await;
    assert_eq!(after, before, "a restart changes nothing");
    assert_eq!(after[1]["uses"], 5);
    let servers = done(&a, "server.list", json!({})).await;
    assert_eq!(servers, json!([{"id": "srv_lab1", "name": null}]));
    let again = done(&b, "invite.browse", json!({"peer": a.host})).await;
    assert_eq!(codes(&again["invites"]), ["ALL"], "the other is used up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_federation_off_the_open_list_answers_and_nothing_is_shared() {
    let a = alone(&Setup::new("Volt A").line("enabled", "false")).await;
    assert_eq!(public(&a, "").await, json!([]));
    for (method, path) in [
        ("GET", "/invites"),
        ("POST", "/invites/share"),
        ("POST", "/invites/x/use"),
        ("DELETE", "/invites/x"),
    ] {
        let (status, answer) = a.api(method, path, Some(MODERATOR), None).await;
        assert_eq!(
            (status, &answer["error"]),
            (403, &json!("Federation is not enabled")),
            "{method} {path}"
        );
    }
    assert_eq!(refused(&a, "invite.share", invite("X")).await, "disabled");
    let (status, info) = a.api("GET", "/info", None, None).await;
    assert_eq!((status, &info["federationEnabled"]), (200, &json!(false)));
    assert!(
        info["features"].is_object() && info.get("peerCount").is_none(),
        "{info}"
    );
    let known = reqwest_get(&a, "/.well-known/voltchat/mainnet").await;
    assert_eq!(known["capabilities"]["federation"], false);
    assert_eq!(
        known["endpoints"]["federation"],
        format!("{}/api/federation", a.url())
    );
}

/// A page outside the protocol's base.
async fn reqwest_get(volt: &Volt, path: &str) -> Value {
    let to = volt.host.parse().expect("an address");
    let answer = get(to, path, &[]).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_and_large_bodies_are_bounded() {
    let a = alone(&Setup::new("Volt A")).await;
    let to = a.host.parse().expect("an address");
    // Ten mebibytes and a byte, with and without the right to share.
    let large = format!(
        r#"{{"code":"{}","serverId":"srv_lab1"}}"#,
        "a".repeat(10 << 20)
    );
    let bearer = format!("Bearer {MODERATOR}");
    for headers in [&[][..], &[("authorization", bearer.as_str())][..]] {
        let answer = post(to, "/api/federation/invites/share", headers, &large).await;
        // A server may also close before it has read what it will not take.
        if let Ok(answer) = answer {
            assert!([401, 413].contains(&answer.status), "{}", answer.text());
        }
    }
    // Just under it: read, and refused for what it is.
    let long = format!(
        r#"{{"code":"{}","serverId":"srv_lab1"}}"#,
        "a".repeat(9 << 20)
    );
    let headers = [("authorization", bearer.as_str())];
    let answer = post(to, "/api/federation/invites/share", &headers, &long).await;
    let answer = answer.expect("an answer");
    assert_eq!(
        (answer.status, &answer.json()["error"]),
        (400, &json!("Invalid invite code"))
    );

    // The open list, asked without end.
    let mut limited = None;
    for n in 0..400 {
        let (status, answer) = a.api("GET", "/invites/public", None, None).await;
        if status == 429 {
            limited = Some(n);
            assert_eq!(answer["error"], "API rate limit exceeded");
            break;
        }
        assert_eq!(status, 200, "{answer}");
    }
    assert!(limited.is_some_and(|n| n >= 100), "{limited:?}");
    // Operators are not asked to wait for it.
    a.moderate("GET", "/invites", None).await;
}

/// What the peer of `a` sends: `b`'s hands are ours, its secret is known.
struct Hands {
    secret: String,
    host: String,
}

impl Hands {
    /// Shakes hands with a bridge that lets this host in, and is accepted.
    async fn of(a: &Volt, host: &str) -> Self {
        let secret = "0123456789abcdef".repeat(4);
        let body = json!({"name": "Volt B", "host": host, "url": format!("http://{host}"),
                          "sharedSecret": secret});
        let (status, answer) = a.api("POST", "/handshake", None, Some(body)).await;
        assert_eq!(status, 200, "{answer}");
        a.accept(host).await;
        Self {
            secret,
            host: host.to_owned(),
        }
    }

    fn token(&self) -> String {
        token(
            &self.secret,
            "peer_1700000000000_0a1b2c3d",
            &self.host,
            "\"B\"",
        )
    }

    async fn get(&self, a: &Volt, path: &str) -> Answered {
        let token = self.token();
        let headers = [
            ("x-federation-token", token.as_str()),
            ("x-federation-host", self.host.as_str()),
        ];
        let to = a.host.parse().expect("an address");
        get(to, path, &headers).await.expect("an answer")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_describes_its_servers_and_hears_who_joined() {
    // Nobody listens there; the heartbeat finds out, and the peer stays authenticated.
    let there = support::bridge::free_address().to_string();
    let a = alone(
        &Setup::new("Volt A")
            .allow(&there)
            .line("backend_timeout", "\"300ms\""),
    )
    .await;
    let b = Hands::of(&a, &there).await;

    let list = b.get(&a, "/api/federation/servers").await;
    assert_eq!((list.status, list.json()), (200, json!([])));
    let info = "/api/federation/server-info/srv_lab1";
    let none = b.get(&a, info).await;
    assert_eq!(
        (none.status, none.json()),
        (404, json!({"error": "Server not found"}))
    );
    let odd = b.get(&a, "/api/federation/server-info/a%20b").await;
    assert_eq!(
        (odd.status, odd.json()),
        (400, json!({"error": "Invalid server id"}))
    );
    let (status, _) = a.api("GET", "/server-info/srv_lab1", None, None).await;
    assert_eq!(status, 401);

    let mut asks = a
        .client
        .subscribe("fed.ask.voltchat.>")
        .await
        .expect("subscribed");
    a.client.flush().await.expect("the broker knows it");
    let client = a.client.clone();
    let backend = tokio::spawn(async move {
        while let Some(ask) = asks.next().await {
            let body: Value = serde_json::from_slice(&ask.payload).expect("JSON");
            let answer = json!({"id": body["id"], "name": "Lab", "host": "elsewhere.example",
                                "askedBy": body["peer"], "as": ask.subject.as_str()});
            let reply = ask.reply.expect("a question");
            client
                .publish(reply, answer.to_string().into())
                .await
                .expect("answered");
        }
    });
    for what in ["server-info", "server-snapshot"] {
        let known = b.get(&a, &format!("/api/federation/{what}/srv_lab1")).await;
        assert_eq!(
            (known.status, known.json()),
            (
                200,
                json!({"id": "srv_lab1", "name": "Lab", "host": a.host, "askedBy": there,
                       "as": format!("fed.ask.voltchat.{what}")})
            )
        );
    }
    backend.abort();

    // A member joins: with a lone surrogate in the name, as a mainline can send it.
    let token = b.token();
    let user = r#"{"id":"u1","displayName":"a\ud800b"}"#;
    let body = format!(
        r#"{{"serverId":"srv_lab1","user":{user},"host":"{there}","fromHost":"evil.example","token":"{token}"}}"#
    );
    let to = a.host.parse().expect("an address");
    let path = "/api/federation/member-joined";
    let joined = post(to, path, &[], &body).await.expect("an answer");
    assert_eq!(
        (joined.status, joined.json()),
        (200, json!({"success": true}))
    );
    let events = a.until_events(1, Duration::from_secs(10)).await;
    let subject = format!(
        "fed.in.voltchat.{}.member-joined",
        drawbridge::bus::subject::token(&there)
    );
    assert_eq!(events[0].subject, subject);
    let again = post(to, path, &[], &body).await.expect("an answer");
    assert_eq!(again.status, 401, "a token is used once");
    let odd = json!({"serverId": "s", "user": {"id": "a b"}, "host": there, "token": b.token()});
    let odd = post(to, path, &[], &odd.to_string())
        .await
        .expect("an answer");
    assert_eq!(
        (odd.status, odd.json()),
        (400, json!({"error": "Invalid user id"}))
    );
    let body = json!({"serverId": "srv_lab1", "user": {"id": "u2"}, "host": there,
                      "token": b.token()});
    post(to, path, &[], &body.to_string())
        .await
        .expect("an answer");
    let events = a.until_events(2, Duration::from_secs(10)).await;
    assert_eq!(
        events[1].payload,
        json!({"type": "member-joined", "serverId": "srv_lab1", "user": {"id": "u2"},
               "fromHost": there, "fromMainline": "Volt B"})
    );
}
