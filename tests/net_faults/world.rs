//! A bridge, its broker and one UAM relay, and the wires between them.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream;

use crate::support::bridge::{self, Bridge, Broker};
use crate::support::checker::{self, Arrival, Class, Fault, History, Input, Violation, Who};
use crate::support::sink::{self, SinkOptions};
use crate::support::toxic::{Mood, Toxic};
use crate::support::traffic::{self, Gate, Rng, Shared, Stop, Tail, snapshot};
use crate::support::uam_client::{self, now_ns};

/// What a wire leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// From the bridge to its broker.
    Broker,
    /// From callers to the bridge.
    Door,
    /// From the bridge to the relay.
    Relay,
}

/// How long everything may take to come to its end.
const PATIENCE: Duration = Duration::from_secs(40);

/// All of it, and the traffic through it.
pub struct World {
    pub history: History,
    dir: tempfile::TempDir,
    _broker: Broker,
    bridge: Bridge,
    wires: [Toxic; 3],
    js: jetstream::Context,
    stop: Stop,
    tasks: tokio::task::JoinSet<()>,
    sink: tokio::task::JoinHandle<()>,
    out: Shared<Input>,
    posted: Shared<Input>,
}

impl World {
    /// Everything started, messages on their way both ways.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let binary =
            drawbridge::bus::find::server_binary(None, &drawbridge::bus::find::default_cache_dir())
                .await
                .expect("a nats-server");
        let mut broker = Broker::new(binary, &dir.path().join("broker"));
        broker.start().await;
        let options = SinkOptions {
            address: bridge::free_address(),
            domain: "beta.test".into(),
            trusts: "alpha.test".into(),
            dir: dir.path().join("sink"),
        };
        let relay = Toxic::to(options.address).await;
        let to_broker = Toxic::to(broker.address()).await;
        let mut bridge = Bridge::new(
            &dir.path().join("bridge"),
            "alpha.test",
            Some(&format!("nats://{}", to_broker.address)),
            "discovery = false\nrelay_rate_limit = 10000000\nunproven_per_minute = 1000000\n\
             retry_delays = [\"100ms\", \"200ms\", \"400ms\", \"800ms\", \"1500ms\", \"3s\"]",
            &format!(
                "[outbound]\nbreaker_initial = \"100ms\"\nbreaker_max = \"300ms\"\n{}",
                bridge::pin("beta.test", relay.address)
            ),
        );
        let door = Toxic::to(bridge.public).await;
        let listener = tokio::net::TcpListener::bind(options.address)
            .await
            .expect("the relay's port");
        let sink = tokio::spawn(async move {
            sink::serve(listener, options).await.expect("it serves");
        });
        bridge.start().await;
        let js = jetstream::new(bridge::connect(&broker.url()).await);
        let mut world = Self {
            history: History::default(),
            dir,
            _broker: broker,
            bridge,
            wires: [to_broker, door, relay],
            js,
            stop: Stop::default(),
            tasks: tokio::task::JoinSet::new(),
            sink,
            out: Shared::default(),
            posted: Shared::default(),
        };
        for n in 0..2 {
            world.tasks.spawn(publisher(
                world.js.clone(),
                format!("p{n}"),
                world.stop.clone(),
                world.out.clone(),
            ));
            world.tasks.spawn(traffic::poster(
                format!("http://{}", world.wire(To::Door).address),
                format!("b{n}"),
                Rng(n),
                world.stop.clone(),
                world.posted.clone(),
            ));
        }
        world
    }

    /// The wire that leads there.
    pub fn wire(&self, to: To) -> &Toxic {
        let [broker, door, relay] = &self.wires;
        match to {
            To::Broker => broker,
            To::Door => door,
            To::Relay => relay,
        }
    }

    /// A wire is so for this long, and then well; the same time passes before anything else happens.
    pub async fn unwell(&mut self, to: To, mood: Mood, long: Duration) {
        let from = now_ns();
        self.wire(to).mood(mood);
        tokio::time::sleep(long).await;
        self.wire(to).mood(Mood::Well);
        if to == To::Relay {
            let (who, to) = (Who::Wire, now_ns());
            self.history.faults.push(Fault { who, from, to });
        }
        tokio::time::sleep(long).await;
    }

    /// Traffic ends; waits until all of it has arrived, or patience is at its end.
    pub async fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.history.out = snapshot(&self.out);
        self.history.posted = snapshot(&self.posted);
        let (mut log, mut tail) = (sink::LogTail::default(), Tail::of("FED_IN"));
        let dir = self.dir.path().join("sink");
        let end = Instant::now() + PATIENCE;
        loop {
            let lines = log.more(&dir);
            let taken: HashSet<&str> = lines
                .iter()
                .filter(|l| l.what == "arrival" && l.status == 200)
                .map(|l| l.id.as_str())
                .collect();
            if let Some(more) = tail.more(&self.js).await {
                let events = traffic::events(more.made, &more.messages);
                self.history.scan.extend(events);
                self.history.stream = more.made;
            }
            let there: HashSet<&str> = self.history.scan.iter().map(|e| e.id.as_str()).collect();
            let all = |list: &[Input], seen: &HashSet<&str>| {
                let mut ok = list.iter().filter(|i| i.class == Class::Ok);
                ok.all(|i| seen.contains(i.id.as_str()))
            };
            if all(&self.history.out, &taken) && all(&self.history.posted, &there)
                || Instant::now() > end
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // In good order: what is under way is seen to its end.
        self.bridge.stop().await;
        let lines = log.more(&dir);
        for line in lines.iter().filter(|l| l.what == "arrival") {
            let answered = |l: &&sink::Line| l.what == "answered" && l.token == line.token;
            self.history.arrivals.push(Arrival {
                id: line.id.clone(),
                sent: line.sent,
                t: line.t,
                answered: lines.iter().find(answered).map(|l| l.t),
                status: line.status,
            });
        }
        let forged = lines.iter().filter(|l| l.what == "forged");
        self.history.forged = forged.map(|l| l.note.clone()).collect();
        if let Some(more) = tail.more(&self.js).await {
            let events = traffic::events(more.made, &more.messages);
            self.history.scan.extend(events);
        }
        self.history.read.clone_from(&self.history.scan);
    }

    /// Broken promises, and whether there was traffic to break them by.
    pub fn found(&self) -> Vec<Violation> {
        let ok = |list: &[Input]| list.iter().filter(|i| i.class == Class::Ok).count();
        let (out, posted) = (ok(&self.history.out), ok(&self.history.posted));
        eprintln!(
            "{out} out, {} arrivals, {posted} in",
            self.history.arrivals.len()
        );
        assert!(
            out > 40 && posted > 10,
            "too little: {out} out, {posted} in"
        );
        checker::check(&self.history)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.sink.abort();
    }
}

/// Publishes over three keys until told to stop.
async fn publisher(js: jetstream::Context, name: String, stop: Stop, out: Shared<Input>) {
    let (mut rng, gate) = (Rng(1), Gate::default());
    let mut index = 0;
    while !stop.load(Ordering::Relaxed) {
        index += 1;
        let id = uam_client::message_id();
        let from = format!("{name}-{}::alpha.test", index % 3);
        let envelope = uam_client::envelope(&id, &from, "bob::beta.test", &format!("out {index}"));
        let mut input = Input {
            id,
            key: from,
            index,
            class: Class::Refused,
            payload: envelope.to_string(),
            doomed: false,
        };
        let subject = "fed.out.uam.beta_test.message";
        traffic::publish(&js, subject, &mut input, false, &mut rng, &stop, &gate).await;
        traffic::push(&out, input);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}
