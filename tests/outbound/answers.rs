//! Every sort of answer a peer may give, and what becomes of the message.

use std::time::Duration;

use super::peer::{Peer, Say};
use super::uam_client::public_of;
use super::world::{Setup, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_cannot_get_better_is_dead_at_once_in_the_peers_own_words() {
    for (status, code) in [(400, "refused_400"), (403, "forbidden"), (413, "too_large")] {
        let beta = Peer::start("beta.test", move |_, _| {
            Say::Status(status, "", "because of the moon")
        })
        .await;
        let mut world = Setup::new().peer(&beta).start().await;
        world.send("beta.test", "x").await;
        let dead = world.dead().await;
        assert_eq!((dead.code(), dead.header("Fed-Attempts")), (code, "1"));
        assert!(dead.header("Fed-Reason").contains("because of the moon"));
        assert!(dead.header("Fed-Reason").contains(&status.to_string()));
        assert_eq!(beta.seen().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_to_a_first_attempt_is_success_and_is_counted() {
    let beta = Peer::start("beta.test", |_, _| Say::Duplicate).await;
    let mut world = Setup::new().peer(&beta).start().await;
    let before = duplicates(&world).await;
    world.send("beta.test", "x").await;
    let event = world.event("delivery.delivered").await;
    assert_eq!(event["code"], "duplicate");
    assert!(duplicates(&world).await > before);
    world.no_dead().await;
}

async fn duplicates(world: &World) -> u64 {
    let text = world.admin("/metrics").await;
    text.lines()
        .filter(|l| l.contains("duplicate_first_attempt") && l.contains("uam"))
        .find_map(|l| l.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_422_is_answered_in_the_other_form_within_the_attempt_and_the_form_is_remembered() {
    let beta = Peer::start("beta.test", |seen, _| {
        if seen.body.get("nonce").is_some() {
            Say::Delivered
        } else {
            Say::Status(422, "", "nonce: field required")
        }
    })
    .await;
    let mut world = Setup::new().peer(&beta).start().await;
    world.send("beta.test", "one").await;
    let event = world.event("delivery.delivered").await;
    assert_eq!(event["attempts"], 1, "one attempt, two requests");
    world.send("beta.test", "two").await;
    world.event("delivery.delivered").await;
    world.close().await;
    world.open().await;
    world.send("beta.test", "three").await;
    world.event("delivery.delivered").await;
    let forms: Vec<_> = beta
        .seen()
        .iter()
        .map(|s| (s.text(), s.body.get("nonce").is_some()))
        .collect();
    let expected = [
        ("one", false),
        ("one", true),
        ("two", true),
        ("three", true),
    ];
    assert_eq!(forms, expected.map(|(t, n)| (t.to_owned(), n)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_422_in_both_forms_is_dead_after_one_attempt() {
    let beta = Peer::start("beta.test", |_, _| Say::Status(422, "", "field required")).await;
    let mut world = Setup::new().peer(&beta).start().await;
    world.send("beta.test", "x").await;
    let dead = world.dead().await;
    assert_eq!(dead.code(), "validation_error");
    assert_eq!(dead.header("Fed-Attempts"), "1");
    assert_eq!(beta.seen().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_none_are_retried_and_a_later_good_one_counts() {
    const HTML: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 24\r\n\r\n<html>It works!</html>\r\n";
    const OTHER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}";
    const SHORT: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{\"status\":\"delivered\"";
    let cases: [(Say, &str); 13] = [
        (Say::Raw(HTML), "not_uam"),
        (Say::Raw(OTHER), "not_uam"),
        (Say::Raw(SHORT), "connection_broken"),
        (
            Say::Raw("HTTP/1.1 200 OK\r\nContent-Le"),
            "connection_broken",
        ),
        (Say::Raw("SSH-2.0-OpenSSH_9.6\r\n"), "connection_broken"),
        (Say::Raw(""), "connection_broken"),
        (Say::Endless(" "), "timeout"),
        (Say::Hang, "timeout"),
        (Say::Status(500, "", "boom"), "server_error"),
        (
            Say::Status(501, "", "Federation not enabled"),
            "federation_disabled",
        ),
        (
            Say::Status(401, "", "Invalid relay signature"),
            "unauthorized",
        ),
        (Say::Status(404, "", "Not Found"), "no_such_route"),
        (Say::Status(418, "", "short and stout"), "unexpected_status"),
    ];
    let script = cases.clone().map(|(say, _)| say);
    let beta = Peer::start("beta.test", move |seen, _| {
        let n: usize = seen.text().parse().unwrap();
        if n >= script.len() {
            return Say::Delivered;
        }
        script[n].clone()
    })
    .await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["100ms"]"#)
        .peer(&beta)
        .start()
        .await;
    for (n, (say, code)) in cases.iter().enumerate() {
        world
            .send_as(&format!("a{n}"), "beta.test", &n.to_string())
            .await;
        let event = world.event("delivery.retrying").await;
        assert_eq!(event["code"], *code, "{say:?}: {event}");
        assert!(
            event["detail"].as_str().is_some_and(|r| r.contains(' ')),
            "{event}"
        );
        let dead = world.dead().await;
        assert_eq!((dead.code(), dead.header("Fed-Attempts")), (*code, "2"));
    }
    world.send("beta.test", "99").await;
    world.event("delivery.delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_larger_than_the_limit_is_cut_off() {
    const KIB: &str = match std::str::from_utf8(&[b' '; 16 * 1024]) {
        Ok(text) => text,
        Err(_) => "",
    };
    let beta = Peer::start("beta.test", |_, _| Say::Endless(KIB)).await;
    let mut world = Setup::new()
        .set("http.timeout", r#""10s""#)
        .peer(&beta)
        .start()
        .await;
    world.send("beta.test", "x").await;
    let event = world.event("delivery.retrying").await;
    assert_eq!(event["code"], "answer_too_large", "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let inner = Peer::start("inner.test", |_, _| Say::Delivered).await;
    let location: &'static str =
        Box::leak(format!("Location: http://{}/x\r\n", inner.address).into_boxed_str());
    let mut world = Setup::new().peer(&beta).start().await;
    for status in [301, 302, 307, 308] {
        beta.script(move |_, n| match n % 2 {
            1 => Say::Status(status, location, "elsewhere"),
            _ => Say::Delivered,
        });
        world.send("beta.test", "x").await;
        let event = world.event("delivery.retrying").await;
        assert_eq!(event["code"], "redirect", "{event}");
        world.event("delivery.delivered").await;
    }
    assert!(inner.seen().is_empty(), "the redirect's target was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_resolves_to_a_private_address_is_not_dialled() {
    let inner = Peer::start("inner.test", |_, _| Say::Delivered).await;
    let port = inner.address.port();
    let key = public_of("x");
    let mut world = Setup::new()
        .set("http.allow_cidrs", "[]")
        .set("uam.retry_delays", r#"["100ms"]"#)
        .table("[http.hosts]\n\"evil.test\" = [\"127.0.0.1\"]\n\"lan.test\" = [\"10.0.0.1\"]\n\"mapped.test\" = [\"::ffff:127.0.0.1\"]\n")
        .pin("evil.test", &format!("https://evil.test:{port}"), Some(&key))
        .pin("lan.test", &format!("https://lan.test:{port}"), Some(&key))
        .pin("mapped.test", &format!("https://mapped.test:{port}"), Some(&key))
        .start()
        .await;
    for name in ["evil.test", "lan.test", "mapped.test"] {
        world.send(name, "x").await;
        let dead = world.dead().await;
        assert_eq!(dead.code(), "address_forbidden", "{dead:?}");
        assert_eq!(dead.header("Fed-Attempts"), "2");
    }
    assert!(inner.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_endpoint_is_not_moved_by_the_well_known_file() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let thief = Peer::start("thief.test", |_, _| Say::Delivered).await;
    beta.page(
        "/.well-known/uam-relay.json",
        &serde_json::json!({"relay_domain": "beta.test", "public_key": public_of("beta.test"),
            "federation_endpoint": format!("http://{}/api/v1/federation/deliver", thief.address)}),
    );
    let world = Setup::new()
        .pin("beta.test", &format!("http://{}", beta.address), None)
        .start()
        .await;
    world.send("beta.test", "x").await;
    beta.saw(1).await;
    assert!(thief.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_vanishes_in_the_middle_gets_the_message_when_it_is_back() {
    let beta = Peer::start("beta.test", |_, n| match n {
        1 => Say::Hang,
        _ => Say::Delivered,
    })
    .await;
    let mut world = Setup::new()
        .set("http.timeout", r#""10s""#)
        .set("uam.retry_delays", r#"["100ms", "200ms", "300ms", "10s"]"#)
        .peer(&beta)
        .start()
        .await;
    let envelope = world.send("beta.test", "x").await;
    beta.saw(1).await;
    beta.down().await; // in the middle of the first attempt
    let event = world.event("delivery.retrying").await;
    assert_eq!(event["code"], "connection_broken", "{event}");
    let event = world.event("delivery.retrying").await;
    assert_eq!(event["code"], "connect", "{event}");
    beta.up().await;
    let seen = beta.saw(2).await;
    assert_eq!(seen[1].id(), envelope["message_id"].as_str().unwrap());
    world.event("delivery.delivered").await;
    tokio::time::timeout(Duration::from_secs(5), world.close())
        .await
        .expect("it stops in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_401_makes_the_bridge_look_the_peer_up_anew_and_try_once_more_in_the_attempt() {
    let old = Peer::start("beta.test", |_, _| {
        Say::Status(401, "", "Invalid relay signature")
    })
    .await;
    old.page(
        "/.well-known/uam-relay.json",
        &serde_json::json!({"public_key": public_of("beta.test"), "federation_endpoint": "https://x.test/"}),
    );
    let mut world = Setup::new()
        .pin("beta.test", &format!("http://{}", old.address), None)
        .start()
        .await;
    world.send("beta.test", "x").await;
    let event = world.event("delivery.retrying").await;
    assert_eq!(event["code"], "unauthorized");
    assert_eq!(event["attempts"], 1);
    assert_eq!(old.seen().len(), 2, "two requests in one attempt");
    // The peer rotates its key and takes us again: the new key is what is remembered.
    old.page(
        "/.well-known/uam-relay.json",
        &serde_json::json!({"public_key": public_of("new"), "federation_endpoint": "https://x.test/"}),
    );
    old.script(|_, _| Say::Delivered);
    world.event("delivery.delivered").await;
}
