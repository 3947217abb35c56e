//! The Paracord side of the crash test: one server that is pushed to and polled, and that pushes and
//! polls as well. It lives in the test's own process and is never killed, but may be unwell.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream;
use serde_json::{Value, json};

use crate::support::bridge::{self, Bridge};
use crate::support::checker::{Arrival, Class, Input, Published};
use crate::support::paracord_client::{Identity, fresh, guild_of, hex};
use crate::support::reference::{Arrived, Options, Reference};
use crate::support::traffic::{self, Gate, Rng, Shared, Stop, snapshot};
use crate::support::uam_client::now_ns;

const BRIDGE: &str = "alpha.test";
const NODE: &str = "node.test";

/// A server that nobody knows.
const STRANGER: &str = "nobody.example";

/// Lives at the server; the bridge follows it.
const THEIRS: &str = "!9000:node.test";

/// The server, and what it sent.
pub struct ParaSide {
    pub node: Arc<Reference>,
    /// What its users wrote, for the bridge to poll.
    written: Shared<Input>,
    /// What it pushed, and what somebody pushed in its name.
    posted: Shared<Input>,
}

/// Tables for the bridge's configuration; its url comes by [`own_url`]. `node`: where the server is
/// reached.
pub fn tables(node: SocketAddr) -> String {
    format!(
        "[paracord]\nserver_name = \"{BRIDGE}\"\npoll_interval = \"200ms\"\nkeys_refresh = \"1s\"\n\
         max_events_per_peer_per_minute = 0\npush_per_minute = 0\nquarantine_after = 0\n\
         unproven_per_minute = 1000000\n\
         retry_delays = [\"100ms\", \"200ms\", \"400ms\", \"800ms\", \"1500ms\", \"3s\"]\n\
         [[peers]]\nprotocol = \"paracord\"\nname = \"{NODE}\"\nendpoint = \"http://{node}\"\n"
    )
}

/// The bridge's own url in the protocol, as the world reaches it.
pub fn own_url(bridge: &mut Bridge, url: &str) {
    bridge.env("DRAWBRIDGE_PARACORD__URL", url);
}

impl ParaSide {
    /// It listens; the bridge need not run yet.
    pub async fn start(node: SocketAddr, seed: u64) -> Self {
        let mut options = Options::at(node, Identity::new(NODE)).guild(9000, "Far guild");
        options.seed = seed.wrapping_add(2);
        options.every = Some(Duration::from_millis(300));
        Self {
            node: Arc::new(Reference::start(options).await),
            written: Shared::default(),
            posted: Shared::default(),
        }
    }

    /// The server's administrator adds the bridge, the bridge's backend follows the server's room.
    pub async fn connect(&self, bridge: &str, broker: &str) {
        let known = self.node.add(BRIDGE, BRIDGE, bridge).await;
        assert!(known, "the bridge lists a key");
        let client = bridge::connect(broker).await;
        let body = json!({"room_id": THEIRS, "peer": NODE}).to_string();
        let answer = client
            .request("fed.do.paracord.room.follow", body.into())
            .await
            .expect("an answer of the bridge");
        let text = String::from_utf8_lossy(&answer.payload).into_owned();
        assert!(text.contains("\"ok\":true"), "{text}");
    }

    /// The traffic of one round: publishers for three rooms, the server's own writing and pushing.
    pub fn round(
        &self,
        round: usize,
        rng: &mut Rng,
        js: &jetstream::Context,
        (stop, gate): (&Stop, &Gate),
        out: &Shared<Input>,
        tasks: &mut tokio::task::JoinSet<()>,
    ) {
        for n in 0..3 {
            tasks.spawn(publisher(
                js.clone(),
                (format!("r{round}c{n}"), format!("!{}:{BRIDGE}", 7000 + n)),
                Rng(rng.next()),
                stop.clone(),
                gate.clone(),
                out.clone(),
            ));
        }
        tasks.spawn(writer(
            Arc::clone(&self.node),
            Rng(rng.next()),
            stop.clone(),
            self.written.clone(),
        ));
        tasks.spawn(pusher(
            Arc::clone(&self.node),
            Rng(rng.next()),
            stop.clone(),
            self.posted.clone(),
        ));
    }

    /// What was pushed to it, as the checker wants it.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let pushed = self.node.arrived().into_iter().filter(|a| !a.polled);
        pushed.map(|a| arrival(&a)).collect()
    }

    /// Ids of what was taken by push.
    pub fn taken(&self) -> HashSet<String> {
        let arrivals = self.arrivals();
        let taken = arrivals.into_iter().filter(|a| a.status == 200);
        taken.map(|a| a.id).collect()
    }

    /// What it sent. What its users wrote has to come, sooner or later.
    pub fn posted(&self) -> Vec<Input> {
        let mut all = snapshot(&self.written);
        all.extend(snapshot(&self.posted));
        all
    }

    /// What went over Paracord, in one line.
    pub fn summary(&self) -> String {
        format!(
            "paracord: {} taken by push, {} by poll, {} written and {} pushed here",
            self.taken().len(),
            self.node.counts().polled,
            snapshot(&self.written).len(),
            snapshot(&self.posted).len()
        )
    }

    /// Whether enough of it went both ways to prove something in so many rounds.
    pub fn proves(&self, rounds: usize) -> bool {
        let ok = |i: &&Input| i.class == Class::Ok;
        self.taken().len() > 20 * rounds
            && snapshot(&self.written).len() > 20 * rounds
            && snapshot(&self.posted).iter().filter(ok).count() > 2 * rounds
    }

    /// What a server would not have put up with, and rooms whose depth does not rise.
    pub fn complaints(&self) -> Vec<String> {
        let mut all = self.node.complaints();
        let mut last: BTreeMap<String, (i64, String)> = BTreeMap::new();
        let mut seen = HashSet::new();
        for push in self.node.arrived().iter().filter(|a| !a.polled) {
            let event = &push.envelope;
            if !seen.insert(event.event_id.clone()) {
                continue;
            }
            let before = last.insert(event.room_id.clone(), (event.depth, event.event_id.clone()));
            if let Some((depth, id)) = before
                && depth >= event.depth
            {
                all.push(format!(
                    "{} has depth {}, {id} before it in {} had {depth}",
                    event.event_id, event.depth, event.room_id
                ));
            }
        }
        // A message that was sealed twice has two ids.
        let mut sealed: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
        let arrived = self.node.arrived();
        for came in &arrived {
            let id = came.envelope.content["id"].as_str().unwrap_or_default();
            sealed
                .entry(id)
                .or_default()
                .insert(&came.envelope.event_id);
        }
        for (id, events) in sealed.iter().filter(|(_, events)| events.len() > 1) {
            all.push(format!("{id} is several events: {events:?}"));
        }
        all
    }
}

fn arrival(seen: &Arrived) -> Arrival {
    Arrival {
        id: seen.envelope.content["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        sent: crate::world::sent_at(seen.sent, seen.at),
        t: seen.at,
        answered: seen.answered.or(Some(seen.at)),
        status: if seen.status == 202 { 200 } else { seen.status },
    }
}

/// The event as its sender knows it: its content.
pub fn as_sent(mut event: Published) -> Published {
    if event.msg_id.starts_with("paracord:") {
        let envelope: Value = serde_json::from_str(&event.payload).unwrap_or_default();
        event.payload = envelope["content"].to_string();
    }
    event
}

/// Publishes events of one room, one after the other; the room is their order key, and has a depth
/// that rises. Reactions have their depth in their id.
async fn publisher(
    js: jetstream::Context,
    (name, room): (String, String),
    mut rng: Rng,
    stop: Stop,
    gate: Gate,
    out: Shared<Input>,
) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let id = format!("{name}-{count}");
        let mut content = json!({
            "id": id,
            "guild_id": guild_of(&room),
            "channel_id": "20",
            "message_id": fresh(),
        });
        let kind = if rng.chance(30) {
            content["emoji"] = json!("🎈");
            "m.reaction.add"
        } else {
            content["body"] = json!("hello");
            content["msgtype"] = json!("m.text");
            "m.message"
        };
        let (mut to, mut doomed) = (NODE, false);
        match rng.within(0, 40) {
            0 => (to, doomed) = (STRANGER, true),
            1 => {
                content["position"] = json!(0.5);
                doomed = true;
            }
            2..5 => content["flaky"] = json!(2),
            _ => {}
        }
        let sender = format!("@alice:{BRIDGE}");
        let body = json!({"room_id": room, "sender": sender, "content": content});
        let mut input = Input {
            id,
            key: room.clone(),
            // The room goes on through all rounds.
            index: now_ns(),
            class: Class::Refused,
            payload: body.to_string(),
            doomed,
        };
        let subject = format!(
            "fed.out.paracord.{}.{kind}",
            drawbridge::bus::subject::token(to)
        );
        traffic::publish(&js, &subject, &mut input, false, &mut rng, &stop, &gate).await;
        traffic::push(&out, input);
        tokio::time::sleep(rng.pause(10, 50)).await;
    }
}

/// The server's users write; nothing is pushed. The bridge has to come and look.
async fn writer(node: Arc<Reference>, mut rng: Rng, stop: Stop, written: Shared<Input>) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let event = if rng.chance(20) {
            let content = json!({"guild_id": "9000", "channel_id": "20", "emoji": "🎈",
                                 "message_id": fresh()});
            node.write(THEIRS, "rita", "m.reaction.add", content)
        } else {
            node.say(THEIRS, "a = 5")
        };
        traffic::push(
            &written,
            Input {
                id: event.event_id,
                key: String::new(),
                index: count,
                class: Class::Ok,
                payload: event.content.to_string(),
                doomed: false,
            },
        );
        tokio::time::sleep(rng.pause(30, 90)).await;
    }
}

/// The server pushes events of a room that nobody polls, again what was taken long ago, and somebody
/// pushes in its name without its key.
async fn pusher(node: Arc<Reference>, mut rng: Rng, stop: Stop, posted: Shared<Input>) {
    let room = format!("!7777:{NODE}");
    let mut accepted = Vec::new();
    let mut count = 0;
    let me = node.identity().clone();
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        if !accepted.is_empty() && rng.chance(15) {
            let at = usize::try_from(rng.within(0, accepted.len() as u64)).unwrap_or(0);
            // Whatever is answered: it was accepted, it must not appear again.
            node.push(BRIDGE, &accepted[at]).await;
            tokio::time::sleep(rng.pause(10, 50)).await;
            continue;
        }
        let spoilt = rng.chance(10);
        let mut value = me.event(
            &room,
            json!({"content": {"body": format!("pushed {count}")}}),
        );
        if spoilt {
            value["signatures"] = json!({NODE: {&me.key_id: hex(&[5; 64])}});
        }
        let event: crate::support::reference::typed::Envelope =
            serde_json::from_value(value).expect("an envelope");
        let mut input = Input {
            id: event.event_id.clone(),
            key: String::new(),
            index: count,
            class: Class::Refused,
            payload: event.content.to_string(),
            doomed: false,
        };
        for _ in 0..10 {
            match node.push(BRIDGE, &event).await {
                (202, _) => input.class = Class::Ok,
                // Somebody else's bad luck; it may have been stored all the same.
                (0 | 500.., _) => input.class = Class::Unknown,
                _ => {}
            }
            if spoilt || input.class == Class::Ok || rng.chance(25) || stop.load(Ordering::Relaxed)
            {
                break;
            }
            tokio::time::sleep(rng.pause(50, 300)).await;
        }
        if spoilt {
            // No answer makes a forgery acceptable.
            input.class = Class::Refused;
        } else if input.class == Class::Ok {
            accepted.push(event);
        }
        traffic::push(&posted, input);
        tokio::time::sleep(rng.pause(20, 60)).await;
    }
}
