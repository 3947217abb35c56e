//! The database goes away under a running bridge, and comes back: remote servers are told to come
//! again, messages wait with the broker, and both go on by themselves, with nothing lost and nothing
//! twice. A bridge that starts before its database waits for it.

mod support {
    pub mod bridge;
    pub mod postgres;
    pub mod sink;
    pub mod uam_client;
}

use std::time::{Duration, Instant};

use async_nats::jetstream;
use support::bridge::{self, Bridge, Broker};
use support::postgres::Server;
use support::sink::{self, SinkOptions};
use support::uam_client::{self, Posted};

/// Asks again and again until there is an answer.
async fn within<T>(seconds: u64, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn publish(js: &jetstream::Context, text: &str) -> String {
    let id = uam_client::message_id();
    let envelope = uam_client::envelope(&id, "alice::alpha.test", "bob::beta.test", text);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", id.as_str());
    js.publish_with_headers(
        "fed.out.uam.beta_test.message",
        headers,
        envelope.to_string().into(),
    )
    .await
    .expect("published")
    .await
    .expect("acknowledged");
    id
}

/// Messages of a stream.
async fn messages(js: &jetstream::Context, stream: &str) -> u64 {
    let mut stream = js.get_stream(stream).await.expect("the stream");
    stream.info().await.expect("its state").state.messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_and_comes_back_costs_a_503_and_some_waiting() {
    let Some(mut server) = Server::start_own().await else {
        return;
    };
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
        dir: dir.path().join("beta"),
    };
    std::fs::create_dir_all(&options.dir).expect("a folder");
    sink::set_mode(&options.dir, "ok");
    let pin = bridge::pin("beta.test", options.address);
    let (peer_dir, listener) = (
        options.dir.clone(),
        tokio::net::TcpListener::bind(options.address)
            .await
            .expect("a listener"),
    );
    let peer = tokio::spawn(sink::serve(listener, options));
    let mut bridge = Bridge::new(
        &dir.path().join("bridge"),
        "alpha.test",
        Some(&broker.url()),
        "discovery = false",
        &format!(
            "[store]\nurl = \"{}\"\ntimeout = \"2s\"\n{pin}",
            server.url()
        ),
    );
    bridge.start().await;
    let js = jetstream::new(bridge::connect(&broker.url()).await);
    let client = bridge::client();
    let public = bridge.public_url();
    let post = async |id: &str| {
        let envelope = uam_client::envelope(id, "bob::beta.test", "alice::alpha.test", "in");
        let delivery = uam_client::delivery("beta.test", &envelope, true);
        uam_client::post(&client, &public, &delivery).await
    };
    let taken = async |id: &str| {
        let arrivals = sink::read_log(&peer_dir);
        let of_it = arrivals
            .iter()
            .filter(|l| l.what == "arrival" && l.id == id);
        of_it.filter(|l| l.status == 200).count()
    };
    let ready = async || {
        let answer = client
            .get(format!("{}/readyz", bridge.admin_url()))
            .send()
            .await;
        answer.expect("an answer").status().as_u16()
    };

    let first = publish(&js, "before").await;
    within(20, "the first message", async || {
        (taken(&first).await == 1).then_some(())
    })
    .await;
    assert_eq!(
        post("before").await,
        Posted::Ok { duplicate: false },
        "{}",
        bridge::tail(&bridge.log())
    );
    within(20, "FED_OUT empty", async || {
        (messages(&js, "FED_OUT").await == 0).then_some(())
    })
    .await;

    server.kill9().await;
    let refused = uam_client::message_id();
    let envelope = uam_client::envelope(&refused, "bob::beta.test", "alice::alpha.test", "in");
    let delivery = uam_client::delivery("beta.test", &envelope, true);
    let answer = client
        .post(format!("{}/api/v1/federation/deliver", bridge.public_url()))
        .header("content-type", "application/json")
        .header("x-uam-relay-signature", &delivery.signature)
        .header("x-uam-relay-domain", &delivery.relay)
        .body(delivery.body.clone())
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
    within(20, "the bridge says it is not ready", async || {
        (ready().await != 200).then_some(())
    })
    .await;
    let mut waiting = Vec::new();
    for n in 0..20 {
        waiting.push(publish(&js, &format!("meanwhile {n}")).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        messages(&js, "FED_OUT").await,
        20,
        "nothing is acknowledged that is not in the ledger"
    );
    assert_eq!(messages(&js, "FED_IN").await, 1);

    server.start().await;
    within(30, "the bridge is ready again", async || {
        (ready().await == 200).then_some(())
    })
    .await;
    for id in &waiting {
        within(30, "what waited is delivered", async || {
            (taken(id).await > 0).then_some(())
        })
        .await;
    }
    within(30, "what waited is acknowledged", async || {
        (messages(&js, "FED_OUT").await == 0).then_some(())
    })
    .await;
    for id in waiting.iter().chain([&first]) {
        assert_eq!(taken(id).await, 1, "{id} arrived more than once");
    }
    let again = within(20, "the refused one is taken", async || {
        match post(&refused).await {
            Posted::Unknown(_) => None,
            answer => Some(answer),
        }
    })
    .await;
    assert_eq!(again, Posted::Ok { duplicate: false });
    assert_eq!(post("before").await, Posted::Ok { duplicate: true });
    assert_eq!(messages(&js, "FED_IN").await, 2);
    bridge.stop().await;

    server.kill9().await;
    bridge.spawn();
    within(20, "the start says what it waits for", async || {
        bridge.log().contains("cannot start yet").then_some(())
    })
    .await;
    server.start().await;
    bridge.ready().await;
    assert_eq!(post("before").await, Posted::Ok { duplicate: true });
    bridge.stop().await;
    peer.abort();
}
