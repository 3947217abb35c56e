//! The bus against a real nats-server: what it promises when all is well and when things break.

mod breaks;
mod managed;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use drawbridge::bus::subject::token;
use drawbridge::bus::{Bus, BusErrorKind, BusMessage, Intake, OutMessage, TailFrom};
use drawbridge::config::StreamPolicy;
use drawbridge::protocol::Refusal;
use support::nats::{self, NatsServer};

const STORE: &str = "store-1";

/// A limit for what must happen soon; the machine may be busy.
async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .unwrap_or_else(|_| panic!("{what}: not in time"))
}

async fn send(bus: &Bus, peer: &str, n: usize) {
    bus.publish_out("uam", peer, "message", vec![], Bytes::from(n.to_string()))
        .await
        .expect("published");
}

async fn open(bus: &Bus, epoch: i64) -> Intake {
    bus.open_intake(STORE, epoch, &["uam"], &[])
        .await
        .expect("intake")
}

/// The same as soon as the broker, which is coming up, lets us.
async fn open_again(bus: &Bus, epoch: i64) -> Intake {
    soon("the intake", async {
        loop {
            match bus.open_intake(STORE, epoch, &["uam"], &[]).await {
                Ok(intake) => break intake,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
}

/// Reads this many messages.
async fn take(intake: &mut Intake, count: usize) -> Vec<OutMessage> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = soon("a batch", intake.next_batch(count - all.len())).await;
        all.extend(batch.expect("messages"));
    }
    all
}

fn body(message: &OutMessage) -> String {
    let event = match &message.event {
        Ok(event) | Err((_, event)) => event,
    };
    String::from_utf8_lossy(&event.payload).into_owned()
}

fn bodies(messages: &[OutMessage]) -> Vec<String> {
    messages.iter().map(body).collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn ack_all(messages: Vec<OutMessage>) {
    for message in messages {
        message.ack.ack().await.expect("acknowledged");
    }
}

#[tokio::test]
async fn streams_are_made_once_and_a_second_start_finds_no_difference() {
    let server = NatsServer::start().await;
    let bus = Bus::connect(&server.config()).await.expect("connected");
    assert_eq!(
        bus.apply_streams().await.expect("made"),
        Vec::<String>::new()
    );
    assert_eq!(
        bus.apply_streams().await.expect("found"),
        Vec::<String>::new()
    );
    for name in ["FED_OUT", "FED_IN", "FED_HELD", "FED_DEAD", "FED_OPS"] {
        assert!(
            bus.stream_facts(name).await.expect("facts").is_some(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn verify_makes_nothing_and_names_the_missing_stream() {
    let server = NatsServer::start().await;
    let mut config = server.config();
    config.streams = StreamPolicy::Verify;
    let bus = Bus::connect(&config).await.expect("connected");
    let error = bus.apply_streams().await.expect_err("nothing is there");
    assert_eq!(error.kind, BusErrorKind::Stream);
    assert!(error.detail.contains("FED_OUT"), "{error}");
    assert_eq!(bus.stream_facts("FED_OUT").await.expect("facts"), None);
}

#[tokio::test]
async fn a_difference_is_said_and_left_and_one_that_loses_messages_is_an_error() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let js = jetstream::new(server.client().await);
    let edit = async |name: &str, change: fn(&mut jetstream::stream::Config)| {
        let mut config = js
            .get_stream(name)
            .await
            .expect("stream")
            .cached_info()
            .config
            .clone();
        change(&mut config);
        js.update_stream(config).await.expect("edited");
    };
    edit("FED_IN", |c| c.max_age = Duration::from_secs(3_600)).await;
    let said = bus.apply_streams().await.expect("only a difference");
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("FED_IN: max_age"), "{}", said[0]);
    edit("FED_OUT", |c| {
        c.discard = jetstream::stream::DiscardPolicy::Old
    })
    .await;
    let error = bus.apply_streams().await.expect_err("would drop messages");
    assert_eq!(error.kind, BusErrorKind::Stream);
    assert!(error.detail.contains("discard"), "{error}");
}

#[tokio::test]
async fn two_prefixes_share_a_broker_without_meeting() {
    let server = NatsServer::start().await;
    let mut config = server.config();
    let one = server.bus().await;
    config.prefix = "acme.fed".to_owned();
    let two = Bus::connect(&config).await.expect("connected");
    two.apply_streams().await.expect("streams");
    send(&one, "beta.com", 1).await;
    send(&two, "beta.com", 2).await;
    let mut of_one = open(&one, 1).await;
    let mut of_two = open(&two, 1).await;
    let first = take(&mut of_one, 1).await;
    let second = take(&mut of_two, 1).await;
    assert_eq!(first[0].subject, "fed.out.uam.beta_com.message");
    assert_eq!(second[0].subject, "acme.fed.out.uam.beta_com.message");
}

#[tokio::test]
async fn a_peer_has_one_partition_and_its_subject_reads_as_published() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    let peers: Vec<String> = (0..40).map(|n| format!("p{n}.example:84{n:02}")).collect();
    for round in 0..2 {
        for peer in &peers {
            send(&bus, peer, round).await;
        }
    }
    let got = take(&mut intake, peers.len() * 2).await;
    let (first, second) = got.split_at(peers.len());
    let mut used = std::collections::HashSet::new();
    for ((one, two), peer) in first.iter().zip(second).zip(&peers) {
        assert_eq!(one.subject, format!("fed.out.uam.{}.message", token(peer)));
        assert_eq!(&one.event.as_ref().expect("good").peer, peer);
        assert_eq!(one.partition, two.partition);
        used.insert(one.partition);
    }
    assert!(used.len() > 3 && used.iter().all(|p| *p < 8), "{used:?}");
}

#[tokio::test]
async fn what_cannot_be_parsed_is_pulled_with_its_reason() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    let js = jetstream::new(server.client().await);
    for subject in [
        "fed.out.uam",
        "fed.out.uam.BETA.message",
        "fed.out.xyz.beta_com.m",
    ] {
        let ack = js
            .publish(subject, Bytes::from_static(b"x"))
            .await
            .expect("sent");
        ack.await.expect("stored");
    }
    let got = take(&mut intake, 3).await;
    assert_eq!(
        got[0].event.as_ref().expect_err("short").0.code,
        "bad_subject"
    );
    assert_eq!(
        got[1].event.as_ref().expect_err("peer").0.code,
        "bad_subject"
    );
    assert_eq!(got[2].protocol, "xyz");
    assert!(
        got[2].event.is_ok(),
        "an unknown protocol is the core's to judge"
    );
}

#[tokio::test]
async fn a_protocol_held_back_keeps_its_messages_in_the_stream() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let post = async |protocol: &str| {
        bus.publish_out(
            protocol,
            "beta.com",
            "m",
            vec![],
            Bytes::from(protocol.to_owned()),
        )
        .await
        .expect("published")
    };
    post("lama").await;
    post("uam").await;
    let mut intake = bus
        .open_intake(STORE, 1, &["uam"], &["lama"])
        .await
        .expect("intake");
    let got = take(&mut intake, 1).await;
    assert_eq!(bodies(&got), ["uam"]);
    ack_all(got).await;
    let mut later = open(&bus, 2).await;
    assert_eq!(bodies(&take(&mut later, 1).await), ["lama"]);
}

#[tokio::test]
async fn windowed_publishes_are_stored_in_the_order_of_the_calls() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut acks = Vec::new();
    let count = 500;
    let (done, mut waiting) = tokio::sync::mpsc::channel(count);
    let collector = tokio::spawn(async move {
        while let Some(ack) = waiting.recv().await {
            let ack: futures_util::future::BoxFuture<'static, Result<(u64, bool), _>> = ack;
            acks.push(ack.await.expect("acknowledged"));
        }
        acks
    });
    for n in 0..count {
        let ack = bus
            .publish_windowed(BusMessage {
                subject: "fed.in.uam.beta_com.message".to_owned(),
                headers: vec![("Nats-Msg-Id".to_owned(), format!("id-{n}"))],
                payload: Bytes::from(n.to_string()),
                stream: "FED_IN",
            })
            .await
            .expect("sent");
        done.send(ack).await.expect("collected");
    }
    drop(done);
    let acks = soon("acks", collector).await.expect("joined");
    assert_eq!(
        acks,
        (1..=count as u64)
            .map(|seq| (seq, false))
            .collect::<Vec<_>>()
    );
    let mut tail = bus.tail("fed.in.uam.>", TailFrom::All).await.expect("tail");
    for n in 0..count {
        let message = soon("a message", tail.next()).await.expect("read");
        assert_eq!(message.payload, n.to_string());
        assert_eq!(
            message.header("Nats-Msg-Id"),
            Some(format!("id-{n}").as_str())
        );
        assert_eq!(message.seq, n as u64 + 1);
    }
    let held = bus
        .read_message("FED_IN", 7)
        .await
        .expect("read")
        .expect("held");
    assert_eq!(held.header("nats-msg-id"), Some("id-6"));
    assert!(
        bus.read_message("FED_IN", 9_999)
            .await
            .expect("read")
            .is_none()
    );
}

#[tokio::test]
async fn a_repeated_message_id_is_answered_as_a_duplicate_and_a_wrong_stream_is_refused() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let message = BusMessage {
        subject: "fed.in.uam.beta_com.message".to_owned(),
        headers: vec![("Nats-Msg-Id".to_owned(), "same".to_owned())],
        payload: Bytes::from_static(b"x"),
        stream: "FED_IN",
    };
    assert_eq!(
        bus.publish(message.clone()).await.expect("first"),
        (1, false)
    );
    assert_eq!(
        bus.publish(message.clone()).await.expect("again"),
        (1, true)
    );
    let wrong = BusMessage {
        stream: "FED_DEAD",
        ..message.clone()
    };
    assert_eq!(
        bus.publish(wrong).await.expect_err("wrong").kind,
        BusErrorKind::Stream
    );
    let large = BusMessage {
        payload: Bytes::from(vec![0; 17 * 1024 * 1024]),
        ..message.clone()
    };
    assert_eq!(
        bus.publish(large).await.expect_err("large").kind,
        BusErrorKind::Refused
    );
    let broken = BusMessage {
        headers: vec![("X".to_owned(), "a\r\nNats-Msg-Id: b".to_owned())],
        ..message
    };
    assert_eq!(
        bus.publish(broken).await.expect_err("smuggled").kind,
        BusErrorKind::Refused
    );
}

#[tokio::test]
async fn a_new_epoch_resumes_at_the_oldest_in_order() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    for n in 0..100 {
        send(&bus, "beta.com", n).await;
    }
    let mut first = take(&mut intake, 60).await;
    assert_eq!(bodies(&first), numbers(0..60));
    // Acknowledged: 0..10. The others were delivered, and their owner forgets them.
    let rest = first.split_off(10);
    ack_all(first).await;
    bus.publish_out(
        "uam",
        "beta.com",
        "message",
        vec![],
        Bytes::from_static(b"100"),
    )
    .await
    .expect("published");
    let mut again = open(&bus, 2).await;
    let got = take(&mut again, 91).await;
    assert_eq!(bodies(&got), numbers(10..101));
    assert!(got.iter().all(|m| m.delivered == 1));
    let id = |m: &OutMessage| m.event.as_ref().expect("good").msg_id.clone();
    assert_eq!(
        id(&rest[0]),
        id(&got[0]),
        "a made id is the same when read again"
    );
    ack_all(got).await;
    let js = jetstream::new(server.client().await);
    let drained = async {
        while bus
            .stream_facts("FED_OUT")
            .await
            .expect("facts")
            .expect("there")
            .messages
            > 0
        {
            tokio::task::yield_now().await;
        }
    };
    soon("the queue is empty", drained).await;
    let stream = js.get_stream("FED_OUT").await.expect("stream");
    assert_eq!(
        stream.cached_info().state.consumer_count,
        1,
        "the old consumer is gone"
    );
}

#[tokio::test]
async fn a_full_acknowledgement_window_stops_delivery_and_acks_resume_it() {
    let server = NatsServer::start().await;
    let mut config = server.config();
    config.max_ack_pending = 10;
    let bus = Bus::connect(&config).await.expect("connected");
    bus.apply_streams().await.expect("streams");
    let mut intake = open(&bus, 1).await;
    for n in 0..25 {
        send(&bus, "beta.com", n).await;
    }
    let first = take(&mut intake, 10).await;
    let more = tokio::time::timeout(Duration::from_millis(300), intake.next_batch(10)).await;
    assert!(more.is_err(), "nothing beyond the window");
    ack_all(first).await;
    assert_eq!(bodies(&take(&mut intake, 10).await), numbers(10..20));
}

#[tokio::test]
async fn large_messages_flow_although_bytes_asked_ahead_are_bounded() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    for n in 0..12u8 {
        bus.publish_out(
            "uam",
            "beta.com",
            "m",
            vec![],
            Bytes::from(vec![n; 6 * 1024 * 1024]),
        )
        .await
        .expect("published");
    }
    for n in 0..12u8 {
        let got = take(&mut intake, 1).await;
        let event = got[0].event.as_ref().expect("good");
        assert_eq!(
            (event.payload.len(), event.payload[0]),
            (6 * 1024 * 1024, n)
        );
        ack_all(got).await;
    }
}

#[tokio::test]
async fn many_messages_flow_without_a_pause_between_pulls() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    let count = 20_000;
    let publisher = bus.clone();
    let publishing = tokio::spawn(async move {
        let mut last = None;
        for n in 0..count {
            let ack = publisher
                .publish_windowed(BusMessage {
                    subject: "fed.out.uam.beta_com.message".to_owned(),
                    headers: vec![],
                    payload: Bytes::from(n.to_string()),
                    stream: "FED_OUT",
                })
                .await
                .expect("sent");
            // Awaited in the background so that the window stays full.
            last = Some(tokio::spawn(ack));
        }
        if let Some(last) = last {
            last.await.expect("joined").expect("acknowledged");
        }
    });
    let mut next = 0;
    while next < count {
        let batch = soon("a batch", intake.next_batch(512))
            .await
            .expect("messages");
        for message in batch {
            assert_eq!(body(&message), next.to_string());
            next += 1;
            message.ack.ack().await.expect("acknowledged");
        }
    }
    publishing.await.expect("published");
}

#[tokio::test]
async fn calls_of_backends_are_answered_and_questions_to_them_too() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    bus.serve_calls(Arc::new(|protocol, method, body| {
        Box::pin(async move {
            if method == "agent.put" {
                Ok(serde_json::json!({"protocol": protocol, "bytes": body.len()}))
            } else {
                Err(Refusal::new("unknown_method", "no such method"))
            }
        })
    }))
    .await
    .expect("serving");
    let backend = server.client().await;
    let ask = async |subject: &'static str| -> serde_json::Value {
        let answer = backend
            .request(subject, Bytes::from_static(b"abc"))
            .await
            .expect("an answer");
        serde_json::from_slice(&answer.payload).expect("JSON")
    };
    assert_eq!(
        ask("fed.do.uam.agent.put").await,
        serde_json::json!({"ok": true, "result": {"protocol": "uam", "bytes": 3}})
    );
    assert_eq!(
        ask("fed.do.uam.nothing").await["error"]["code"],
        "unknown_method"
    );

    let second = Duration::from_secs(1);
    let error = bus
        .ask("uam", "resolve", Bytes::new(), second)
        .await
        .expect_err("nobody listens");
    assert!(error.detail.contains("fed.ask.uam.resolve"), "{error}");
    let mut questions = backend
        .subscribe("fed.ask.uam.resolve")
        .await
        .expect("subscribed");
    nats::round_trip(&backend).await;
    let answering = async {
        use futures_util::StreamExt;
        let question = questions.next().await.expect("a question");
        let reply = question.reply.expect("a reply subject");
        backend
            .publish(reply, question.payload)
            .await
            .expect("answered");
    };
    let asking = bus.ask("uam", "resolve", Bytes::from_static(b"?"), second * 10);
    let (asked, ()) = soon("asked", async { tokio::join!(asking, answering) }).await;
    assert_eq!(asked.expect("answered"), Bytes::from_static(b"?"));
    bus.close().await;
}

#[tokio::test]
async fn notices_reach_the_ops_stream_without_being_awaited() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut tail = bus.tail("fed.ops.>", TailFrom::All).await.expect("tail");
    bus.notify(
        "fed.ops.delivery.dead.uam.beta_com".to_owned(),
        Bytes::from_static(b"{}"),
    );
    let seen = soon("the notice", tail.next()).await.expect("read");
    assert_eq!(seen.subject, "fed.ops.delivery.dead.uam.beta_com");
    assert_eq!(bus.notices_dropped(), 0);
}
