//! Nothing is lost, nothing comes twice, and order holds, whatever is killed and whenever.
//!
//! The bridge, its nats-server and the receiver get SIGKILL at random points while messages go both
//! ways; then everything is healed and drained, and `support/checker.rs` judges by what the outside
//! saw. `DRAWBRIDGE_CRASH_ROUNDS` asks for more rounds, `DRAWBRIDGE_CRASH_SEED` for the same kills
//! again (the machine's own timing differs all the same).
//!
//! With the cargo feature `faults` the tests named `seeded_…` break one promise each on purpose and
//! expect the checker to say so: `cargo test --features faults --test crash seeded`.

mod support {
    pub mod bridge;
    pub mod checker;
    pub mod sink;
    pub mod traffic;
    pub mod uam_client;
}

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use support::bridge::{self, Bridge, Broker};
use support::checker::{self, Arrival, Class, Fault, History, Violation, Who};
use support::sink::{self, SinkOptions, SinkProcess};
use support::traffic::{self, Rng, Shared, Stop, snapshot};
use support::uam_client::now_ns;

/// A process of the crash test, not a test: see [`sink::main_if_asked`].
#[test]
#[ignore = "the receiver's process, started by the crash test itself"]
fn sink_main() {
    sink::main_if_asked();
}

struct World {
    dir: tempfile::TempDir,
    broker: Broker,
    bridge: Bridge,
    sink: SinkProcess,
    js: jetstream::Context,
    rng: Rng,
    history: History,
    out: Shared<checker::Input>,
    posted: Shared<checker::Input>,
    read: Shared<checker::Published>,
    reader: tokio::task::JoinHandle<()>,
    /// How long healing may take until what is still queued counts as lost.
    drain: Duration,
}

impl World {
    async fn new(seed: u64, fault: Option<&str>, drain: Duration) -> Self {
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
        let mut bridge = Bridge::new(
            &dir.path().join("bridge"),
            "alpha.test",
            Some(&broker.url()),
            // Long enough for every outage here, and so many requests are not hostile.
            "discovery = false\nadmin_api_key = \"a key of this test alone\"\nrelay_rate_limit = 10000000\nunproven_per_minute = 1000000\n\
             retry_delays = [\"100ms\", \"200ms\", \"400ms\", \"800ms\", \"1500ms\", \"3s\", \"6s\"]",
            &format!(
                "[outbound]\nbreaker_initial = \"100ms\"\nbreaker_max = \"500ms\"\nthrottle_pause = \"500ms\"\n{}",
                bridge::pin("beta.test", sink.options.address)
            ),
        );
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
            sink,
            js,
            rng: Rng(seed),
            history: History::default(),
            out: Shared::default(),
            posted: Shared::default(),
            read,
            reader,
            drain,
        };
        world.sink.start().await;
        world.bridge.start().await;
        world.allow("beta.test").await;
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

    async fn round(&mut self, round: usize) {
        let stop = Stop::default();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..3 {
            tasks.spawn(traffic::publisher(
                self.js.clone(),
                format!("r{round}p{n}"),
                Rng(self.rng.next()),
                stop.clone(),
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
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end {
            let pause = self.rng.pause(100, 1000);
            tokio::time::sleep(pause).await;
            self.trouble().await;
        }
        stop.store(true, Ordering::Relaxed);
        while tasks.join_next().await.is_some() {}
        sink::set_mode(&self.sink.options.dir, "ok");
        self.bridge.ready().await;
        self.drain().await;
    }

    /// One piece of bad luck, and the end of it.
    async fn trouble(&mut self) {
        let dice = self.rng.within(0, 100);
        let down = self.rng.pause(0, 900);
        let bridge = dice < 40 || (80..90).contains(&dice);
        let broker = (40..55).contains(&dice) || (85..90).contains(&dice);
        let receiver = (55..80).contains(&dice) || (80..85).contains(&dice);
        if !(bridge || broker || receiver) {
            let modes = ["status 503", "slow 120", "status 429 1", "ok"];
            let mode = modes[usize::try_from(self.rng.within(0, 4)).unwrap_or(0)];
            sink::set_mode(&self.sink.options.dir, mode);
            tokio::time::sleep(down).await;
            sink::set_mode(&self.sink.options.dir, "ok");
            return;
        }
        if bridge {
            self.kill(Who::Bridge);
        }
        if broker {
            self.kill(Who::Broker);
        }
        if receiver {
            self.kill(Who::Receiver);
        }
        tokio::time::sleep(down).await;
        if broker {
            self.broker.start().await;
        }
        if receiver {
            self.sink.start().await;
        }
        if bridge {
            self.bridge.spawn();
            // Now and then it is killed again before it is ready.
            if self.rng.chance(70) {
                self.bridge.ready().await;
            }
        }
    }

    fn kill(&mut self, who: Who) {
        let from = now_ns();
        match who {
            Who::Bridge => self.bridge.kill9(),
            Who::Broker => self.broker.kill9(),
            Who::Receiver => self.sink.kill9(),
        }
        self.history.faults.push(Fault {
            who,
            from,
            to: now_ns(),
        });
    }

    /// Waits until every acknowledged message has come to its end, or patience has.
    async fn drain(&mut self) {
        let end = Instant::now() + self.drain;
        let out = snapshot(&self.out);
        loop {
            let arrived: HashSet<String> = sink::read_log(&self.sink.options.dir)
                .into_iter()
                .filter(|l| l.what == "arrival" && l.status == 200)
                .map(|l| l.id)
                .collect();
            let dead: HashSet<String> = traffic::dead(&self.js)
                .await
                .into_iter()
                .map(|d| d.id)
                .collect();
            let left = out
                .iter()
                .filter(|i| {
                    i.class == Class::Ok && !arrived.contains(&i.id) && !dead.contains(&i.id)
                })
                .count();
            if left == 0 || Instant::now() > end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // What was still on its way when the last answer came.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// Stops the bridge in an orderly way, then reads what there is to see.
    async fn judge(&mut self) -> Vec<Violation> {
        self.bridge.stop().await;
        let mut arrivals: Vec<Arrival> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for line in sink::read_log(&self.sink.options.dir) {
            match line.what.as_str() {
                "arrival" => {
                    places.insert(line.token, arrivals.len());
                    arrivals.push(Arrival {
                        id: line.id,
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
        self.history.arrivals = arrivals;
        self.history.out = snapshot(&self.out);
        self.history.posted = snapshot(&self.posted);
        self.history.dead = traffic::dead(&self.js).await;
        let from = self.history.scan.last().map_or(1, |p| p.seq + 1);
        self.history
            .scan
            .extend(traffic::scan(&self.js, from).await);
        let last = self.history.scan.last().map_or(0, |p| p.seq);
        let end = Instant::now() + Duration::from_secs(30);
        while !snapshot(&self.read).iter().any(|p| p.seq >= last)
            && last > 0
            && Instant::now() < end
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // An unacknowledged one may still be waiting for its redelivery behind the last.
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.history.read = snapshot(&self.read);
        checker::check(&self.history)
    }

    /// Acknowledged messages so far: out, in.
    fn accepted(&self) -> (usize, usize) {
        let ok = |list: &Shared<checker::Input>| {
            snapshot(list)
                .iter()
                .filter(|i| i.class == Class::Ok)
                .count()
        };
        (ok(&self.out), ok(&self.posted))
    }

    fn summary(&self) -> String {
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
            "out: {}; {} arrivals, {} of them repeats or retries, {} dead letters; in: {}; {} on fed.in; killed: bridge {}, broker {}, receiver {}",
            counts(&h.out),
            h.arrivals.len(),
            checker::repeats(h),
            h.dead.len(),
            counts(&h.posted),
            h.scan.len(),
            killed(Who::Bridge),
            killed(Who::Broker),
            killed(Who::Receiver)
        )
    }

    /// Everything the outside saw of one id, for whoever has to find out.
    fn story(&self, id: &str) -> String {
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
            lines.push(format!("  dead: {:?}", d.reason));
        }
        for p in h.scan.iter().filter(|p| p.id == id) {
            lines.push(format!("  fed.in seq {} as {}", p.seq, p.msg_id));
        }
        lines.join("\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Runs up to `rounds` rounds; stops at the first that breaks a promise.
async fn run(rounds: usize, seed: u64, fault: Option<&str>, drain: Duration) -> Result<(), String> {
    let mut world = World::new(seed, fault, drain).await;
    for round in 1..=rounds {
        let before = world.accepted();
        world.round(round).await;
        let now = world.accepted();
        assert!(
            now.0 > before.0 + 50 && now.1 > before.1 + 20,
            "too little traffic to prove anything: {before:?} to {now:?}"
        );
        let found = world.judge().await;
        eprintln!(
            "round {round} of {rounds}, seed {seed}: {}",
            world.summary()
        );
        if !found.is_empty() {
            let mut text = format!(
                "{} promises broken, seed {seed}, {}\n",
                found.len(),
                world.summary()
            );
            for violation in found.iter().take(8) {
                let id = match violation {
                    Violation::OutOfOrder { id, .. }
                    | Violation::OutLost(id)
                    | Violation::DeadWithoutReason(id)
                    | Violation::DeadAfterArrival(id)
                    | Violation::NotDead(id)
                    | Violation::OutPhantom(id)
                    | Violation::OutRepeated(id)
                    | Violation::InLost(id)
                    | Violation::InRepeated(id)
                    | Violation::InPhantom(id)
                    | Violation::InChanged(id)
                    | Violation::ReaderDiffers(id) => id.as_str(),
                    Violation::Forged(_) => "",
                };
                text.push_str(&format!("{violation}\n{}\n", world.story(id)));
            }
            if std::env::var_os("DRAWBRIDGE_CRASH_KEEP").is_some() {
                world.dir.disable_cleanup(true);
                text.push_str(&format!("files: {}\n", world.dir.path().display()));
            }
            return Err(text);
        }
        if round < rounds {
            world.bridge.start().await;
        }
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_repeated_when_anything_is_killed_at_any_moment() {
    let rounds = number("DRAWBRIDGE_CRASH_ROUNDS").unwrap_or(3);
    let seed = number("DRAWBRIDGE_CRASH_SEED").unwrap_or_else(now_ns);
    eprintln!("seed {seed}: DRAWBRIDGE_CRASH_SEED={seed} asks for it again");
    let rounds = usize::try_from(rounds).unwrap_or(usize::MAX);
    if let Err(text) = run(rounds, seed, None, Duration::from_secs(90)).await {
        panic!("{text}");
    }
}

/// The faults of `src/faults.rs`: each has to be noticed, by the violation that it is.
#[cfg(feature = "faults")]
mod seeded {
    use super::{Duration, now_ns, number, run};

    /// One world at a time: the machine's load is part of the timing.
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    async fn noticed(fault: &str, drain: u64, by: &str) {
        let _one = ONE.lock().await;
        let seed = number("DRAWBRIDGE_CRASH_SEED").unwrap_or_else(now_ns);
        let found = run(6, seed, Some(fault), Duration::from_secs(drain)).await;
        let text = found.expect_err("the fault was not noticed in 6 rounds");
        eprintln!("{fault} noticed: {text}");
        assert!(
            text.contains(by),
            "{fault} was noticed, but not as {by}: {text}"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_acknowledging_before_the_commit_loses_messages() {
        noticed("ack_before_commit", 45, "OutLost").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_shuffled_keys_are_out_of_order() {
        noticed("shuffle_keys", 45, "OutOfOrder").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_missing_deduplication_repeats_events() {
        noticed("dedup_off", 45, "InRepeated").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn seeded_a_consumer_that_is_not_renewed_breaks_the_order() {
        noticed("stale_consumer", 60, "OutOfOrder").await;
    }
}
