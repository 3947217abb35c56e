//! Which names are asked in which order, and what of the answers is believed.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use ::http::HeaderMap;
use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::discover::{Found, Net, Pin, discover, origin_of};
use super::relay_request::Form;
use crate::http::client::SrvTarget;
use crate::protocol::{Answer, PeerName, TransportError, TransportKind};

const KEY: &str = "3_fb1woeOHR4pW88SAJip0-LUqhuGt0tMfQ3KpT9BcM";

/// A network of a few fixed answers that remembers what it was asked.
#[derive(Default)]
struct Fixed {
    pages: HashMap<String, (u16, String)>,
    srv: Vec<SrvTarget>,
    srv_fails: bool,
    /// Its pages are asked for and never come.
    silent: Option<&'static str>,
    asked: Mutex<Vec<String>>,
}

impl Fixed {
    fn page(mut self, url: &str, status: u16, body: impl Into<String>) -> Self {
        self.pages.insert(url.into(), (status, body.into()));
        self
    }

    fn well_known(self, base: &str, endpoint: &str) -> Self {
        let body = format!(r#"{{"federation_endpoint":"{endpoint}","public_key":"{KEY}"}}"#);
        self.page(&format!("{base}/.well-known/uam-relay.json"), 200, body)
    }

    fn target(mut self, target: &str, port: u16) -> Self {
        self.srv.push(SrvTarget {
            priority: 10,
            weight: 100,
            port,
            target: target.into(),
        });
        self
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Net for Fixed {
    fn get<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Answer, TransportError>> {
        self.asked.lock().unwrap().push(url.to_owned());
        let found = self.pages.get(url).cloned();
        let silent = self.silent.is_some_and(|base| url.starts_with(base));
        Box::pin(async move {
            if silent {
                return std::future::pending().await;
            }
            let (status, body) = found.unwrap_or((404, r#"{"detail":"Not Found"}"#.into()));
            Ok(Answer {
                status,
                headers: HeaderMap::new(),
                body: Bytes::from(body),
                elapsed: Duration::ZERO,
            })
        })
    }

    fn srv<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<SrvTarget>, TransportError>> {
        self.asked.lock().unwrap().push(format!("SRV {name}"));
        Box::pin(async move {
            if self.srv_fails {
                return Err(TransportError {
                    kind: TransportKind::Dns,
                    detail: "SERVFAIL".into(),
                });
            }
            Ok(self.srv.clone())
        })
    }
}

async fn look(net: &Fixed) -> Result<Found, TransportError> {
    discover(net, &PeerName::parse("beta.test").unwrap(), &Pin::default()).await
}

#[tokio::test]
async fn srv_says_where_and_the_targets_file_says_who() {
    let net = Fixed::default()
        .target("Relay.beta.test.", 8443)
        .target("spare.beta.test", 443)
        .well_known("https://relay.beta.test:8443", "https://ignored.test/x")
        .page("https://relay.beta.test:8443/api/v1/versions", 200, "{}");
    let found = look(&net).await.unwrap();
    assert_eq!(
        found.endpoint,
        "https://relay.beta.test:8443/api/v1/federation/deliver"
    );
    assert_eq!(
        found.alternatives,
        ["https://spare.beta.test:443/api/v1/federation/deliver"]
    );
    assert_eq!(found.via, "dns-srv");
    assert_eq!(found.dialect, Some(Form::Nonce));
    assert_eq!(net.asked()[0], "SRV _uam._tcp.beta.test");
}

#[tokio::test]
async fn the_second_target_serves_when_the_first_gives_no_key() {
    let net = Fixed::default()
        .target("a.beta.test", 443)
        .target("b.beta.test", 443)
        .well_known("https://b.beta.test:443", "https://b.beta.test/x");
    let found = look(&net).await.unwrap();
    assert!(found.endpoint.starts_with("https://b.beta.test:443/"));
    assert_eq!(found.alternatives.len(), 1);
}

#[tokio::test]
async fn without_srv_the_domains_file_says_both_and_a_404_on_versions_means_the_older_form() {
    for srv_fails in [false, true] {
        let mut net = Fixed::default().well_known(
            "https://beta.test",
            "https://relay.elsewhere.test/api/v1/federation/deliver",
        );
        net.srv_fails = srv_fails;
        let found = look(&net).await.unwrap();
        assert_eq!(
            found.endpoint,
            "https://relay.elsewhere.test/api/v1/federation/deliver"
        );
        assert_eq!(found.via, "well-known");
        assert_eq!(found.dialect, Some(Form::Legacy));
        assert!(
            net.asked()
                .contains(&"https://relay.elsewhere.test/api/v1/versions".to_owned())
        );
    }
}

#[tokio::test]
async fn a_file_that_is_no_relays_is_no_discovery() {
    for body in [
        "<html></html>",
        "{}",
        r#"{"federation_endpoint":"https://x.test/","public_key":"AAAA"}"#,
        r#"{"federation_endpoint":"file:///etc/passwd","public_key":"3_fb1woeOHR4pW88SAJip0-LUqhuGt0tMfQ3KpT9BcM"}"#,
        r#"{"federation_endpoint":"https://user@x.test/","public_key":"3_fb1woeOHR4pW88SAJip0-LUqhuGt0tMfQ3KpT9BcM"}"#,
        r#"{"federation_endpoint":"/relative","public_key":"3_fb1woeOHR4pW88SAJip0-LUqhuGt0tMfQ3KpT9BcM"}"#,
    ] {
        let net = Fixed::default().page("https://beta.test/.well-known/uam-relay.json", 200, body);
        let error = look(&net).await.unwrap_err();
        assert_eq!(error.kind, TransportKind::Discovery, "{body}");
    }
}

#[tokio::test]
async fn a_pinned_base_is_asked_instead_of_dns_and_a_pinned_key_instead_of_the_file() {
    let net = Fixed::default().well_known("http://127.0.0.1:9000", "https://ignored.test/");
    let mut pin = Pin {
        base: Some("http://127.0.0.1:9000".into()),
        public_key: None,
    };
    let name = PeerName::parse("beta.test").unwrap();
    let found = discover(&net, &name, &pin).await.unwrap();
    assert_eq!(
        found.endpoint,
        "http://127.0.0.1:9000/api/v1/federation/deliver"
    );
    assert_eq!(found.via, "config");
    assert!(!net.asked().iter().any(|a| a.starts_with("SRV")));
    pin.public_key = Some([7; 32]);
    let net = Fixed::default();
    let found = discover(&net, &name, &pin).await.unwrap();
    assert_eq!(found.public_key, [7; 32]);
    assert!(net.asked().is_empty(), "with both pinned nothing is asked");
}

#[tokio::test]
async fn a_root_target_means_no_such_service_here() {
    let net = Fixed::default().target(".", 443).well_known(
        "https://beta.test",
        "https://beta.test/api/v1/federation/deliver",
    );
    assert_eq!(look(&net).await.unwrap().via, "well-known");
}

#[test]
fn an_origin_is_scheme_and_authority() {
    assert_eq!(
        origin_of("https://a.test:8443/x?y").as_deref(),
        Some("https://a.test:8443")
    );
    assert_eq!(origin_of("/x"), None);
}

#[tokio::test]
async fn targets_that_never_answer_leave_the_fallback_its_chance_within_the_cores_limit() {
    let mut net = Fixed::default()
        .target("r1.example.net", 443)
        .target("r2.example.net", 443)
        .well_known(
            "https://beta.com",
            "https://beta.com/api/v1/federation/deliver",
        );
    net.silent = Some("https://r");
    let started = std::time::Instant::now();
    let name = PeerName::parse("beta.com").unwrap();
    let found = discover(&net, &name, &Pin::default()).await.unwrap();
    assert_eq!(found.via, "well-known");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}
