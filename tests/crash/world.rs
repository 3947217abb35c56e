//! The processes of a run, the traffic through them, and what the outside saw of it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::ledger::Ledger;
use crate::para::{self, ParaSide};
use crate::points::{Reached, Share};
use crate::seen::Seen;
use crate::support::bridge::{self, Bridge, Broker};
use crate::support::checker::{self, Arrival, Class, History, Violation, Who};
use crate::support::postgres;
use crate::support::sink::{self, SinkOptions, SinkProcess};
use crate::support::traffic::{self, Gate, Rng, Shared, Stop, snapshot};
use crate::volt::{self, VoltSide};
use crate::wires::{self, Wires};
use async_nats::jetstream;

/// How long messages keep coming in one round.
const TRAFFIC: Duration = Duration::from_secs(6);

/// A bridge, what is around it, and what was seen.
pub struct World {
    pub dir: tempfile::TempDir,
    pub broker: Broker,
    pub bridge: Bridge,
    pub ledger: Ledger,
    pub sink: SinkProcess,
    pub volt: VoltSide,
    pub para: ParaSide,
    pub wires: Wires,
    pub js: jetstream::Context,
    pub rng: Rng,
    pub gate: Gate,
    pub history: History,
    /// What went wrong so far: when it ended, what, for how long.
    pub luck: Vec<String>,
    /// There is time for misfortunes that last.
    pub long: bool,
    /// Moments at which the bridge ended itself.
    pub reached: Reached,
    pub seen: Seen,
    out: Shared<checker::Input>,
    posted: Shared<checker::Input>,
    read: Shared<checker::Published>,
    reader: tokio::task::JoinHandle<()>,
    /// How long healing may take until what is still queued counts as lost.
    drain: Duration,
}

impl World {
    /// Everything started. `server`: the PostgreSQL to use; `None`: SQLite.
    pub async fn new(
        seed: u64,
        server: Option<postgres::Server>,
        fault: Option<&str>,
        drain: Duration,
    ) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("drawbridge-crash-")
            .tempdir()
            .expect("a temporary folder");
        let binary =
            drawbridge::bus::find::server_binary(None, &drawbridge::bus::find::default_cache_dir())
                .await
                .expect("a nats-server");
        let mut broker = Broker::new(binary, &dir.path().join("broker"));
        broker.start().await;
        let sink = SinkProcess::new(SinkOptions {
            address: bridge::free_address(),
            domain: "beta.test".into(),
            trusts: "alpha.test".into(),
            dir: dir.path().join("sink"),
        });
        let [pushed, fetching, node, door] = std::array::from_fn(|_| wires::address());
        let store = server.as_ref().map_or(String::new(), |server| {
            format!("[store]\nurl = \"{}\"\n", server.url())
        });
        let public = wires::address();
        let wires = Wires::lay(broker.address(), (door, public), sink.options.address, node).await;
        let mut bridge = Bridge::new(
            &dir.path().join("bridge"),
            "alpha.test",
            Some(&format!("nats://{}", wires.broker.address)),
            // Long enough for every outage here, and so many requests are not hostile.
            "discovery = false\nadmin_api_key = \"a key of this test alone\"\nrelay_rate_limit = 10000000\nunproven_per_minute = 1000000\n\
             retry_delays = [\"100ms\", \"200ms\", \"400ms\", \"800ms\", \"1500ms\", \"3s\"]",
            &format!(
                "{store}[outbound]\nbreaker_initial = \"100ms\"\nbreaker_max = \"500ms\"\nthrottle_pause = \"500ms\"\n{}{}{}",
                volt::tables(pushed, fetching),
                para::tables(wires.node.address),
                bridge::pin("beta.test", wires.relay.address)
            ),
        );
        let clock = dir.path().join("clock");
        bridge.env("DRAWBRIDGE_CLOCK_FILE", &clock.display().to_string());
        bridge.env("DRAWBRIDGE_PUBLIC__ADDRESS", &public.to_string());
        bridge.public = public;
        volt::own_url(&mut bridge, &wires.door_url());
        para::own_url(&mut bridge, &wires.door_url());
        let volt = VoltSide::start(wires.door.address, pushed, fetching, seed).await;
        let para = ParaSide::start(node, seed).await;
        let ledger = match server {
            Some(server) => Ledger::Postgres(server),
            None => Ledger::Sqlite(dir.path().join("bridge").join("drawbridge.db")),
        };
        // A write beyond the limit of `limit_files` shall fail, not end the process.
        bridge.under(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
        if let Some(fault) = fault {
            bridge.env("DRAWBRIDGE_FAULT", fault);
        }
        let mut js = jetstream::new(bridge::connect(&broker.url()).await);
        js.set_timeout(Duration::from_secs(2));
        let read = Shared::default();
        let reader = tokio::spawn(traffic::reader(js.clone(), read.clone()));
        let mut world = Self {
            dir,
            broker,
            bridge,
            ledger,
            sink,
            volt,
            para,
            wires,
            js,
            rng: Rng(seed),
            gate: Gate::default(),
            history: History::default(),
            luck: Vec::new(),
            long: false,
            reached: Reached::default(),
            seen: Seen::default(),
            out: Shared::default(),
            posted: Shared::default(),
            read,
            reader,
            drain,
        };
        world.sink.start().await;
        world.bridge.start().await;
        world.allow("beta.test").await;
        world.volt.connect(&world.bridge).await;
        let broker = world.broker.url();
        let door = world.wires.door_url();
        world.para.connect(&door, &broker).await;
        world
    }

    /// The receiver's death makes the sender's key unreachable, which costs reputation: an operator
    /// who knows the relay lists it.
    async fn allow(&self, relay: &str) {
        let answer = bridge::client()
            .post(format!(
                "{}/api/v1/admin/relay-allowlist",
                self.bridge.public_url()
            ))
            .header("x-admin-key", "a key of this test alone")
            .header("content-type", "application/json")
            .body(format!("{{\"domain\":\"{relay}\"}}"))
            .send()
            .await
            .expect("an answer of the admin route");
        assert_eq!(answer.status(), 201);
    }

    /// The bridge's clock is ahead of the world's by so many milliseconds from now on.
    pub fn set_clock(&self, ahead_ms: i64) {
        let next = self.dir.path().join("clock.next");
        let file = self.dir.path().join("clock");
        let written = std::fs::write(&next, ahead_ms.to_string());
        written
            .and_then(|()| std::fs::rename(next, file))
            .expect("the test's folder is writable");
    }

    /// The broker has its older files: whoever reads it begins anew.
    pub fn rolled_back(&mut self) {
        self.seen.rolled_back();
        self.reader.abort();
        let (js, read) = (self.js.clone(), self.read.clone());
        self.reader = tokio::spawn(traffic::reader_of(js, read, self.seen.history));
    }

    /// Traffic and trouble, then healing. `points`: where the bridge ends itself, first of all.
    pub async fn round(&mut self, round: usize, points: Option<Share>) {
        let stop = Stop::default();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..3 {
            tasks.spawn(traffic::publisher(
                self.js.clone(),
                format!("r{round}p{n}"),
                Rng(self.rng.next()),
                stop.clone(),
                self.gate.clone(),
                self.out.clone(),
                true,
            ));
            tasks.spawn(traffic::poster(
                self.wires.door_url(),
                format!("r{round}b{n}"),
                Rng(self.rng.next()),
                stop.clone(),
                self.posted.clone(),
            ));
        }
        self.volt.round(
            round,
            &mut self.rng,
            &self.js,
            &stop,
            &self.gate,
            &self.out,
            &mut tasks,
        );
        self.para.round(
            round,
            &mut self.rng,
            &self.js,
            (&stop, &self.gate),
            &self.out,
            &mut tasks,
        );
        if let Some(share) = points {
            self.points(share).await;
        }
        let end = Instant::now() + TRAFFIC;
        while Instant::now() < end {
            let pause = self.rng.pause(50, 700);
            tokio::time::sleep(pause).await;
            self.trouble().await;
        }
        stop.store(true, Ordering::Relaxed);
        while tasks.join_next().await.is_some() {}
        sink::set_mode(&self.sink.options.dir, "ok");
        self.volt.pushed.mood(0);
        self.para.node.mood(0);
        self.wires.heal();
        self.set_clock(0);
        self.bridge.ready().await;
        self.drain().await;
    }

    /// Waits until every acknowledged message has come to its end, or for so long nothing more has.
    /// A stream that lost what it held is found at the latest by the look that the bridge takes
    /// every 30 seconds.
    async fn drain(&mut self) {
        let out = snapshot(&self.out);
        let begun = Instant::now();
        let (mut least, mut moved) = (usize::MAX, begun);
        loop {
            let left = self.left(&out).await;
            if left < least {
                (least, moved) = (left, Instant::now());
            }
            if left == 0 || moved.elapsed() > self.drain || begun.elapsed() > 4 * self.drain {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // What was still on its way when the last answer came.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// How much of what was acknowledged, either way, has not come to its end.
    async fn left(&mut self, out: &[checker::Input]) -> usize {
        let found = self.seen.look(&self.js).await;
        let mut arrived = self.volt.taken();
        arrived.extend(self.para.taken());
        let log = self.seen.log(&self.sink.options.dir);
        let taken = log
            .iter()
            .filter(|l| l.what == "arrival" && l.status == 200);
        arrived.extend(taken.map(|l| l.id.clone()));
        arrived.extend(self.seen.dead_letters.iter().map(|d| d.id.clone()));
        arrived.extend(self.history.deleted.iter().cloned());
        let there: HashSet<&str> = match found {
            true => self.seen.events.iter().map(|e| e.id.as_str()).collect(),
            false => HashSet::new(),
        };
        let ok = |inputs: &[checker::Input], has: &dyn Fn(&str) -> bool| {
            let ok = inputs.iter().filter(|i| i.class == Class::Ok);
            ok.filter(|i| !has(&i.id)).count()
        };
        ok(out, &|id| arrived.contains(id))
            + ok(&self.all_posted(), &|id| there.contains(id))
            + self.volt.waiting()
    }

    fn all_posted(&self) -> Vec<checker::Input> {
        let mut posted = snapshot(&self.posted);
        posted.extend(self.volt.posted());
        posted.extend(self.para.posted());
        posted
    }

    /// Stops the bridge in an orderly way, then reads what there is to see.
    pub async fn judge(&mut self) -> Vec<Violation> {
        self.bridge.stop().await;
        let mut arrivals: Vec<Arrival> = Vec::new();
        let mut places = HashMap::new();
        for line in self.seen.log(&self.sink.options.dir).to_vec() {
            match line.what.as_str() {
                "arrival" => {
                    places.insert(line.token, arrivals.len());
                    arrivals.push(Arrival {
                        id: line.id,
                        sent: sent_at(line.sent, line.t),
                        t: line.t,
                        answered: None,
                        status: line.status,
                    });
                }
                "answered" => {
                    if let Some(&at) = places.get(&line.token) {
                        arrivals[at].answered = Some(line.t);
                    }
                }
                _ => self.history.forged.push(line.note),
            }
        }
        arrivals.extend(self.volt.arrivals());
        arrivals.extend(self.para.arrivals());
        self.history.arrivals = arrivals;
        self.history.forged.extend(self.volt.complaints());
        self.history.forged.extend(self.para.complaints());
        self.history.out = snapshot(&self.out);
        self.history.posted = self.all_posted();
        self.seen.look(&self.js).await;
        self.history.dead.clone_from(&self.seen.dead_letters);
        self.history.stream = self.seen.made;
        let scan = self.seen.events.iter().cloned();
        self.history.scan = scan.map(as_sent).collect();
        let last = self.history.scan.last().map_or(0, |p| p.seq);
        let end = Instant::now() + Duration::from_secs(30);
        let stream = self.history.stream;
        while !snapshot(&self.read)
            .iter()
            .any(|p| p.stream == stream && p.seq >= last)
            && last > 0
            && Instant::now() < end
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // An unacknowledged one may still be waiting for its redelivery behind the last.
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.history.read = snapshot(&self.read).into_iter().map(as_sent).collect();
        checker::check(&self.history)
    }

    /// Acknowledged messages so far: out, in.
    pub fn accepted(&self) -> (usize, usize) {
        let ok = |list: &Shared<checker::Input>| {
            snapshot(list)
                .iter()
                .filter(|i| i.class == Class::Ok)
                .count()
        };
        (ok(&self.out), ok(&self.posted))
    }

    pub fn summary(&self) -> String {
        let h = &self.history;
        let class =
            |inputs: &[checker::Input], class| inputs.iter().filter(|i| i.class == class).count();
        let killed = |who| h.faults.iter().filter(|f| f.who == who).count();
        let counts = |i: &[checker::Input]| {
            format!(
                "{} ok, {} unknown, {} refused",
                class(i, Class::Ok),
                class(i, Class::Unknown),
                class(i, Class::Refused)
            )
        };
        format!(
            "out: {}; {} arrivals, {} of them repeats or retries, {} dead letters; in: {}; {} on fed.in; killed: bridge {}, broker {}, receiver {}; rolled back {}; {}; {}; {}",
            counts(&h.out),
            h.arrivals.len(),
            checker::repeats(h),
            h.dead.len(),
            counts(&h.posted),
            h.scan.len(),
            killed(Who::Bridge),
            killed(Who::Broker),
            killed(Who::Receiver),
            self.seen.history,
            self.reached.summary(),
            self.volt.summary(),
            self.para.summary()
        )
    }

    /// Everything the outside saw of one id, for whoever has to find out.
    pub fn story(&self, id: &str) -> String {
        let h = &self.history;
        let mut lines = Vec::new();
        for input in h.out.iter().chain(&h.posted).filter(|i| i.id == id) {
            lines.push(format!(
                "  {:?} key {:?} index {} doomed {}",
                input.class, input.key, input.index, input.doomed
            ));
        }
        for a in h.arrivals.iter().filter(|a| a.id == id) {
            lines.push(format!(
                "  arrived {} answered {:?} status {}",
                a.t, a.answered, a.status
            ));
            for f in &h.faults {
                if f.from.abs_diff(a.t) < 2_000_000_000 {
                    lines.push(format!("    {:?} killed {}..{}", f.who, f.from, f.to));
                }
            }
        }
        for d in h.dead.iter().filter(|d| d.id == id) {
            lines.push(format!("  dead: {} {:?}", d.code, d.reason));
        }
        for p in h.scan.iter().filter(|p| p.id == id) {
            lines.push(format!("  fed.in seq {} as {}", p.seq, p.msg_id));
        }
        lines.join("\n")
    }
}

/// When an attempt was sent, by the clock of its sender; when that clock has jumped, when it arrived.
pub fn sent_at(signed: u64, arrived: u64) -> u64 {
    const JUMPED_NS: u64 = 8_000_000_000;
    match arrived.checked_sub(signed) {
        Some(ago) if ago <= JUMPED_NS => signed,
        _ => arrived,
    }
}

/// The event as its sender knows it.
fn as_sent(event: checker::Published) -> checker::Published {
    para::as_sent(volt::as_sent(event))
}

impl Drop for World {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
