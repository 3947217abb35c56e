//! The parsers of Paracord under any bytes ([`crate::fuzzing`]).

use std::sync::LazyLock;

use super::envelope::{Envelope, decode_body};
use super::explain::{self, Known};
use super::ids::{Room, User};
use super::member::{Invite, Membership};
use super::poll::page::{self, Page, Place};
use super::read::Wanted;
use super::record::{Peer, PeerKey, Status};
use super::transport::{self, Claim};
use super::{BASE, Own, content, description, ids, judge, request};
use crate::fuzzing::{NOW, answer, attempt, headers, peer, somebody};
use crate::identity::SigningKey;
use crate::protocol::PeerName;
use crate::trust::Standing;

/// An event: what was read is written and read again the same, and is signed over the same bytes.
pub fn envelope(data: &[u8]) {
    let _ = decode_body::<Invite>(data);
    let _ = decode_body::<Membership>(data);
    let Ok(mut envelope) = Envelope::decode(data) else {
        return;
    };
    let wire = envelope.wire();
    let again = Envelope::decode(&wire);
    assert_eq!(again.as_ref(), Ok(&envelope));
    assert_eq!(
        again.map(|again| again.canonical()),
        Ok(envelope.canonical())
    );
    let _ = content::within_limits(&envelope.content);
    let _ = content::outgoing(&envelope.event_type, &envelope.content);
    let _ = (
        Room::parse(&envelope.room_id),
        User::parse(&envelope.sender),
    );
    ids::event_id(
        &envelope.event_type,
        &envelope.content,
        &envelope.room_id,
        &envelope.sender,
        envelope.depth,
        "us.example",
    );
    if let Some(offered) = envelope.signature() {
        let bytes = offered.bytes.unwrap_or([0; 64]);
        assert!(envelope.check(&OURS.public(), &bytes).is_err());
    }
    envelope.sign(&OURS, "ed25519:auto");
    let held = envelope.signature().and_then(|offered| {
        let bytes = offered.bytes?;
        let proven = envelope.check(&OURS.public(), &bytes).ok()?;
        Some(envelope.normal(&offered.key_id, &bytes, proven.attachments_covered))
    });
    assert!(held.is_some());
}

/// What a server shows of itself and of its rooms.
pub fn pages(data: &[u8]) {
    let Some(name) = somebody() else {
        return;
    };
    let base = format!("https://{name}");
    if let Ok(page) = description::description(&base, &name, data) {
        assert!(page.endpoint.starts_with(&base));
        assert!(transport::live_path(&page.endpoint).is_some());
    }
    if let Ok(keys) = description::keys(&name, data, &[OURS.public()], NOW) {
        assert!(keys.iter().all(|key| key.public != OURS.public()));
        let peer = Peer::new(name, base, NOW);
        description::with_keys(&peer, keys, NOW);
    }
    description::first_key(data);
    if let Some(page) = Page::read(data) {
        for event in page.events {
            Place::of(event);
            envelope(event.get().as_bytes());
        }
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(base) = description::base_url(text) {
        assert!(transport::signed_path(&base).is_some_and(|path| path.starts_with('/')));
    }
    description::shown(text);
    let _ = Wanted::read(text);
    transport::signed_path(text);
    transport::live_path(text);
    let url = page::url("https://beta.test", text, 0, 1);
    let query = url.split_once('?').map(|(_, query)| query);
    let wanted = query.and_then(|query| Wanted::read(query).ok());
    assert_eq!(wanted.map(|wanted| wanted.room_id).as_deref(), Some(text));
    if let Some(room) = Room::parse(text) {
        assert_eq!(Room::parse(&room.key()), Some(room));
    }
}

/// What a server answers to an event or a question, and the headers of a signed request.
pub fn answers(data: &[u8]) {
    let Some(name) = somebody() else {
        return;
    };
    let answer = answer(data);
    let peer = peer("paracord", &name);
    let judged = judge::judge(Ok(&answer), &peer, &attempt());
    for fact in judged.learned {
        assert!(fact.value.as_u64().is_some_and(|per_minute| per_minute > 0));
    }
    let headers = headers(data);
    request::traceparent(&headers);
    request::is_json(&headers);
    if let Ok(claim) = Claim::read(&headers) {
        claim.in_time(NOW);
        let proven = claim.proves(&OURS.public(), "POST", BASE, data, None);
        assert!(proven.is_none());
    }
}

/// A saved request, explained.
pub fn verify(data: &[u8]) {
    for servers in [None, Some(vec![known()].into_iter().flatten().collect())] {
        let context = explain::Context {
            now_ms: servers.as_ref().map(|_: &Vec<Known>| NOW),
            own: PeerName::parse("us.example").ok().map(|name| Own {
                domain: name.to_string(),
                url: format!("https://{name}"),
                name,
            }),
            enabled: true,
            servers,
            key: Some(OURS.public()),
            event_key: None,
        };
        assert!(!explain::explain(data, &context).is_empty());
    }
}

/// A key that nobody else has.
static OURS: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_seed([7; 32]));

/// A server that is trusted.
fn known() -> Option<Known> {
    let name = PeerName::parse("them.example").ok()?;
    let mut peer = Peer::new(name, format!("https://them.example{BASE}"), NOW);
    peer.status = Status::Trusted;
    peer.keys.push(PeerKey {
        key_id: "ed25519:auto".to_owned(),
        public: SigningKey::from_seed([1; 32]).public(),
        valid_until_ms: i64::MAX,
        first_seen_ms: NOW,
        listed_ms: NOW,
    });
    Some(Known {
        peer,
        standing: Standing::Ordinary,
    })
}
