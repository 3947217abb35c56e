//! The peer registry: what is pinned wins, discovery is shared and limited, records last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use drawbridge::clock::Clock;
use drawbridge::config::PeerPin;
use drawbridge::peers::Peers;
use drawbridge::protocol::{
    Answer, Judgement, Learned, OutEvent, PeerName, PeerRecord, Protocol, ProtocolId, Refusal,
    Request, Schedule, Sealed, Targets, TransportError, TransportKind, Try, Verdict,
};
use drawbridge::store::Store;
use futures_util::future::{BoxFuture, join_all};
use serde_json::json;
use tokio::sync::{Notify, Semaphore};

const NOW: i64 = 1_800_000_000_000;
const HOUR_MS: i64 = 3_600_000;

/// How the next discoveries go.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Finds,
    Fails,
    Hangs,
    Panics,
}

/// A protocol of which only `discover` matters here.
struct Finder {
    mood: std::sync::Mutex<Mood>,
    clock: Clock,
    ttl_ms: Option<i64>,
    key: std::sync::Mutex<[u8; 32]>,
    calls: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    started: Notify,
    /// Permits let discoveries end.
    gate: Semaphore,
}

impl Finder {
    fn new(clock: &Clock) -> Arc<Self> {
        Arc::new(Self {
            mood: Mood::Finds.into(),
            clock: clock.clone(),
            ttl_ms: Some(HOUR_MS),
            key: [7; 32].into(),
            calls: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            started: Notify::new(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS / 2),
        })
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// No discovery ends until `open`.
    fn close(&self) {
        self.gate.forget_permits(usize::MAX >> 4);
    }

    fn open(&self) {
        self.gate.add_permits(100_000);
    }
}

impl Protocol for Finder {
    fn id(&self) -> ProtocolId {
        "uam"
    }
    fn enabled(&self) -> bool {
        true
    }
    fn max_body(&self) -> usize {
        1
    }
    fn targets(&self, _: &OutEvent) -> Result<Targets, Refusal> {
        Ok(Targets::AllAccepted)
    }
    fn seal(&self, _: &OutEvent, _: Option<&str>) -> Result<Sealed, Refusal> {
        Err(Refusal::new("unused", ""))
    }
    fn dress(&self, _: &Sealed, _: &PeerRecord, _: &Try) -> Result<Request, Refusal> {
        Err(Refusal::new("unused", ""))
    }
    fn judge(&self, _: Result<&Answer, &TransportError>, _: &PeerRecord, _: &Try) -> Judgement {
        Judgement {
            verdict: Verdict::Delivered,
            learned: Vec::new(),
        }
    }
    fn schedule(&self) -> &Schedule {
        const NONE: &Schedule = &Schedule { delays: Vec::new() };
        NONE
    }
    fn discover<'a>(
        &'a self,
        name: &'a PeerName,
    ) -> BoxFuture<'a, Result<PeerRecord, TransportError>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            self.started.notify_one();
            let _pass = self.gate.acquire().await.unwrap();
            let mood = *self.mood.lock().unwrap();
            if mood == Mood::Hangs {
                std::future::pending::<()>().await;
            }
            self.running.fetch_sub(1, Ordering::SeqCst);
            match mood {
                Mood::Panics => panic!("on purpose"),
                Mood::Finds => Ok(PeerRecord {
                    last_verified_ms: self.clock.now_ms(),
                    ttl_ms: self.ttl_ms,
                    public_key: Some(*self.key.lock().unwrap()),
                    ..record(name.as_str(), "https://found.test/in")
                }),
                _ => Err(TransportError {
                    kind: TransportKind::Dns,
                    detail: "nothing there".into(),
                }),
            }
        })
    }
    fn routes(self: Arc<Self>) -> axum::Router {
        axum::Router::new()
    }
    fn call<'a>(
        &'a self,
        _: &'a str,
        _: Bytes,
    ) -> BoxFuture<'a, Result<serde_json::Value, Refusal>> {
        Box::pin(async { Err(Refusal::new("unused", "")) })
    }
}

fn name(text: &str) -> PeerName {
    PeerName::parse(text).unwrap()
}

fn record(peer: &str, endpoint: &str) -> PeerRecord {
    PeerRecord {
        protocol: "uam",
        name: name(peer),
        endpoint: endpoint.into(),
        alternatives: Vec::new(),
        public_key: None,
        discovered_via: "well-known".into(),
        last_verified_ms: NOW,
        ttl_ms: Some(HOUR_MS),
        facts: serde_json::Map::new(),
    }
}

fn pin(peer: &str, endpoint: Option<&str>, key: Option<[u8; 32]>, accepted: bool) -> Arc<PeerPin> {
    use base64::Engine;
    Arc::new(PeerPin {
        protocol: "uam".into(),
        name: peer.into(),
        endpoint: endpoint.map(String::from),
        public_key: key.map(|k| base64::engine::general_purpose::STANDARD.encode(k)),
        key_id: None,
        domain: None,
        accepted,
    })
}

/// Registry, finder (as itself and as a protocol), clock.
fn set_up(pins: &[Arc<PeerPin>]) -> (Peers, Arc<Finder>, Arc<dyn Protocol>, Clock) {
    let clock = Clock::fixed(NOW);
    let finder = Finder::new(&clock);
    let peers = Peers::in_memory(pins, clock.clone());
    (peers, Arc::clone(&finder), finder, clock)
}

#[tokio::test]
async fn a_discovered_peer_is_looked_up_again_only_when_its_time_is_over() {
    let (peers, finder, uam, clock) = set_up(&[]);
    let beta = name("beta.test");
    for _ in 0..3 {
        let found = peers.resolve(&uam, &beta).await.unwrap();
        assert_eq!(found.endpoint, "https://found.test/in");
    }
    assert_eq!(finder.calls(), 1);
    clock.set(NOW + HOUR_MS);
    peers.resolve(&uam, &beta).await.unwrap();
    assert_eq!(finder.calls(), 2);
}

#[tokio::test]
async fn all_who_ask_at_once_share_one_discovery() {
    let (peers, finder, uam, _) = set_up(&[]);
    let beta = name("beta.test");
    let answers = join_all((0..100).map(|_| peers.resolve(&uam, &beta))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(finder.calls(), 1);
}

#[tokio::test]
async fn a_discovery_goes_on_when_the_one_who_asked_first_goes_away() {
    let (peers, finder, uam, _) = set_up(&[]);
    let beta = name("beta.test");
    finder.close();
    {
        let first = peers.resolve(&uam, &beta);
        tokio::select! {
            _ = first => panic!("the gate is closed"),
            () = finder.started.notified() => {}
        }
    }
    let second = peers.resolve(&uam, &beta);
    finder.open();
    second.await.unwrap();
    assert_eq!(finder.calls(), 1);
}

#[tokio::test]
async fn a_failure_answers_for_30_seconds() {
    let (peers, finder, uam, clock) = set_up(&[]);
    let beta = name("beta.test");
    finder.be(Mood::Fails);
    for _ in 0..3 {
        let error = peers.resolve(&uam, &beta).await.unwrap_err();
        assert_eq!(error.kind, TransportKind::Dns);
    }
    assert_eq!(finder.calls(), 1);
    finder.be(Mood::Finds);
    clock.set(NOW + 30_000);
    peers.resolve(&uam, &beta).await.unwrap();
    assert_eq!(finder.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_discovery_that_hangs_ends_after_5_seconds() {
    let (peers, finder, uam, _) = set_up(&[]);
    finder.be(Mood::Hangs);
    let started = tokio::time::Instant::now();
    let error = peers.resolve(&uam, &name("beta.test")).await.unwrap_err();
    assert_eq!(error.kind, TransportKind::Discovery);
    assert_eq!(started.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn a_discovery_that_panics_tells_those_who_wait_and_may_be_tried_again() {
    let (peers, finder, uam, _) = set_up(&[]);
    let beta = name("beta.test");
    finder.be(Mood::Panics);
    let error = peers.resolve(&uam, &beta).await.unwrap_err();
    assert_eq!(error.kind, TransportKind::Discovery);
    finder.be(Mood::Finds);
    peers.resolve(&uam, &beta).await.unwrap();
}

#[tokio::test]
async fn no_more_than_64_discoveries_run_at_once() {
    let (peers, finder, uam, _) = set_up(&[]);
    finder.close();
    let names: Vec<PeerName> = (0..200).map(|i| name(&format!("n{i}.test"))).collect();
    let all = join_all(names.iter().map(|n| peers.resolve(&uam, n)));
    let open = async {
        while finder.running.load(Ordering::SeqCst) < 64 {
            finder.started.notified().await;
        }
        finder.open();
    };
    let (answers, ()) = tokio::join!(all, open);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(finder.most.load(Ordering::SeqCst), 64);
}

#[tokio::test]
async fn strangers_names_waiting_for_discovery_are_bounded() {
    let (peers, finder, uam, _) = set_up(&[]);
    finder.close();
    let names: Vec<PeerName> = (0..1_100).map(|i| name(&format!("n{i}.test"))).collect();
    let mut all = Box::pin(join_all(names.iter().map(|n| peers.resolve(&uam, n))));
    assert!(futures_util::poll!(&mut all).is_pending());
    finder.open();
    let answers = all.await;
    let refused = answers.iter().filter(|a| a.is_err()).count();
    assert_eq!(refused, 1_100 - 1_024);
}

#[tokio::test]
async fn a_stale_record_is_used_for_a_day_when_the_peer_cannot_be_looked_up() {
    let (peers, finder, uam, clock) = set_up(&[]);
    let beta = name("beta.test");
    peers.resolve(&uam, &beta).await.unwrap();
    finder.be(Mood::Fails);
    clock.set(NOW + 2 * HOUR_MS);
    assert!(peers.resolve(&uam, &beta).await.is_ok());
    assert!(peers.resolve(&uam, &beta).await.is_ok());
    assert_eq!(finder.calls(), 2, "the failure is remembered all the same");
    clock.set(NOW + 26 * HOUR_MS);
    assert!(peers.resolve(&uam, &beta).await.is_err());
    assert!(peers.known("uam", &beta).is_some(), "known, however old");
}

#[tokio::test]
async fn a_refresh_happens_once_a_minute_and_peer() {
    let (peers, finder, uam, clock) = set_up(&[]);
    let beta = name("beta.test");
    peers.resolve(&uam, &beta).await.unwrap();
    *finder.key.lock().unwrap() = [8; 32];
    let answers = join_all((0..10).map(|_| peers.refresh(&uam, &beta))).await;
    for answer in answers {
        let record = answer.unwrap().expect("shared, not limited");
        assert_eq!(record.public_key, Some([8; 32]));
    }
    assert_eq!(finder.calls(), 2);
    assert!(peers.refresh(&uam, &beta).await.unwrap().is_none());
    let other = name("gamma.test");
    assert!(peers.refresh(&uam, &other).await.unwrap().is_some());
    clock.set(NOW + 60_000);
    assert!(peers.refresh(&uam, &beta).await.unwrap().is_some());
    assert_eq!(finder.calls(), 4);
}

#[tokio::test]
async fn a_refresh_that_fails_leaves_what_is_known() {
    let (peers, finder, uam, _) = set_up(&[]);
    let beta = name("beta.test");
    peers.resolve(&uam, &beta).await.unwrap();
    finder.be(Mood::Fails);
    assert!(peers.refresh(&uam, &beta).await.is_err());
    assert!(peers.resolve(&uam, &beta).await.is_ok());
    assert_eq!(finder.calls(), 2);
}

#[tokio::test]
async fn a_pinned_key_is_never_overwritten() {
    let (peers, finder, uam, _) = set_up(&[pin("beta.test", None, Some([9; 32]), false)]);
    let beta = name("beta.test");
    assert_eq!(peers.pinned_key("uam", &beta), Some([9; 32]));
    let found = peers.resolve(&uam, &beta).await.unwrap();
    assert_eq!(found.public_key, Some([9; 32]));
    let found = peers.refresh(&uam, &beta).await.unwrap().unwrap();
    assert_eq!(found.public_key, Some([9; 32]));
    peers.put(PeerRecord {
        public_key: Some([1; 32]),
        ..record("beta.test", "https://beta.test/in")
    });
    let known = peers.known("uam", &beta).unwrap();
    assert_eq!(known.public_key, Some([9; 32]));
    assert_eq!(finder.calls(), 2);
}

#[tokio::test]
async fn a_pinned_endpoint_is_not_moved_by_a_record_from_elsewhere() {
    let base = "https://found.test";
    let (peers, _finder, uam, _) = set_up(&[pin("beta.test", Some(base), None, false)]);
    let beta = name("beta.test");
    assert_eq!(
        peers.pin("uam", &beta).unwrap().endpoint.as_deref(),
        Some(base)
    );
    peers.resolve(&uam, &beta).await.unwrap();
    peers.put(PeerRecord {
        public_key: Some([1; 32]),
        ..record("beta.test", "https://found.test.evil.test/in")
    });
    let known = peers.known("uam", &beta).unwrap();
    assert_eq!(known.endpoint, "https://found.test/in");
    assert_eq!(known.public_key, Some([1; 32]), "the key was not pinned");
}

#[tokio::test]
async fn a_peer_pinned_whole_never_goes_stale_and_is_never_refreshed() {
    let whole = pin(
        "beta.test",
        Some("https://found.test/"),
        Some([9; 32]),
        false,
    );
    let (peers, finder, uam, clock) = set_up(&[whole]);
    let beta = name("beta.test");
    assert!(peers.refresh(&uam, &beta).await.unwrap().is_none());
    let found = peers.resolve(&uam, &beta).await.unwrap();
    assert_eq!(
        (found.ttl_ms, found.discovered_via.as_str()),
        (None, "config")
    );
    clock.set(NOW + 10_000 * HOUR_MS);
    peers.resolve(&uam, &beta).await.unwrap();
    assert_eq!(finder.calls(), 1);
}

#[tokio::test]
async fn only_pinned_peers_marked_accepted_are_reached_by_all() {
    let (peers, _finder, uam, _) = set_up(&[
        pin("gamma.test", None, None, true),
        pin("beta.test", None, None, true),
        pin("quiet.test", None, None, false),
    ]);
    peers.resolve(&uam, &name("stranger.test")).await.unwrap();
    assert_eq!(
        peers.accepted("uam"),
        [name("beta.test"), name("gamma.test")]
    );
    assert_eq!(peers.accepted("lama"), []);
}

#[tokio::test]
async fn facts_are_learned_about_known_peers_and_survive_discovery() {
    let (peers, _finder, uam, clock) = set_up(&[]);
    let beta = name("beta.test");
    let dialect = |value| Learned {
        key: "dialect",
        value,
    };
    peers.learn("uam", &beta, &[dialect(json!("nonce"))]);
    assert!(peers.known("uam", &beta).is_none());
    peers.resolve(&uam, &beta).await.unwrap();
    peers.learn("uam", &beta, &[dialect(json!("nonce"))]);
    clock.set(NOW + 2 * HOUR_MS);
    let found = peers.resolve(&uam, &beta).await.unwrap();
    assert_eq!(found.facts["dialect"], "nonce");
    peers.learn("uam", &beta, &[dialect(json!(null))]);
    assert!(peers.known("uam", &beta).unwrap().facts.is_empty());
}

#[tokio::test]
async fn records_outlive_a_restart_and_pins_win_over_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("drawbridge.db");
    let clock = Clock::fixed(NOW);
    let finder = Finder::new(&clock);
    let uam: Arc<dyn Protocol> = finder.clone();
    let (beta, gamma) = (name("beta.test"), name("gamma.test"));

    let store = Store::open(&path, clock.clone()).await.unwrap();
    let peers = Peers::open(store.clone(), &[], clock.clone())
        .await
        .unwrap();
    peers.resolve(&uam, &beta).await.unwrap();
    peers.resolve(&uam, &gamma).await.unwrap();
    let fact = Learned {
        key: "dialect",
        value: json!("nonce"),
    };
    peers.learn("uam", &beta, &[fact]);
    peers.flush().await;
    drop(peers);
    store.close().await;
    drop(store);

    let store = Store::open(&path, clock.clone()).await.unwrap();
    let pins = [pin("gamma.test", Some("https://new.test"), None, false)];
    let peers = Peers::open(store.clone(), &pins, clock).await.unwrap();
    assert_eq!(peers.all().len(), 2);
    let again = peers.resolve(&uam, &beta).await.unwrap();
    assert_eq!(again.facts["dialect"], "nonce");
    assert_eq!(finder.calls(), 2, "read back, not looked up");

    // The endpoint pinned since then is not what the store remembers: it is asked for anew, and the
    // old one is no fallback.
    finder.be(Mood::Fails);
    assert!(peers.resolve(&uam, &gamma).await.is_err());
    assert_eq!(finder.calls(), 3);
    store.close().await;
}

#[tokio::test]
async fn a_change_is_written_without_being_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let store = Store::open(&dir.path().join("drawbridge.db"), clock.clone())
        .await
        .unwrap();
    let peers = Peers::open(store.clone(), &[], clock).await.unwrap();
    peers.put(record("beta.test", "https://beta.test/in"));
    let written = async {
        while store.peers().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written)
        .await
        .expect("the record was not written");
    store.close().await;
}
