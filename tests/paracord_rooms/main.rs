//! Rooms between real bridges: invites, joins and leaves with a backend's word, what is polled, and the
//! command line.

use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

#[path = "../support"]
#[allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]
mod support {
    pub mod bridge;
    pub mod checker;
    pub mod nats;
    pub mod para_world;
    pub mod paracord_client;
    pub mod traffic;
    pub mod uam_client;
}

use support::para_world::{Message, Para, Setup};
use support::paracord_client::Identity;

const PATIENCE: Duration = Duration::from_secs(30);

/// A backend that answers every question of one method with the same object, and keeps what it was
/// asked.
struct Backend {
    asked: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Backend {
    async fn answering(para: &Para, method: &str, answer: Value) -> Self {
        let subject = format!("fed.ask.paracord.{method}");
        let mut questions = para.client.subscribe(subject).await.expect("subscribed");
        support::nats::round_trip(&para.client).await;
        let (client, asked) = (para.client.clone(), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                let said = serde_json::from_slice(&question.payload).expect("JSON");
                kept.lock().expect("no panic").push(said);
                if let Some(reply) = question.reply {
                    let answer = answer.to_string().into();
                    client.publish(reply, answer).await.expect("published");
                }
            }
        });
        Self { asked, task }
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A bridge with one room, and a server that it trusts and never asks.
async fn hosting(lines: impl FnOnce(Setup) -> Setup) -> (Para, Identity) {
    let eve = Identity::new("eve.test");
    let setup = lines(Setup::new("alpha.test").pinned(&eve));
    let a = Para::here(setup).await;
    a.host("!7:alpha.test", "Quay").await;
    (a, eve)
}

async fn ask(a: &Para, eve: &Identity, route: &str, body: &Value) -> (u16, Value) {
    let answer = a.ask(&eve.post(route, body.to_string())).await;
    (answer.status, answer.json)
}

fn membership(user: &str) -> Value {
    json!({"origin_server": "eve.test", "room_id": "!7:alpha.test", "user_id": user})
}

fn invite() -> Value {
    json!({"origin_server": "eve.test", "room_id": "!7:alpha.test", "sender": "@eve:eve.test"})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_words_an_invite_and_names_the_user_that_joins() {
    let (a, eve) = hosting(|setup| setup).await;
    let word = json!({"guild_name": "Lab", "default_channel_id": 71, "expires_in_seconds": 5});
    let backend = Backend::answering(&a, "invite", word).await;
    let (status, said) = ask(&a, &eve, "/invite", &invite()).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(
        said,
        json!({
            "accepted": true,
            "default_channel_id": "71",
            "expires_in_seconds": 60,
            "guild_id": "7",
            "guild_name": "Lab",
            "join_endpoint": "/_paracord/federation/v1/join",
            "room_id": "!7:alpha.test",
        })
    );
    let asked = backend.asked();
    assert_eq!(
        (&asked[0]["peer"], &asked[0]["room_id"], &asked[0]["sender"]),
        (
            &json!("eve.test"),
            &json!("!7:alpha.test"),
            &json!("@eve:eve.test")
        )
    );
    let _joins = Backend::answering(&a, "join", json!({"local_user_id": "42"})).await;
    let (status, said) = ask(&a, &eve, "/join", &membership("@eve:eve.test")).await;
    assert_eq!(
        (status, &said["local_user_id"]),
        (200, &json!("42")),
        "{said}"
    );
    let joined = a
        .until_said("room.joined", |said| said["user_id"] == "@eve:eve.test")
        .await;
    assert_eq!(joined["direction"], "in");
    let _leaves = Backend::answering(&a, "leave", json!({"left": true})).await;
    let (status, said) = ask(&a, &eve, "/leave", &membership("@eve:eve.test")).await;
    assert_eq!((status, &said["left"]), (200, &json!(true)), "{said}");
    a.until_said("room.left", |said| said["user_id"] == "@eve:eve.test")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_refuses_and_nothing_is_kept() {
    let (a, eve) = hosting(|setup| setup).await;
    let _joins = Backend::answering(&a, "join", json!({"error": "the room is full"})).await;
    let _invites = Backend::answering(&a, "invite", json!({"accepted": false})).await;
    let (status, said) = ask(&a, &eve, "/join", &membership("@eve:eve.test")).await;
    assert_eq!((status, &said["code"]), (403, &json!("FORBIDDEN")));
    let (status, _) = ask(&a, &eve, "/invite", &invite()).await;
    assert_eq!(status, 403);
    let rejected = a
        .until_said("ingest.rejected", |said| said["code"] == "backend_refused")
        .await;
    let detail = rejected["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("the room is full"), "{rejected}");
    let members = a.call("room.members", json!({"guild_id": 7})).await;
    assert_eq!(members, json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_silent_is_waited_for_no_longer_than_set() {
    let (a, eve) = hosting(|setup| setup.line("backend_timeout", "\"300ms\"")).await;
    let mut silent = a
        .client
        .subscribe("fed.ask.paracord.join")
        .await
        .expect("subscribed");
    support::nats::round_trip(&a.client).await;
    let began = std::time::Instant::now();
    let (status, said) = ask(&a, &eve, "/join", &membership("@eve:eve.test")).await;
    assert_eq!(
        (status, &said["joined"]),
        (200, &json!(true)),
        "the bridge's own answer"
    );
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(silent.next().await.is_some(), "it was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_only_a_backend_knows_is_there_when_the_backend_says_so() {
    let (a, eve) = hosting(|setup| setup.line("allowed_guild_ids", "[\"300\"]")).await;
    let mut join = membership("@eve:eve.test");
    join["room_id"] = "!300:alpha.test".into();
    let (status, _) = ask(&a, &eve, "/join", &join).await;
    assert_eq!(status, 404);
    let word = json!({"joined": true, "guild_name": "Dock"});
    let _joins = Backend::answering(&a, "join", word).await;
    let (status, said) = ask(&a, &eve, "/join", &join).await;
    assert_eq!(status, 200, "{said}");
    let rooms = a.call("room.list", json!({})).await;
    let rooms = rooms.as_array().expect("a list").iter();
    let dock = rooms.filter(|room| room["name"] == "Dock").count();
    assert_eq!(dock, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_followed_from_a_join_to_the_last_leave_and_its_events_are_fetched() {
    let (a, b) = pair().await;
    let room = "!7:alpha.test";
    a.host(room, "Quay").await;
    let al = json!({"room_id": room, "user_id": "@al:beta.test"});
    b.call("join", al.clone()).await;
    assert_eq!(kinds(&b).await, ["followed"]);
    for n in 1..=3 {
        let message = Message::text("_room", room, "@host:alpha.test", &format!("n{n}"));
        a.send(message).await;
    }
    b.until_events(3, PATIENCE).await;
    let members = a.call("room.members", json!({"room_id": room})).await;
    assert_eq!(members[0]["user_id"], "@al:beta.test");
    // Pushed and polled, each came once.
    polled(&b, room).await;
    let bodies: Vec<String> = b.events().iter().map(|e| e.body().to_owned()).collect();
    assert_eq!(bodies, ["n1", "n2", "n3"]);
    assert!(a.events().is_empty(), "nothing of ours comes back");
    b.call("leave", al.clone()).await;
    assert_eq!(kinds(&b).await, Vec::<String>::new());
    let members = a.call("room.members", json!({"room_id": room})).await;
    assert_eq!(members, json!([]));
    let refusal = b
        .try_call(
            "join",
            json!({"room_id": "!8:alpha.test", "user_id": "@al:beta.test"}),
        )
        .await
        .expect_err("the room is not there");
    assert!(
        refusal.contains("alpha.test answered 403: forbidden"),
        "{refusal}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_are_kept_and_joined_from_the_command_line() {
    let (a, b) = pair().await;
    let put = rows(
        &a,
        &[
            "rooms", "put", "7", "--name", "Quay", "--public", "true", "--json",
        ],
    )
    .await;
    assert_eq!(
        (&put[0]["room_id"], &put[0]["public"], &put[0]["allowed"]),
        (&json!("!7:alpha.test"), &json!(true), &json!(true))
    );
    let room = "!7:alpha.test";
    let preview = rows(&b, &["rooms", "invite", room, "@al:beta.test", "--json"]).await;
    assert_eq!(preview[0]["guild_name"], "Quay");
    let said = cli(&b, &["rooms", "join", room, "@al:beta.test"]).await;
    assert_eq!(text(&said), "@al:beta.test joined !7:alpha.test\n");
    let list = rows(&b, &["rooms", "list", "--json"]).await;
    assert_eq!(
        (&list[0]["kind"], &list[0]["peer"]),
        (&json!("followed"), &json!("alpha.test"))
    );
    let list = cli(&a, &["rooms", "list"]).await;
    assert!(text(&list).contains("beta.test"), "{list:?}");
    let members = rows(&a, &["rooms", "members", "7", "--json"]).await;
    assert_eq!(members[0]["user_id"], "@al:beta.test");
    let said = cli(&b, &["rooms", "leave", room, "@al:beta.test"]).await;
    assert_eq!(text(&said), "@al:beta.test left !7:alpha.test\n");
    let said = cli(&b, &["rooms", "follow", room]).await;
    assert_eq!(text(&said), "!7:alpha.test is followed at alpha.test\n");
    let said = cli(&b, &["rooms", "unfollow", room]).await;
    assert_eq!(text(&said), "!7:alpha.test is followed no more\n");
    let said = cli(&a, &["rooms", "remove", room]).await;
    assert_eq!(text(&said), "!7:alpha.test is ours no more\n");
    let output = cli(&b, &["rooms", "join", room, "@al:beta.test"]).await;
    assert!(!output.status.success());
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(why.contains("alpha.test answered 403"), "{why}");
}

/// Two bridges that trust each other.
async fn pair() -> (Para, Para) {
    let (a, b) = (
        Setup::new("alpha.test").lifted(),
        Setup::new("beta.test").lifted(),
    );
    let (at_a, at_b) = (a.address, b.address);
    let (a, b) = (a.peer("beta.test", at_b), b.peer("alpha.test", at_a));
    let (a, b) = tokio::join!(Para::here(a), Para::here(b));
    tokio::join!(knows(&a, "beta.test"), knows(&b, "alpha.test"));
    (a, b)
}

/// Waits until a bridge has the keys of a server: it may have asked before that was up.
async fn knows(para: &Para, peer: &str) {
    let wait = async {
        loop {
            let known = para.try_call("peer.get", json!({"peer": peer})).await;
            let keys = known
                .ok()
                .and_then(|known| known["keys"].as_array().map(Vec::len));
            if keys.is_some_and(|keys| keys > 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE * 3, wait)
        .await
        .expect("the keys are fetched");
}

async fn kinds(para: &Para) -> Vec<String> {
    let rooms = para.call("room.list", json!({})).await;
    let rooms = rooms.as_array().expect("a list").iter();
    rooms
        .map(|room| room["kind"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Waits until the room was read by polling.
async fn polled(para: &Para, room: &str) {
    let wait = async {
        loop {
            let rooms = para.call("room.list", json!({})).await;
            let mut rooms = rooms.as_array().expect("a list").iter();
            let followed = rooms.find(|row| row["room_id"] == room);
            if followed.is_some_and(|row| row["read_up_to_ms"].is_i64()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("it is polled");
}

async fn cli(para: &Para, args: &[&str]) -> Output {
    let config = para.dir.path().join("bridge.toml");
    let settings = para.setup.text(para.dir.path(), &para.nats.url());
    std::fs::write(&config, settings).expect("the configuration");
    tokio::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .args(args)
        .arg("--config")
        .arg(config)
        .output()
        .await
        .expect("the command runs")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn rows(para: &Para, args: &[&str]) -> Vec<Value> {
    let output = cli(para, args).await;
    let lines = text(&output);
    let lines = lines.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
        .collect()
}
