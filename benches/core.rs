//! The pieces of the hot path by themselves: `cargo bench --bench core [FILTER]`.
//!
//! No framework: each piece runs for a quarter of a second after a warm-up, and the time of one run
//! is printed. What the whole bridge does is `drawbridge bench`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use drawbridge::clock::Clock;
use drawbridge::config::WireForms;
use drawbridge::identity::{SigningKey, b64};
use drawbridge::outbound::lane::{Item, Lane, Limits, Step};
use drawbridge::peers::health::{Facts, Policy};
use drawbridge::protocol::Schedule;
use drawbridge::protocols::paracord;
use drawbridge::protocols::uam::address::Address;
use drawbridge::protocols::uam::envelope::{self, Draft, Envelope};
use drawbridge::protocols::uam::relay_request::{Attempt, RelayRequest, sign_relay_request};
use drawbridge::protocols::uam::verify::{check_agent_signature, check_relay_signature};
use drawbridge::store::{NewRow, RowState, Store};

const RUN: Duration = Duration::from_millis(250);
const RELAY: &str = "alpha.test";
/// Rows handed in together to see group commit at work.
const ROWS: usize = 256;

type Fault = Box<dyn std::error::Error>;

fn main() -> Result<(), Fault> {
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let measure = |name: &str, each: usize, run: &mut dyn FnMut()| {
        if wanted.as_deref().is_some_and(|w| !name.contains(w)) {
            return;
        }
        run();
        let (begun, mut runs) = (Instant::now(), 0u32);
        while begun.elapsed() < RUN {
            run();
            runs += 1;
        }
        let one = begun.elapsed() / runs / u32::try_from(each).unwrap_or(1);
        println!("{name:<44} {:>10.2} us", one.as_secs_f64() * 1e6);
    };
    let (relay_key, agent_key) = (
        SigningKey::from_seed([1; 32]),
        SigningKey::from_seed([2; 32]),
    );
    let text = envelope_text(&agent_key)?;
    let envelope = Envelope::parse(text.clone())?;
    let via = [RELAY.to_owned()];
    let attempt = Attempt {
        via: &via,
        hop_count: 1,
        timestamp: "2026-05-01T12:00:00.000Z",
        from_relay: RELAY,
        nonce: Some("AAAAAAAAAAAAAAAAAAAAAA"),
    };
    let signed = sign_relay_request(&envelope, &attempt, &relay_key);
    let request = RelayRequest::parse(&signed.body, WireForms::Nonce)?;

    measure("read an envelope of 1 KiB", 1, &mut || {
        black_box(Envelope::parse(text.clone()).is_ok());
    });
    measure("canonical form of a request", 1, &mut || {
        black_box(request.signing_bytes());
    });
    measure("canonical form and signature of a request", 1, &mut || {
        black_box(sign_relay_request(&envelope, &attempt, &relay_key));
    });
    measure("read a request", 1, &mut || {
        black_box(RelayRequest::parse(&signed.body, WireForms::Nonce).is_ok());
    });
    measure("verify relay and agent of a request", 1, &mut || {
        let relay = check_relay_signature(
            &request.signing_bytes(),
            &signed.signature,
            &relay_key.public(),
        );
        let agent = check_agent_signature(&request.envelope, &agent_key.public());
        assert!(relay.is_ok() && agent.is_ok());
    });
    let event = event(&agent_key)?;
    let wire = event.wire();
    let offered = event.signature().and_then(|offered| offered.bytes);
    let signature = offered.ok_or("an event that was just signed has a signature")?;
    measure("read a Paracord event", 1, &mut || {
        black_box(paracord::envelope::Envelope::decode(&wire).is_ok());
    });
    measure("canonical form of a Paracord event", 1, &mut || {
        black_box(event.canonical());
    });
    let mut signed = event.clone();
    measure("canonical, sign, verify a Paracord event", 1, &mut || {
        signed.sign(&agent_key, "ed25519:k");
        assert!(signed.check(&agent_key.public(), &signature).is_ok());
    });
    measure("lane: arrive, attempt, finished", ROWS, &mut || lane());

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let dir = std::env::temp_dir().join(format!("drawbridge-bench-store-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let store = runtime.block_on(Store::open(&dir.join("bench.db"), Clock::system()))?;
    measure("store: a row in a group commit of 256", ROWS, &mut || {
        assert!(runtime.block_on(commit(&store, &text)).is_ok());
    });
    runtime.block_on(store.close());
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn envelope_text(key: &SigningKey) -> Result<Bytes, Fault> {
    let draft = Draft {
        from: &Address::parse("alice::alpha.test")?,
        to: &Address::parse("bob::beta.test")?,
        kind: "message",
        payload: &b64::encode([7u8; 420]),
        message_id: "01968b2e-0000-7000-8000-000000000001",
        timestamp: "2026-05-01T11:59:58.250Z",
        nonce: &[0; 24],
        thread_id: None,
        reply_to: None,
        expires: None,
        media_type: None,
    };
    Ok(envelope::build(&draft, key).into())
}

fn event(key: &SigningKey) -> Result<paracord::envelope::Envelope, Fault> {
    let mut event = paracord::envelope::Envelope {
        event_id: "$7301:alpha.test".into(),
        room_id: "!7010:alpha.test".into(),
        event_type: "m.message".into(),
        sender: "@alice:alpha.test".into(),
        origin_server: RELAY.into(),
        origin_ts: 1_777_636_798_250,
        content: serde_json::json!({
            "body": "a word or two ".repeat(30),
            "msgtype": "m.text",
            "guild_id": "7010",
            "channel_id": "7020",
            "message_id": "7301",
        }),
        depth: 1_777_636_798_250,
        state_key: None,
        signatures: serde_json::Value::Null,
    };
    event.sign(key, "ed25519:k");
    Ok(event)
}

/// 256 rows of 32 keys through a lane whose peer answers at once.
fn lane() {
    let policy = Policy {
        threshold: 5,
        initial: Duration::from_secs(1),
        max: Duration::from_secs(300),
    };
    let schedule = Schedule {
        delays: vec![Duration::from_secs(30)],
    };
    let limits = Limits {
        window: 8,
        head: ROWS,
    };
    let mut lane = Lane::new(limits, Facts::default());
    for id in 1..=ROWS {
        lane.arrive(item(i64::try_from(id).unwrap_or(0)));
    }
    let mut done = 0;
    while let Step::Attempt(item, cause) = lane.next(&policy, &schedule, 1_000, true) {
        lane.succeeded(&policy, cause, 1_000);
        lane.finished(&item);
        done += 1;
    }
    assert_eq!(done, ROWS);
}

fn item(id: i64) -> Item {
    Item {
        id,
        key: format!("agent-{}::alpha.test", id % 32).into(),
        msg_id: id.to_string(),
        out_seq: 1,
        event_id: id.to_string(),
        event_type: "message".into(),
        body: Some(Bytes::from_static(b"{}")),
        attempts: 0,
        created_ms: 1,
        first_failed_ms: None,
        next_at_ms: 0,
        expires_ms: None,
        peer_fault: false,
        traceparent: None,
    }
}

async fn commit(store: &Store, body: &Bytes) -> Result<(), Fault> {
    let rows = store.reserve_rows(ROWS).map(|id| NewRow {
        id,
        protocol: "uam",
        peer: "beta.test".into(),
        msg_id: id.to_string(),
        out_seq: 1,
        event_id: id.to_string(),
        event_type: "message".into(),
        order_key: "k".into(),
        body: body.clone(),
        created_ms: 1,
        expires_ms: None,
        traceparent: None,
        state: RowState::Pending,
        reason: None,
        records: Vec::new(),
        room_event: None,
    });
    store.enqueue(rows.collect::<Vec<_>>()).await?.await?;
    Ok(())
}
