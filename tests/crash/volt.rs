//! The VoltChat side of the crash test: a peer that takes pushes and one that only fetches, both of
//! which push to the bridge as well. They live in the test's own process and are never killed, but
//! the fetching one loses answers, one at a time, and both may be unwell.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream;
use serde_json::{Value, json};

use crate::support::bridge::{self, Bridge};
use crate::support::checker::{Arrival, Class, Input, Published};
use crate::support::mainline::{Mainline, Options, Status};
use crate::support::traffic::{self, Gate, Rng, Shared, Stop, snapshot};
use crate::support::volt_client;

const TOKEN: &str = "moderator-of-the-crash-test";

/// A host that never asked for anything.
const STRANGER: &str = "nobody.example";

/// Both peers, and what they sent.
pub struct VoltSide {
    pub pushed: Mainline,
    pub fetching: Mainline,
    /// Host of the bridge.
    bridge: String,
    /// Ids and payloads that the peers have put into their queues, by peer.
    relayed: Shared<Input>,
    forged: Shared<Input>,
}

/// Tables for the bridge's configuration; its url comes by [`own_url`].
pub fn tables(pushed: SocketAddr, fetching: SocketAddr) -> String {
    format!(
        "[voltchat]\nserver_name = \"Volt A\"\nallowed_servers = [\"{pushed}\", \"{fetching}\"]\n\
         sync_interval = \"500ms\"\nhandout_gap = \"200ms\"\nfetch_batch = 20\npeer_rate_limit = 10000000\nunproven_per_minute = 1000000\n\
         retry_delays = [\"100ms\", \"200ms\", \"400ms\", \"800ms\", \"1500ms\", \"3s\"]\n\
         [[voltchat.operators]]\nname = \"mo\"\nrole = \"moderator\"\ntoken = \"{TOKEN}\"\n"
    )
}

/// The bridge's own url in the protocol, as the world reaches it.
pub fn own_url(bridge: &mut Bridge, url: &str) {
    bridge.env("DRAWBRIDGE_VOLTCHAT__URL", url);
}

impl VoltSide {
    /// Both listen; the bridge need not run yet.
    pub async fn start(
        bridge: SocketAddr,
        pushed: SocketAddr,
        fetching: SocketAddr,
        seed: u64,
    ) -> Self {
        let mut options = Options::at(pushed);
        options.published = false;
        options.fetchable = false;
        // A peer that fetches while pushes fail is given its mailbox instead.
        options.fetches = false;
        options.seed = seed;
        let pushed = Mainline::start(options).await;
        let mut options = Options::at(fetching);
        options.name = "\"Volt \\ud83d fetches\"".into();
        options.seed = seed.wrapping_add(1);
        options.losses = 5;
        options.fetch_losses = 40;
        options.every = Some(Duration::from_millis(50));
        options.turned = 20;
        Self {
            pushed,
            fetching: Mainline::start(options).await,
            bridge: bridge.to_string(),
            relayed: Shared::default(),
            forged: Shared::default(),
        }
    }

    fn both(&self) -> [&Mainline; 2] {
        [&self.pushed, &self.fetching]
    }

    /// Both ask, and the operator accepts.
    pub async fn connect(&self, bridge: &Bridge) {
        for peer in self.both() {
            peer.request(&format!("http://{}", self.bridge))
                .await
                .expect("received");
        }
        let client = bridge::client();
        let base = format!("{}/api/federation/peers", bridge.public_url());
        let answer = client.get(&base).bearer_auth(TOKEN).send().await;
        let text = answer.expect("an answer").text().await.expect("a text");
        let peers: Vec<Value> = serde_json::from_str(&text).expect("the peers");
        assert_eq!(peers.len(), 2, "{text}");
        for peer in peers {
            let path = format!("{base}/{}/accept", peer["id"].as_str().unwrap_or_default());
            let answer = client.post(path).bearer_auth(TOKEN).send().await;
            assert_eq!(answer.expect("an answer").status(), 200);
        }
        for peer in self.both() {
            peer.until("the bridge accepts", Duration::from_secs(10), |m| {
                m.status(&self.bridge) == Some(Status::Connected)
            })
            .await;
        }
    }

    /// The traffic of one round: publishers to both, both peers' own messages, and forgeries.
    #[allow(
        clippy::too_many_arguments,
        reason = "what a round of this test is made of"
    )]
    pub fn round(
        &self,
        round: usize,
        rng: &mut Rng,
        js: &jetstream::Context,
        stop: &Stop,
        gate: &Gate,
        out: &Shared<Input>,
        tasks: &mut tokio::task::JoinSet<()>,
    ) {
        for (n, peer) in self.both().into_iter().enumerate() {
            tasks.spawn(publisher(
                js.clone(),
                (format!("r{round}v{n}"), peer.host()),
                Rng(rng.next()),
                stop.clone(),
                gate.clone(),
                out.clone(),
            ));
            tasks.spawn(relayer(
                peer.queue(&self.bridge),
                Rng(rng.next()),
                stop.clone(),
                self.relayed.clone(),
            ));
        }
        tasks.spawn(forger(
            self.bridge.parse().expect("an address"),
            self.pushed.host(),
            Rng(rng.next()),
            stop.clone(),
            self.forged.clone(),
        ));
    }

    /// What came, as the checker wants it: every push, and of what was fetched the first of each.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let mut all: Vec<Arrival> = self.pushed.arrived().iter().map(arrival).collect();
        all.extend(self.fetching.taken().iter().map(arrival));
        all
    }

    /// Ids of what was taken.
    pub fn taken(&self) -> HashSet<String> {
        let arrivals = self.arrivals();
        let taken = arrivals.into_iter().filter(|a| a.status == 200);
        taken.map(|a| a.id).collect()
    }

    /// What the peers sent. What is no longer in a queue was answered 200.
    pub fn posted(&self) -> Vec<Input> {
        let mut waiting = self.pushed.waiting_ids(&self.bridge);
        waiting.extend(self.fetching.waiting_ids(&self.bridge));
        let mut all = snapshot(&self.relayed);
        for input in &mut all {
            input.class = if waiting.contains(&input.id) {
                Class::Unknown
            } else {
                Class::Ok
            };
        }
        all.extend(snapshot(&self.forged));
        all
    }

    /// How much the peers have not got rid of.
    pub fn waiting(&self) -> usize {
        self.both().iter().map(|m| m.waiting(&self.bridge)).sum()
    }

    /// What went over VoltChat, in one line.
    pub fn summary(&self) -> String {
        let [pushed, fetched] = self.both().map(|peer| peer.taken().len());
        let fetching = self.fetching.counts();
        format!(
            "voltchat: {pushed} taken by push, {fetched} by {} fetches, {} answers with messages lost, {} relayed here",
            fetching.fetches,
            fetching.lost_batches,
            snapshot(&self.relayed).len()
        )
    }

    /// Whether enough of it went both ways to prove something in so many rounds.
    pub fn proves(&self, rounds: usize) -> bool {
        let enough = |peer: &Mainline| peer.taken().len() > 10 * rounds;
        self.both().into_iter().all(enough) && snapshot(&self.relayed).len() > 20 * rounds
    }

    /// What a peer would not have put up with.
    pub fn complaints(&self) -> Vec<String> {
        let mut all = self.pushed.complaints();
        all.extend(self.fetching.complaints());
        // A bridge that is killed leaves halves of requests.
        all.retain(|text| !text.contains("a body that is no JSON"));
        all
    }
}

fn arrival(seen: &crate::support::mainline::Arrived) -> Arrival {
    Arrival {
        id: seen.payload["id"].as_str().unwrap_or_default().to_owned(),
        sent: crate::world::sent_at(seen.sent, seen.at),
        t: seen.at,
        answered: seen.answered.or(Some(seen.at)),
        status: seen.status,
    }
}

/// The event as its sender knows it: of a VoltChat event the payload, since the bridge writes the
/// rest anew.
pub fn as_sent(mut event: Published) -> Published {
    if event.msg_id.starts_with("voltchat:") {
        let message: Value = serde_json::from_str(&event.payload).unwrap_or_default();
        event.payload = message["payload"].to_string();
    }
    event
}

/// Publishes for one peer, one message after the other. Half of them name an order key.
async fn publisher(
    js: jetstream::Context,
    (name, host): (String, String),
    mut rng: Rng,
    stop: Stop,
    gate: Gate,
    out: Shared<Input>,
) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let order = rng.chance(50);
        let key = if order {
            format!("{name} lane {}", rng.within(0, 2))
        } else {
            host.clone()
        };
        let id = format!("{name}-{count}");
        let (to, payload, doomed) = match rng.within(0, 40) {
            0 => (STRANGER, json!({"id": id}), true),
            1 if name.ends_with("v0") => (host.as_str(), json!({"id": id, "answer": 400}), true),
            2..5 => (host.as_str(), json!({"id": id, "flaky": 2}), false),
            _ => (host.as_str(), json!({"id": id}), false),
        };
        let mut input = Input {
            id,
            key,
            // The peer's own key goes on through all rounds.
            index: crate::support::uam_client::now_ns(),
            class: Class::Refused,
            payload: json!({ "payload": payload }).to_string(),
            doomed,
        };
        let subject = format!(
            "fed.out.voltchat.{}.announcement",
            drawbridge::bus::subject::token(to)
        );
        traffic::publish(&js, &subject, &mut input, order, &mut rng, &stop, &gate).await;
        traffic::push(&out, input);
        tokio::time::sleep(rng.pause(10, 50)).await;
    }
}

/// Puts messages into a peer's own queue; the peer pushes them, each twice, until they are taken.
async fn relayer(
    queue: crate::support::mainline::Queue,
    mut rng: Rng,
    stop: Stop,
    relayed: Shared<Input>,
) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(rng.pause(30, 90)).await;
        // A peer sends all that waits before it fetches again.
        if queue.waiting() > 20 {
            continue;
        }
        count += 1;
        let payload = json!({"n": count, "text": "a = 5"}).to_string();
        let id = queue.relay("user:presence", &payload);
        traffic::push(
            &relayed,
            Input {
                id,
                key: String::new(),
                index: count,
                class: Class::Unknown,
                payload,
                doomed: false,
            },
        );
    }
}

/// Pushes in the name of a peer without its secret. No answer makes that acceptable.
async fn forger(to: SocketAddr, host: String, mut rng: Rng, stop: Stop, forged: Shared<Input>) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let id = format!("relay_forged_{}_{count}", rng.next());
        let token = volt_client::token(&volt_client::random_hex(32), "peer_1", &host, "\"M\"");
        let headers = [
            ("x-federation-token", token.as_str()),
            ("x-federation-host", host.as_str()),
        ];
        let body = json!({"id": id, "type": "announcement", "payload": {}}).to_string();
        let _ = volt_client::post(to, "/api/federation/relay/push", &headers, &body).await;
        traffic::push(
            &forged,
            Input {
                id,
                key: String::new(),
                index: count,
                class: Class::Refused,
                payload: String::new(),
                doomed: false,
            },
        );
        tokio::time::sleep(rng.pause(200, 600)).await;
    }
}
