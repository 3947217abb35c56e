//! The cluster, one bridge or several instances on it, a peer, the traffic between them and what the
//! outside saw.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use tokio::task::JoinSet;

use crate::support::bridge::{self, Bridge};
use crate::support::checker::{self, Arrival, Class, Fault, History, Who};
use crate::support::cluster::Cluster;
use crate::support::postgres;
use crate::support::sink::{self, SinkOptions, SinkProcess};
use crate::support::traffic::{self, Gate, Rng, Shared, Stop, snapshot};
use crate::support::uam_client::now_ns;

/// Streams whose loss would break a promise.
const STREAMS: [&str; 4] = ["FED_OUT", "FED_IN", "FED_HELD", "FED_DEAD"];

/// How long both directions may stand still when a server is lost: an election, and a few seconds
/// until a silent connection counts as lost.
const STANDSTILL: Duration = Duration::from_secs(60);

/// Everything of one test.
pub struct World {
    pub cluster: Cluster,
    pub bridges: Vec<Bridge>,
    sink: SinkProcess,
    js: jetstream::Context,
    seed: u64,
    stop: Stop,
    out: Shared<checker::Input>,
    posted: Shared<checker::Input>,
    read: Shared<checker::Published>,
    reader: tokio::task::JoinHandle<()>,
    faults: Vec<Fault>,
    dir: tempfile::TempDir,
    _database: Option<postgres::Server>,
}

impl World {
    /// A cluster that has found itself, a bridge that is ready, and a peer that it may send to.
    pub async fn start() -> Self {
        Self::of(1, None).await
    }

    /// The same with several instances that share a database.
    pub async fn sharing(instances: usize, database: postgres::Server) -> Self {
        Self::of(instances, Some(database)).await
    }

    async fn of(instances: usize, database: Option<postgres::Server>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("drawbridge-cluster-")
            .tempdir()
            .expect("a temporary folder");
        let mut cluster = Cluster::new(&dir.path().join("nats"));
        cluster.start().await;
        let mut sink = SinkProcess::new(SinkOptions {
            address: bridge::free_address(),
            domain: "beta.test".into(),
            trusts: "alpha.test".into(),
            dir: dir.path().join("sink"),
        });
        sink.start().await;
        // What is for nobody dies when its peer is tried again: that must come well before the end.
        let patience = "[outbound]\nbreaker_initial = \"100ms\"\nbreaker_max = \"500ms\"\n";
        let store = database.as_ref().map_or(String::new(), |server| {
            format!("[store]\nurl = \"{}\"\nshared = true\n", server.url())
        });
        let mut bridges = Vec::new();
        for n in 0..instances {
            let mut bridge = Bridge::new(
                &dir.path().join(format!("bridge{n}")),
                "alpha.test",
                Some(&cluster.urls()),
                "discovery = false\nadmin_api_key = \"a key of this test alone\"\nrelay_rate_limit = 10000000\nunproven_per_minute = 1000000\n\
                 retry_delays = [\"100ms\", \"200ms\", \"400ms\", \"800ms\", \"1500ms\", \"3s\"]",
                &format!(
                    "{patience}{store}{}",
                    bridge::pin("beta.test", sink.options.address)
                ),
            );
            bridge.env("DRAWBRIDGE_NATS__REPLICAS", "3");
            bridge.start().await;
            bridges.push(bridge);
        }
        let mut js = jetstream::new(bridge::connect(&cluster.urls()).await);
        js.set_timeout(Duration::from_secs(2));
        cluster.whole(&js, &STREAMS).await;
        let read = Shared::default();
        let reader = tokio::spawn(traffic::reader(js.clone(), read.clone()));
        let seed = std::env::var("DRAWBRIDGE_CLUSTER_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(now_ns);
        eprintln!("DRAWBRIDGE_CLUSTER_SEED={seed} asks for the same traffic again");
        Self {
            cluster,
            bridges,
            sink,
            js,
            seed,
            stop: Stop::default(),
            out: Shared::default(),
            posted: Shared::default(),
            read,
            reader,
            faults: Vec::new(),
            dir,
            _database: database,
        }
    }

    /// The verdict that the bridge tells of its broker.
    pub async fn durability(&self) -> String {
        let answer = bridge::client()
            .get(format!("{}/readyz", self.bridges[0].admin_url()))
            .send()
            .await
            .expect("an answer of /readyz");
        let text = answer.text().await.expect("its body");
        let body: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let verdict = body.pointer("/durability/verdict");
        verdict
            .and_then(|v| v.as_str())
            .unwrap_or_else(|| panic!("no verdict in {body}"))
            .to_owned()
    }

    /// Backends and a remote relay that send until they are told to stop.
    pub fn begin_traffic(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let mut rng = Rng(self.seed);
        for n in 0..2 {
            tasks.spawn(traffic::publisher(
                self.js.clone(),
                format!("p{n}"),
                Rng(rng.next()),
                self.stop.clone(),
                Gate::default(),
                self.out.clone(),
                // Instances send what is for `_to` on to its peer's part, behind what is there already.
                self.bridges.len() == 1,
            ));
        }
        for n in 0..3 {
            tasks.spawn(traffic::poster(
                self.bridges[n % self.bridges.len()].public_url(),
                format!("b{n}"),
                Rng(rng.next()),
                self.stop.clone(),
                self.posted.clone(),
            ));
        }
        tasks
    }

    /// Who leads a stream.
    pub async fn leader(&self, stream: &str) -> usize {
        self.cluster.leader(&self.js, stream).await
    }

    /// A server that leads neither this stream nor is the only one left.
    pub async fn follower(&self, stream: &str) -> usize {
        (self.leader(stream).await + 1) % 3
    }

    /// One server is killed, both directions must flow without it, then it comes back and catches up.
    pub async fn without(&mut self, node: usize, down: Duration) {
        let begun = Instant::now();
        self.cluster.kill9(node);
        self.flows(&format!("without n{node}")).await;
        tokio::time::sleep(down.saturating_sub(begun.elapsed())).await;
        self.cluster.bring(node).await;
        self.cluster.whole(&self.js, &STREAMS).await;
        self.flows(&format!("with n{node} again")).await;
    }

    /// One server stands still, both directions must flow without it, then it goes on as if nothing
    /// had been.
    pub async fn frozen(&mut self, node: usize, down: Duration) {
        let begun = Instant::now();
        self.cluster.freeze(node);
        self.flows(&format!("with n{node} frozen")).await;
        tokio::time::sleep(down.saturating_sub(begun.elapsed())).await;
        self.cluster.thaw(node);
        self.cluster.whole(&self.js, &STREAMS).await;
        self.flows(&format!("with n{node} thawed")).await;
    }

    /// What is in flight at one instance now may come a second time.
    fn ambiguous_now(&mut self) {
        let now = now_ns();
        self.faults.push(Fault {
            who: Who::Bridge,
            from: now,
            to: now,
        });
    }

    /// An instance and a server are killed together, the others must serve everybody, then both come
    /// back.
    pub async fn without_both(&mut self, instance: usize, node: usize) {
        self.ambiguous_now();
        self.bridges[instance].kill9();
        self.cluster.kill9(node);
        self.flows(&format!("without n{node} and instance {instance}"))
            .await;
        self.cluster.bring(node).await;
        self.cluster.whole(&self.js, &STREAMS).await;
        self.bridges[instance].start().await;
        self.flows("with both again").await;
    }

    /// An instance stands still for longer than its leases, the others must serve everybody, then it
    /// goes on and knows of nothing.
    pub async fn frozen_instance(&mut self, instance: usize, down: Duration) {
        self.ambiguous_now();
        let begun = Instant::now();
        self.bridges[instance].signal("STOP");
        self.flows(&format!("with instance {instance} frozen"))
            .await;
        tokio::time::sleep(down.saturating_sub(begun.elapsed())).await;
        self.bridges[instance].signal("CONT");
        self.bridges[instance].ready().await;
        self.flows(&format!("with instance {instance} thawed"))
            .await;
    }

    /// Waits until messages that were handed over from now on come out at both ends.
    pub async fn flows(&self, when: &str) {
        let begun = Instant::now();
        let (out, posted) = (snapshot(&self.out).len(), snapshot(&self.posted).len());
        loop {
            let arrived = self.arrived();
            let outward = snapshot(&self.out)
                .iter()
                .skip(out)
                .filter(|i| i.class == Class::Ok && arrived.contains(&i.id))
                .count();
            let read: HashSet<_> = snapshot(&self.read).into_iter().map(|p| p.id).collect();
            let inward = snapshot(&self.posted)
                .iter()
                .skip(posted)
                .filter(|i| i.class == Class::Ok && read.contains(&i.id))
                .count();
            if outward >= 10 && inward >= 10 {
                eprintln!("{when}: both ways flow after {:?}", begun.elapsed());
                return;
            }
            assert!(
                begun.elapsed() < STANDSTILL,
                "{when}: {outward} out and {inward} in within {STANDSTILL:?}\n{}\n{}",
                self.said(),
                self.cluster.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the bridge said of anything but single messages, the end of it.
    fn said(&self) -> String {
        let logs: Vec<_> = self.bridges.iter().map(Bridge::log).collect();
        let lines = logs.join("\n");
        let lines = lines
            .lines()
            .filter(|line| !line.contains("outbound::") || line.contains("outbound::dead"))
            .filter(|line| !line.contains("protocols::uam"));
        bridge::tail(&lines.collect::<Vec<_>>().join("\n"))
    }

    /// Ids of what the peer took.
    fn arrived(&self) -> HashSet<String> {
        sink::read_log(&self.sink.options.dir)
            .into_iter()
            .filter(|l| l.what == "arrival" && l.status == 200)
            .map(|l| l.id)
            .collect()
    }

    /// No more traffic, and every acknowledged message has come to its end.
    pub async fn end_traffic(&self, mut tasks: JoinSet<()>) {
        self.stop.store(true, Ordering::Relaxed);
        while tasks.join_next().await.is_some() {}
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let arrived = self.arrived();
            let dead: HashSet<_> = traffic::dead(&self.js)
                .await
                .into_iter()
                .map(|d| d.id)
                .collect();
            let ended = |id: &String| arrived.contains(id) || dead.contains(id);
            let out = snapshot(&self.out);
            let mut owed = out.iter().filter(|i| i.class == Class::Ok);
            let (_, scan) = traffic::scan(&self.js, 1).await;
            let published: HashSet<_> = scan.into_iter().map(|p| p.id).collect();
            let posted = snapshot(&self.posted);
            let mut taken = posted.iter().filter(|i| i.class == Class::Ok);
            let done = owed.all(|i| ended(&i.id)) && taken.all(|i| published.contains(&i.id));
            if done || Instant::now() > end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // A repeat that is on its way would come about now.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    /// Stops the bridges, reads what there is to see, and finds every promise kept.
    pub async fn judge(mut self) {
        for bridge in &mut self.bridges {
            bridge.stop().await;
        }
        let mut out = snapshot(&self.out);
        // A backend that gave up a publish without an answer and published the next cannot know which
        // the cluster stores first: the first may lie in a server that stands still.
        for input in out.iter_mut().filter(|i| i.class == Class::Unknown) {
            input.key.clone_from(&input.id);
        }
        let mut history = History {
            out,
            posted: snapshot(&self.posted),
            dead: traffic::dead(&self.js).await,
            faults: self.faults.clone(),
            ..History::default()
        };
        for line in sink::read_log(&self.sink.options.dir) {
            match line.what.as_str() {
                "arrival" => history.arrivals.push(Arrival {
                    id: line.id,
                    sent: line.sent,
                    t: line.t,
                    answered: Some(line.t),
                    status: line.status,
                }),
                "answered" => {}
                _ => history.forged.push(line.note),
            }
        }
        (history.stream, history.scan) = traffic::scan(&self.js, 1).await;
        let last = history.scan.last().map_or(0, |p| p.seq);
        let end = Instant::now() + Duration::from_secs(30);
        while !snapshot(&self.read).iter().any(|p| p.seq >= last) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        history.read = snapshot(&self.read);
        let found = checker::check(&history);
        // A server that lags must not look like a broker that forgot.
        for log in self.bridges.iter().map(Bridge::log) {
            let alarm = log.lines().find(|l| l.contains("the broker lost events"));
            assert_eq!(alarm, None, "nothing was lost");
        }
        let ok = |inputs: &[checker::Input]| inputs.iter().filter(|i| i.class == Class::Ok).count();
        eprintln!(
            "{} published, {} arrivals, {} dead letters; {} posted, {} on fed.in",
            ok(&history.out),
            history.arrivals.len(),
            history.dead.len(),
            ok(&history.posted),
            history.scan.len()
        );
        assert!(
            found.is_empty(),
            "{} promises broken, seed {}: {:#?}\n{}",
            found.len(),
            self.seed,
            found.iter().take(8).collect::<Vec<_>>(),
            self.said()
        );
        assert!(ok(&history.out) > 200 && ok(&history.posted) > 100);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::env::var_os("DRAWBRIDGE_CLUSTER_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("files: {}", self.dir.path().display());
        }
        self.reader.abort();
    }
}
