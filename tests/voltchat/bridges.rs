//! Two bridges with one another.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::volt_world::{self, Event, Message, Volt, connect};

async fn two() -> (Volt, Volt) {
    let (a, b) = volt_world::pair();
    tokio::join!(Volt::start(&a), Volt::start(&b))
}

/// A message's place: a fifth of them go under the peer's own order key, the others under eight that
/// are named, so that the rest does not wait for one message at a time.
fn lane(n: i64) -> Option<String> {
    (n % 10 > 1).then(|| format!("lane {}", n % 10))
}

/// Numbers that a backend put into its messages, as they came.
fn numbers(events: &[Event]) -> Vec<i64> {
    let number = |event: &Event| event.payload["payload"]["n"].as_i64().unwrap_or(-1);
    events.iter().map(number).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_bridges_peer_keep_seeing_each_other_and_share_invites() {
    let (a, b) = two().await;
    let asked = a.request("Volt B", &b.url()).await;
    assert_eq!(asked["status"], "pending", "{asked}");
    assert_eq!(asked["direction"], "outgoing");
    assert!(asked.get("sharedSecret").is_none(), "{asked}");
    let waiting = b.until_status(&a.host, "pending").await;
    assert_eq!(waiting["direction"], "incoming");
    assert_eq!(waiting["name"], "Volt A");
    // Rounds go by, and nobody is connected before an operator says so.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(a.peer(&b.host).await.unwrap()["status"], "pending");
    b.accept(&a.host).await;
    for (here, there) in [(&a, &b), (&b, &a)] {
        let first = here.until_status(&there.host, "connected").await;
        assert_eq!(first["lastError"], Value::Null, "{first}");
        let end = Instant::now() + Duration::from_secs(10);
        // The heartbeat goes on.
        loop {
            let now = here.peer(&there.host).await.unwrap();
            if now["lastSeen"].is_string() && now["lastSeen"] != first["lastSeen"] {
                break;
            }
            assert!(
                Instant::now() < end,
                "{now} has not been seen since {first}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    // Again: a 409 that changes and discloses nothing.
    let again = json!({"name": "Other", "url": b.url()});
    let bearer = Some(volt_world::MODERATOR);
    let (status, answer) = a.api("POST", "/peers", bearer, Some(again)).await;
    assert_eq!(
        (status, &answer["error"]),
        (409, &json!("Peer already exists"))
    );
    assert!(!answer.to_string().contains("haredSecret"), "{answer}");
    assert_eq!(a.peer(&b.host).await.unwrap()["status"], "connected");

    // Roles: a reader looks, a stranger does not.
    let reader = Some(volt_world::READER);
    let (status, _) = a.api("POST", "/peers", reader, Some(json!({}))).await;
    assert_eq!(status, 403);
    let (status, answer) = a.api("GET", "/peers", None, None).await;
    assert_eq!(
        (status, &answer["error"]),
        (401, &json!("Access token required"))
    );

    share(&a, &b).await;
}

async fn share(a: &Volt, b: &Volt) {
    let invite = |code: &str| {
        json!({"code": code, "serverId": "server_xyz", "serverName": "My Cool Server",
               "maxUses": 100, "expiresAt": "2099-12-31T23:59:59Z"})
    };
    let bearer = Some(volt_world::MODERATOR);
    let (status, answer) = a
        .api("POST", "/invites/share", bearer, Some(invite("ABC123")))
        .await;
    assert_eq!(
        (status, &answer["error"]),
        (404, &json!("Server not found"))
    );
    a.call(
        "server.put",
        json!({"id": "server_xyz", "name": "My Cool Server"}),
    )
    .await;
    let shared = a
        .moderate("POST", "/invites/share", Some(invite("ABC123")))
        .await;
    assert_eq!(shared["sourceHost"], a.host.as_str(), "{shared}");
    let mut aimed = invite("ONLYB");
    aimed["targetPeerId"] = json!(a.id_of(&b.host).await);
    a.moderate("POST", "/invites/share", Some(aimed)).await;

    let codes = |list: &Value| -> Vec<String> {
        let list = list.as_array().cloned().unwrap_or_default();
        let codes = list.iter().filter_map(|i| i["code"].as_str());
        codes.map(str::to_owned).collect()
    };
    let path = format!("/invites/public?host={}", b.host);
    let (status, list) = a.api("GET", &path, None, None).await;
    assert_eq!(
        (status, codes(&list)),
        (200, vec!["ABC123".into(), "ONLYB".into()])
    );
    let (_, list) = a
        .api("GET", "/invites/public?host=volt-x.example", None, None)
        .await;
    assert_eq!(codes(&list), ["ABC123"]);
    // The other bridge's backend looks through them over NATS.
    let browsed = b.call("invite.browse", json!({"peer": a.host})).await;
    assert!(
        browsed.to_string().contains("ABC123") && browsed.to_string().contains("ONLYB"),
        "{browsed}"
    );
}

/// Asks; where the other's handshake came a moment before, that is what there is to accept.
async fn ask_or_accept(side: &Volt, host: &str, url: &str) {
    let body = json!({"name": "other", "url": url});
    let asked = side.api("POST", "/peers", Some(volt_world::MODERATOR), Some(body));
    match asked.await {
        (200, _) => {}
        (409, _) => drop(side.accept(host).await),
        (status, answer) => panic!("POST /peers: {status} {answer}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_cross_end_connected() {
    let (a, b) = two().await;
    let (to_a, to_b) = (a.url(), b.url());
    tokio::join!(
        ask_or_accept(&a, &b.host, &to_b),
        ask_or_accept(&b, &a.host, &to_a)
    );
    tokio::join!(
        a.until_status(&b.host, "connected"),
        b.until_status(&a.host, "connected")
    );
    a.publish(&b.host, "announcement", json!({"n": 1}), &[])
        .await;
    b.publish(&a.host, "announcement", json!({"n": 2}), &[])
        .await;
    let there = b.until_events(1, Duration::from_secs(10)).await;
    assert_eq!(numbers(&there), [1]);
    let here = a.until_events(1, Duration::from_secs(10)).await;
    assert_eq!(numbers(&here), [2]);
}

/// One side asked while the other could not be reached; later the other asks. Whichever has the
/// smaller name, the two find one secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_never_arrived_and_one_that_did_end_connected() {
    for turned in [false, true] {
        let (a, b) = volt_world::pair();
        let (early, late) = if turned { (b, a) } else { (a, b) };
        let early = Volt::start(&early).await;
        let failed = early
            .request("the late one", &format!("http://{}", late.host()))
            .await;
        assert_eq!(failed["status"], "pending");
        assert!(failed["lastError"].is_string(), "{failed}");
        let late = Volt::start(&late).await;
        late.request("the early one", &early.url()).await;
        // The operator of the first tries his own request again; nothing has to be deleted.
        early
            .call("peer.handshake", json!({"peer": late.host}))
            .await;
        tokio::join!(
            early.until_status(&late.host, "connected"),
            late.until_status(&early.host, "connected")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_messages_each_way_survive_a_restart_of_each_bridge() {
    const COUNT: usize = 1_000;
    let (mut a, mut b) = two().await;
    connect(&a, &b).await;
    let messages = |to: &Volt, from: &Volt| -> Vec<Message> {
        let host = &to.host;
        let message = |n| {
            let id = format!("{}-{n}", from.host);
            let message = Message::new(
                host,
                "announcement",
                json!({"n": n, "text": "condition = 5 <b>"}),
            )
            .with(&[("Nats-Msg-Id", id.as_str())]);
            match lane(n) {
                Some(lane) => message.with(&[("Fed-Order", lane.as_str())]),
                None => message,
            }
        };
        (0..COUNT as i64).map(message).collect()
    };
    let begun = Instant::now();
    tokio::join!(
        a.publish_all(messages(&b, &a)),
        b.publish_all(messages(&a, &b))
    );
    let patience = Duration::from_secs(40);
    b.until_events(COUNT / 4, patience).await;
    a.bridge.kill9();
    a.bridge.start().await;
    a.until_events(COUNT / 2, patience).await;
    b.bridge.stop().await;
    b.bridge.start().await;
    tokio::join!(
        a.until_events(COUNT, patience),
        b.until_events(COUNT, patience)
    );
    eprintln!("{COUNT} each way in {:?}", begun.elapsed());
    // What might come twice has a moment to do so.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (here, there) in [(&a, &b), (&b, &a)] {
        let events = here.events();
        let came = numbers(&events);
        let mut sorted = came.clone();
        sorted.sort_unstable();
        let all: Vec<i64> = (0..COUNT as i64).collect();
        assert_eq!(sorted, all, "at {}", here.host);
        for of in 1..10 {
            let of = lane(of);
            let in_lane: Vec<_> = came.iter().filter(|n| lane(**n) == of).collect();
            assert!(in_lane.is_sorted(), "{of:?} at {}: {in_lane:?}", here.host);
        }
        let one = &events[0];
        assert_eq!(one.header("Fed-Peer"), there.host);
        assert_eq!(one.header("Fed-Type"), "announcement");
        assert_eq!(one.payload["fromHost"], there.host.as_str());
        assert_eq!(one.payload["payload"]["text"], "condition = 5 <b>");
        assert_eq!(here.dead().await, []);
    }
}
