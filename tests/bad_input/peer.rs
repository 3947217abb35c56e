//! What a hostile or broken relay may answer us: one attempt of ours against each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use drawbridge::config::Config;
use drawbridge::http::client::Client;
use drawbridge::protocol::{
    Answer, Fault, OutEvent, PeerName, PeerRecord, Protocol, Request as Outgoing, Targets,
    TransportError, TransportKind, Try, Verdict,
};
use drawbridge::protocols::uam::discover::{Pin, discover};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Bridge, NOW, Request, loopback_client, relay_key};

/// A server that reads a request and then says this, counted; `endless` keeps saying it.
async fn scripted(answer: impl Into<String>, endless: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = answer.into();
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut seen = vec![0; 65_536];
                let _ = stream.read(&mut seen).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                if !endless {
                    return;
                }
                loop {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    if stream.write_all(&[b' '; 512]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, hits)
}

fn peer_at(endpoint: String) -> PeerRecord {
    PeerRecord {
        protocol: "uam",
        name: PeerName::parse("alpha.test").unwrap(),
        endpoint,
        alternatives: vec![],
        public_key: None,
        discovered_via: "config".into(),
        last_verified_ms: NOW,
        ttl_ms: None,
        facts: serde_json::Map::new(),
    }
}

fn event() -> OutEvent {
    let mut request = Request::new("out-1");
    request.from = "bob::beta.test";
    request.to = "alice::alpha.test";
    OutEvent {
        msg_id: "x".into(),
        out_seq: 1,
        broker_time_ms: NOW,
        peer: "_to".into(),
        event_type: "message".into(),
        order: None,
        expires_ms: None,
        hops: None,
        came_from: None,
        traceparent: None,
        payload: Bytes::from(request.envelope()),
    }
}

fn attempt() -> Try {
    Try {
        number: 1,
        now_ms: NOW,
        again: 0,
        traceparent: None,
    }
}

fn dressed(bridge: &Bridge, peer: &PeerRecord) -> Outgoing {
    let sealed = bridge.uam.seal(&event(), None).unwrap();
    bridge.uam.dress(&sealed, peer, &attempt()).unwrap()
}

/// One attempt, and what it is judged to be.
async fn one(
    bridge: &Bridge,
    client: &Client,
    peer: &PeerRecord,
) -> (Verdict, Result<Answer, TransportError>) {
    let answer = client
        .send(dressed(bridge, peer), Duration::from_millis(600), 4096)
        .await;
    let judged = bridge.uam.judge(answer.as_ref(), peer, &attempt());
    (judged.verdict, answer)
}

fn is_peer_retry(verdict: &Verdict, code: &str) -> bool {
    matches!(verdict, Verdict::Retry { fault: Fault::Peer, reason, .. } if reason.code == code)
}

fn at(addr: SocketAddr) -> PeerRecord {
    peer_at(format!("http://{addr}/api/v1/federation/deliver"))
}

#[tokio::test]
async fn two_hundred_with_html_is_no_delivery() {
    let bridge = Bridge::start().await;
    let (addr, _) = scripted(
        "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
        false,
    )
    .await;
    let (verdict, _) = one(&bridge, &bridge.client, &at(addr)).await;
    assert!(is_peer_retry(&verdict, "not_uam"), "{verdict:?}");
}

#[tokio::test]
async fn an_answer_that_never_ends_is_cut_off_by_size_or_by_time() {
    let bridge = Bridge::start().await;
    let (addr, _) = scripted("HTTP/1.1 200 OK\r\n\r\n{", true).await;
    let (verdict, _) = one(&bridge, &bridge.client, &at(addr)).await;
    assert!(
        is_peer_retry(&verdict, "answer_too_large") || is_peer_retry(&verdict, "timeout"),
        "{verdict:?}"
    );
    let (addr, _) = scripted(
        "HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n{",
        true,
    )
    .await;
    let (verdict, _) = one(&bridge, &bridge.client, &at(addr)).await;
    assert!(
        is_peer_retry(&verdict, "answer_too_large") || is_peer_retry(&verdict, "timeout"),
        "{verdict:?}"
    );
}

#[tokio::test]
async fn a_redirect_to_loopback_is_not_followed() {
    let bridge = Bridge::start().await;
    let (inner, hits) = scripted("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", false).await;
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let (addr, _) = scripted(
            format!("HTTP/1.1 {status}\r\nLocation: http://{inner}/\r\nContent-Length: 0\r\n\r\n"),
            false,
        )
        .await;
        let (verdict, _) = one(&bridge, &bridge.client, &at(addr)).await;
        assert!(is_peer_retry(&verdict, "redirect"), "{verdict:?}");
    }
    assert_eq!(hits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_resolves_to_a_private_address_is_not_dialled() {
    let bridge = Bridge::start().await;
    let (inner, hits) = scripted("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", false).await;
    let text = format!(
        "[http]\nsrv = false\nplain_hosts = [\"rebound.test\", \"127.0.0.1\", \"[::ffff:127.0.0.1]\"]\n[http.hosts]\n\"rebound.test\" = [\"{}\"]\n",
        inner.ip()
    );
    let guarded = Client::new(&Config::from_text(&text).unwrap().http).unwrap();
    let port = inner.port();
    for host in ["rebound.test", "127.0.0.1", "[::ffff:127.0.0.1]"] {
        let peer = peer_at(format!("http://{host}:{port}/"));
        let (verdict, answer) = one(&bridge, &guarded, &peer).await;
        assert_eq!(answer.unwrap_err().kind, TransportKind::Forbidden, "{host}");
        assert!(is_peer_retry(&verdict, "address_forbidden"), "{verdict:?}");
    }
    assert_eq!(hits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_endpoint_named_on_another_host_is_taken_but_guarded_all_the_same() {
    let bridge = Bridge::start().await;
    let body = format!(
        r#"{{"federation_endpoint":"https://169.254.169.254/latest/","public_key":"{}"}}"#,
        relay_key().public().to_base64()
    );
    let (addr, _) = scripted(
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ),
        false,
    )
    .await;
    // The domain's own file, reached as https://DOMAIN would be; here over the stub's plain port.
    let net = PlainAt(loopback_client(""), addr);
    let name = PeerName::parse("alpha.test").unwrap();
    let found = discover(&net, &name, &Pin::default()).await.unwrap();
    assert_eq!(found.endpoint, "https://169.254.169.254/latest/");
    let (verdict, answer) = one(&bridge, &bridge.client, &peer_at(found.endpoint)).await;
    assert_eq!(answer.unwrap_err().kind, TransportKind::Forbidden);
    assert!(is_peer_retry(&verdict, "address_forbidden"), "{verdict:?}");
}

#[tokio::test]
async fn a_peer_that_goes_away_in_the_middle_is_tried_again() {
    let bridge = Bridge::start().await;
    for answer in [
        "",
        "HTTP/1.1 2",
        "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"status\":\"deliv",
        "garbage garbage\r\n\r\n",
    ] {
        let (addr, _) = scripted(answer, false).await;
        let (verdict, _) = one(&bridge, &bridge.client, &at(addr)).await;
        assert!(
            matches!(
                verdict,
                Verdict::Retry {
                    fault: Fault::Peer,
                    ..
                }
            ),
            "{answer}: {verdict:?}"
        );
    }
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = gone.local_addr().unwrap();
    drop(gone);
    let (verdict, _) = one(&bridge, &bridge.client, &at(addr)).await;
    assert!(is_peer_retry(&verdict, "connect"), "{verdict:?}");
}

#[tokio::test]
async fn what_a_backend_must_not_send_is_refused_with_a_reason() {
    let bridge = Bridge::start().await;
    let good = String::from_utf8(event().payload.to_vec()).unwrap();
    assert_eq!(
        bridge.uam.targets(&event()).unwrap(),
        Targets::Peers(vec![PeerName::parse("alpha.test").unwrap()])
    );
    let refused = |peer: &str, payload: String| {
        let mut event = event();
        event.peer = peer.into();
        event.payload = Bytes::from(payload);
        bridge.uam.targets(&event).unwrap_err().code
    };
    assert_eq!(refused("_all", good.clone()), "no_such_target");
    assert_eq!(refused("gamma.test", good.clone()), "destination_mismatch");
    assert_eq!(
        refused("_to", good.replace("alice::alpha.test", "x::beta.test")),
        "own_domain"
    );
    for bad in [
        String::new(),
        "[]".into(),
        good.replace("\"AAAA\"", "\"\\ud800\""),
        good.replace("\"AAAA\"", "1"),
        good.replace("\"AAAA\"", &format!("\"{}\"", "A".repeat(70_000))),
        good.replace("\"payload\"", "\"pay\""),
        good.replace("alice::alpha.test", "alice"),
    ] {
        assert_eq!(refused("_to", bad), "bad_envelope");
    }
}

/// Asks for `https://alpha.test/…` at a plain port of ours.
struct PlainAt(Client, SocketAddr);

impl drawbridge::protocols::uam::discover::Net for PlainAt {
    fn get<'a>(
        &'a self,
        url: &'a str,
    ) -> futures_util::future::BoxFuture<'a, Result<Answer, TransportError>> {
        Box::pin(async move {
            let url = url.replacen("https://alpha.test", &format!("http://{}", self.1), 1);
            drawbridge::protocols::uam::discover::Net::get(&self.0, &url).await
        })
    }

    fn srv<'a>(
        &'a self,
        _name: &'a str,
    ) -> futures_util::future::BoxFuture<
        'a,
        Result<Vec<drawbridge::http::client::SrvTarget>, TransportError>,
    > {
        Box::pin(async { Ok(Vec::new()) })
    }
}
