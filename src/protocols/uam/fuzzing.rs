//! The parsers of UAM under any bytes ([`crate::fuzzing`]).

use std::sync::LazyLock;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::discover::{self, Net, Pin};
use super::envelope::Envelope;
use super::json::{self, Json};
use super::judge;
use super::keys::InForce;
use super::relay_request::{RelayRequest, is_json_content_type};
use super::verify::{self, Limits};
use super::{address, canonical, explain, payload, probe, python, time};
use crate::config::WireForms;
use crate::fuzzing::{NOW, answer, attempt, peer, somebody};
use crate::http::client::SrvTarget;
use crate::identity::ring::Keyring;
use crate::identity::{PublicKey, SigningKey};
use crate::protocol::{Answer, TransportError};

/// JSON and its canonical form: what was read is written, read and written again the same.
pub fn json(data: &[u8]) {
    let Ok(tree) = json::parse(data) else {
        return;
    };
    let text = canonical::compact(&tree);
    let again = json::parse(text.as_bytes());
    let again = again.map(|again| canonical::compact(&again));
    assert_eq!(again.as_ref(), Ok(&text));
    if let Json::Object(object) = &tree {
        let signed = canonical::canonical(object);
        let again = json::parse(signed.as_bytes()).ok();
        let again = again.as_ref().and_then(Json::as_object);
        assert_eq!(again.map(canonical::canonical), Some(signed));
        assert_eq!(canonical::compact_len(object), text.len());
    }
    if let Json::String(text) = &tree {
        python::repr(text);
        let _ = time::parse_micros(text);
    }
}

/// An envelope and all that is checked of it.
pub fn envelope(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        small_texts(text);
    }
    if let Ok(envelope) = Envelope::parse(Bytes::copy_from_slice(data)) {
        read_out(&envelope);
    }
}

/// Addresses, times and payloads, which stand in an envelope as texts.
fn small_texts(text: &str) {
    if let Ok(ms) = time::parse_ms(text) {
        assert!(time::parse_ms(&time::format_ms(ms)).is_ok());
    }
    if let Ok(address) = address::Address::parse(text) {
        let again = address::Address::parse(address.as_str());
        assert_eq!(again.map(|a| a.to_string()).ok(), Some(address.to_string()));
    }
    address::split_recipient(text);
    is_json_content_type(text);
    assert!(payload::open_anonymous(text, &US.ring.active).is_err());
}

fn read_out(envelope: &Envelope) {
    let _ = (envelope.recipient(), envelope.sender(), envelope.size());
    let _ = verify::check_version(envelope);
    let _ = verify::check_fields(envelope);
    let _ = verify::check_outbound(envelope);
    let _ = verify::check_destination(envelope, "beta.test");
    let key = US.ring.active.public();
    let _ = verify::check_sender_key(envelope, &key);
    let _ = verify::check_agent_signature(envelope, &key);
}

/// What a relay posts, in either form.
pub fn relay_request(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    for forms in [WireForms::Both, WireForms::Legacy, WireForms::Nonce] {
        let Ok(request) = RelayRequest::parse(&body, forms) else {
            continue;
        };
        let limits = Limits {
            own_domain: "beta.test",
            now_ms: NOW,
            max_age_s: 300,
            max_hops: 3,
        };
        let _ = verify::check_claims(&request, &limits);
        let _ = verify::check_envelope(&request.envelope, request.form());
        read_out(&request.envelope);
        // What is signed is JSON, and in its canonical form already.
        let signed = request.signing_bytes();
        let tree = json::parse(signed.as_bytes());
        assert_eq!(tree.map(|tree| canonical::compact(&tree)), Ok(signed));
    }
}

/// What a relay answers: to a delivery, to a look-up, to an examination.
pub fn answers(data: &[u8]) {
    let Some(name) = somebody() else {
        return;
    };
    let answer = answer(data);
    judge::judge(Ok(&answer), &peer("uam", &name), &attempt(), &US);
    probe::readings(&name, &answer);
    let found = block_on(discover::discover(&Told(answer), &name, &Pin::default()));
    if let Some(Ok(found)) = found {
        for url in std::iter::once(&found.endpoint).chain(&found.alternatives) {
            assert!(discover::origin_of(url).is_some(), "{url}");
        }
        assert!(PublicKey::parse(&found.public_key).is_ok());
    }
}

/// A saved request, explained.
pub fn verify(data: &[u8]) {
    let known = explain::Context {
        now_ms: Some(NOW),
        own_domain: Some("beta.test".to_owned()),
        relay_key: Some(US.ring.active.public()),
        agent_key: Some(US.ring.active.public()),
        ..explain::Context::default()
    };
    for context in [explain::Context::default(), known] {
        assert!(!explain::explain(data, &context).is_empty());
    }
}

/// A key of ours.
static US: LazyLock<InForce> = LazyLock::new(|| InForce {
    ring: Keyring {
        active: SigningKey::from_seed([1; 32]),
        since_ms: 0,
        next: None,
        old: None,
    },
    swapped_ms: 0,
});

/// A network in which everybody gives this answer, its body the name servers' too.
struct Told(Answer);

impl Net for Told {
    fn get<'a>(&'a self, _url: &'a str) -> BoxFuture<'a, Result<Answer, TransportError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn srv<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Vec<SrvTarget>, TransportError>> {
        let first = self.0.body.split(|b| *b == b'\n').next();
        let target = SrvTarget {
            priority: 1,
            weight: 1,
            port: u16::from(self.0.body.first().copied().unwrap_or(0)),
            target: String::from_utf8_lossy(first.unwrap_or_default()).into_owned(),
        };
        Box::pin(async { Ok(vec![target]) })
    }
}

/// Ends at once: nothing is waited for but clocks that do not come into it.
fn block_on<T>(future: impl Future<Output = T>) -> Option<T> {
    thread_local! {
        static RUNTIME: Option<tokio::runtime::Runtime> =
            tokio::runtime::Builder::new_current_thread().enable_time().build().ok();
    }
    RUNTIME.with(|runtime| runtime.as_ref().map(|runtime| runtime.block_on(future)))
}
