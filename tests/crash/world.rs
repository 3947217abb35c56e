//! The processes of a run, the traffic through them, and what the outside saw of it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use sqlx::Connection as _;

use crate::para::{self, ParaSide};
use crate::support::bridge::{self, Bridge, Broker};
use crate::support::checker::{self, Arrival, Class, History, Violation, Who};
use crate::support::postgres;
use crate::support::sink::{self, SinkOptions, SinkProcess};
use crate::support::traffic::{self, Gate, Rng, Shared, Stop, snapshot};
use crate::volt::{self, VoltSide};

/// How long messages keep coming in one round.
const TRAFFIC: Duration = Duration::from_secs(6);

/// The bridge's database as the test meddles with it.
pub enum Ledger {
    /// The file.
    Sqlite(PathBuf),
    /// A server of its own.
    Postgres(postgres::Server),
}

/// A lock that somebody holds until it is dropped.
pub enum Lock {
    Sqlite(#[allow(dead_code, reason = "dropping it ends the lock")] sqlx::SqliteConnection),
    Postgres(#[allow(dead_code, reason = "dropping it ends the lock")] sqlx::PgConnection),
}

impl Ledger {
    /// Locks what the bridge writes, as a backup tool or a person with a shell might.
    pub async fn lock(&self) -> Option<Lock> {
        match self {
            Self::Sqlite(file) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new()
                    .filename(file)
                    .busy_timeout(Duration::from_secs(2));
                let mut conn = sqlx::SqliteConnection::connect_with(&options).await.ok()?;
                sqlx::query("BEGIN IMMEDIATE")
                    .execute(&mut conn)
                    .await
                    .ok()?;
                Some(Lock::Sqlite(conn))
            }
            Self::Postgres(server) => {
                let mut conn = sqlx::PgConnection::connect(&server.url()).await.ok()?;
                for text in [
                    "BEGIN",
                    "SET LOCAL lock_timeout = '2s'",
                    "LOCK TABLE federation_queue, federation_events IN ACCESS EXCLUSIVE MODE",
                ] {
                    sqlx::query(text).execute(&mut conn).await.ok()?;
                }
                Some(Lock::Postgres(conn))
            }
        }
    }

    /// SIGKILL to the server.
    pub async fn kill9(&mut self) {
        if let Self::Postgres(server) = self {
            server.kill9().await;
        }
    }

    /// Up again, with what it had.
    pub async fn start(&mut self) {
        if let Self::Postgres(server) = self {
            server.start().await;
        }
    }
}

/// A bridge, what is around it, and what was seen.
pub struct World {
    pub dir: tempfile::TempDir,
    pub broker: Broker,
    pub bridge: Bridge,
    pub ledger: Ledger,
    pub sink: SinkProcess,
    pub volt: VoltSide,
    pub para: ParaSide,
    pub js: jetstream::Context,
    pub rng: Rng,
    pub gate: Gate,
    pub history: History,
    /// What went wrong so far: when it ended, what, for how long.
    pub luck: Vec<String>,
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
        let (pushed, fetching) = (bridge::free_address(), bridge::free_address());
        let node = bridge::free_address();
        let store = server.as_ref().map_or(String::new(), |server| {
            format!("[store]\nurl = \"{}\"\n", server.url())
        });
        let mut bridge = Bridge::new(
            &dir.path().join("bridge"),
            "alpha.test",
            Some(&broker.url()),
            // Long enough for every outage here, and so many requests are not hostile.
            "discovery = false\nadmin_api_key = \"a key of this test alone\"\nrelay_rate_limit = 10000000\nunproven_per_minute = 1000000\n\
             retry_delays = [\"100ms\", \"200ms\", \"400ms\", \"800ms\", \"1500ms\", \"3s\"]",
            &format!(
                "{store}[outbound]\nbreaker_initial = \"100ms\"\nbreaker_max = \"500ms\"\nthrottle_pause = \"500ms\"\n{}{}{}",
                volt::tables(pushed, fetching),
                para::tables(node),
                bridge::pin("beta.test", sink.options.address)
            ),
        );
        volt::own_url(&mut bridge);
        para::own_url(&mut bridge);
        let volt = VoltSide::start(&bridge, pushed, fetching, seed).await;
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
            js,
            rng: Rng(seed),
            gate: Gate::default(),
            history: History::default(),
            luck: Vec::new(),
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
        world.para.connect(&world.bridge, &broker).await;
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

    /// Traffic and trouble, then healing.
    pub async fn round(&mut self, round: usize) {
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
            ));
            tasks.spawn(traffic::poster(
                self.bridge.public_url(),
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
        self.bridge.ready().await;
        self.drain().await;
    }

    /// Waits until every acknowledged message has come to its end, or patience has.
    async fn drain(&mut self) {
        let end = Instant::now() + self.drain;
        let out = snapshot(&self.out);
        loop {
            let mut arrived: HashSet<String> = sink::read_log(&self.sink.options.dir)
                .into_iter()
                .filter(|l| l.what == "arrival" && l.status == 200)
                .map(|l| l.id)
                .collect();
            arrived.extend(self.volt.taken());
            arrived.extend(self.para.taken());
            let dead: HashSet<String> = traffic::dead(&self.js)
                .await
                .into_iter()
                .map(|d| d.id)
                .collect();
            let left = out
                .iter()
                .filter(|i| {
                    i.class == Class::Ok
                        && !arrived.contains(&i.id)
                        && !dead.contains(&i.id)
                        && !self.history.deleted.contains(&i.id)
                })
                .count();
            if (left == 0 && self.volt.is_idle()) || Instant::now() > end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // A stream that lost what it held is found at the latest by the look that the bridge takes
        // every 30 seconds.
        while !self.published().await && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // What was still on its way when the last answer came.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// Whether all events that were answered 200 are on `fed.in`.
    async fn published(&self) -> bool {
        let (_, scan) = traffic::scan(&self.js, 1).await;
        let ids: HashSet<String> = scan.into_iter().map(|event| event.id).collect();
        let posted = self.all_posted();
        let mut answered = posted.iter().filter(|i| i.class == Class::Ok);
        answered.all(|i| ids.contains(&i.id))
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
        for line in sink::read_log(&self.sink.options.dir) {
            match line.what.as_str() {
                "arrival" => {
                    places.insert(line.token, arrivals.len());
                    arrivals.push(Arrival {
                        id: line.id,
                        sent: line.sent,
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
        self.history.dead = traffic::dead(&self.js).await;
        (self.history.stream, self.history.scan) = traffic::scan(&self.js, 1).await;
        let scan = std::mem::take(&mut self.history.scan);
        self.history.scan = scan.into_iter().map(as_sent).collect();
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
            "out: {}; {} arrivals, {} of them repeats or retries, {} dead letters; in: {}; {} on fed.in; killed: bridge {}, broker {}, receiver {}; {}; {}",
            counts(&h.out),
            h.arrivals.len(),
            checker::repeats(h),
            h.dead.len(),
            counts(&h.posted),
            h.scan.len(),
            killed(Who::Bridge),
            killed(Who::Broker),
            killed(Who::Receiver),
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

/// The event as its sender knows it.
fn as_sent(event: checker::Published) -> checker::Published {
    para::as_sent(volt::as_sent(event))
}

impl Drop for World {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
