//! Trust rules over a real database and a clock of the test's own.

use drawbridge::clock::Clock;
use drawbridge::store::Store;
use drawbridge::trust::{Rule, Standing, Trust};

const NOW: i64 = 1_800_000_000_000;
const HOUR: i64 = 3_600_000;

struct World {
    store: Store,
    trust: Trust,
    clock: Clock,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::over(dir, Clock::fixed(NOW)).await
    }

    async fn over(dir: tempfile::TempDir, clock: Clock) -> Self {
        let store = Store::open(&dir.path().join("d.sqlite"), clock.clone())
            .await
            .unwrap();
        let trust = Trust::open(store.clone(), clock.clone()).await.unwrap();
        Self {
            store,
            trust,
            clock,
            dir,
        }
    }

    /// The same after a restart.
    async fn again(self) -> Self {
        self.store.close().await;
        Self::over(self.dir, self.clock).await
    }

    async fn put(&self, rule: Rule, pattern: &str, ends_ms: Option<i64>) {
        let added = self
            .trust
            .add_until("uam", rule, pattern, Some("a reason"), ends_ms);
        added.await.unwrap();
    }

    fn is(&self, name: &str) -> Standing {
        self.trust.standing("uam", name)
    }
}

#[tokio::test]
async fn block_wins_whatever_else_is_said_of_a_name_and_however_near() {
    let w = World::new().await;
    w.put(Rule::Block, "*.bad.test", None).await;
    w.put(Rule::Allow, "good.bad.test", None).await;
    w.put(Rule::Quarantine, "good.bad.test", None).await;
    assert_eq!(w.is("good.bad.test"), Standing::Blocked);
    assert_eq!(w.is("bad.test"), Standing::Ordinary);
    let (_, row) = w.trust.ruling("uam", "good.bad.test").unwrap();
    assert_eq!(
        (row.rule.as_str(), row.pattern.as_str()),
        ("block", "*.bad.test")
    );
    assert!(
        w.trust
            .remove("uam", Rule::Block, "*.bad.test")
            .await
            .unwrap()
    );
    assert_eq!(w.is("good.bad.test"), Standing::Quarantined);
}

#[tokio::test]
async fn a_rule_ends_at_its_time_by_itself_and_across_a_restart() {
    let w = World::new().await;
    w.put(Rule::Block, "a.test", Some(NOW + HOUR)).await;
    w.put(Rule::Quarantine, "a.test", Some(NOW + 2 * HOUR))
        .await;
    w.clock.set(NOW + HOUR - 1);
    assert_eq!(w.is("a.test"), Standing::Blocked);
    w.clock.set(NOW + HOUR);
    assert_eq!(w.is("a.test"), Standing::Quarantined);
    let w = w.again().await;
    assert_eq!(w.is("a.test"), Standing::Quarantined);
    assert_eq!(w.trust.rules().len(), 2, "an ended rule can still be read");
    w.clock.set(NOW + 2 * HOUR);
    assert_eq!(w.is("a.test"), Standing::Ordinary);
}

#[tokio::test]
async fn a_rule_made_again_has_the_new_end_and_the_new_reason() {
    let w = World::new().await;
    w.put(Rule::Block, "a.test", Some(NOW + HOUR)).await;
    let again = w
        .trust
        .add_until("uam", Rule::Block, "a.test", Some("worse"), None);
    let (row, new) = again.await.unwrap();
    assert!(!new);
    assert!(row.id > 0, "as it is kept");
    assert_eq!((row.reason.as_deref(), row.ends_ms), (Some("worse"), None));
    w.clock.set(NOW + 9 * HOUR);
    assert_eq!(w.is("a.test"), Standing::Blocked);
    assert_eq!(w.trust.rules().len(), 1);
}

#[tokio::test]
async fn a_rule_speaks_of_its_own_protocol_alone() {
    let w = World::new().await;
    w.put(Rule::Block, "a.test", None).await;
    assert_eq!(w.trust.standing("paracord", "a.test"), Standing::Ordinary);
    assert!(w.trust.list("paracord", Rule::Block).is_empty());
}

#[tokio::test]
async fn edits_and_reloads_at_the_same_time_lose_nothing() {
    let w = World::new().await;
    let mut tasks = Vec::new();
    for n in 0..20 {
        let trust = w.trust.clone();
        tasks.push(tokio::spawn(async move {
            let pattern = format!("p{n}.test");
            trust.add("uam", Rule::Block, &pattern, None).await.unwrap();
            trust.reload().await.unwrap();
            assert_eq!(trust.standing("uam", &pattern), Standing::Blocked);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(w.trust.list("uam", Rule::Block).len(), 20);
}
