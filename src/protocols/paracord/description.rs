//! What a server says of itself: its description and its keys, read (sheet, 2). Pure.

use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::record::{MAX_KEYS, Peer, PeerKey, public};
use super::{BASE, WELL_KNOWN};
use crate::clock::UnixMs;
use crate::identity::PublicKey;
use crate::protocol::PeerName;
use crate::protocols::plain;

/// Longest id of a key, bytes.
const MAX_KEY_ID: usize = 128;
/// Longest URL of an endpoint, bytes.
const MAX_URL: usize = 2048;
/// Foreign text in a sentence of ours, characters.
const MAX_SHOWN: usize = 100;

/// A server's description, with what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What stands behind the colon in its ids.
    pub domain: String,
    /// Where its routes are, absolute, without a slash at the end.
    pub endpoint: String,
    /// Whether it federates at all.
    pub enabled: bool,
}

#[derive(Deserialize)]
struct Page {
    server_name: String,
    domain: String,
    federation_endpoint: String,
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

/// Reads the description found at `base` for this name. `Err`: a sentence.
pub fn description(base: &str, name: &PeerName, body: &[u8]) -> Result<Description, String> {
    let page: Page = serde_json::from_slice(body).map_err(|_| {
        format!(
            "{base}{WELL_KNOWN} is no JSON object with server_name, domain and federation_endpoint"
        )
    })?;
    if page.server_name != name.as_str() {
        return Err(format!(
            "{base}{WELL_KNOWN} is of {:?}, not of {name}: names are compared byte for byte",
            shown(&page.server_name)
        ));
    }
    if PeerName::parse(&page.domain.to_ascii_lowercase()).is_err() {
        return Err(format!(
            "{name} calls its domain {:?}, which is no host name",
            shown(&page.domain)
        ));
    }
    let endpoint = endpoint(base, &page.federation_endpoint).ok_or_else(|| {
        format!(
            "{name} names {:?} as its federation_endpoint: expected a path such as {BASE}",
            shown(&page.federation_endpoint)
        )
    })?;
    Ok(Description {
        domain: page.domain,
        endpoint,
        enabled: page.enabled,
    })
}

/// A path of the server at `base`, made absolute; an absolute URL only if it is of the same server.
fn endpoint(base: &str, said: &str) -> Option<String> {
    let said = said.trim_end_matches('/');
    let path = match said.strip_prefix(base) {
        Some(path) => path,
        None => said,
    };
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'\\');
    let is_path = path.starts_with('/') && !path.starts_with("//") && path.bytes().all(plain);
    if !is_path || path.split('/').any(|part| matches!(part, "." | "..")) {
        return None;
    }
    let url = format!("{base}{path}");
    let same = Url::parse(&url).ok()?.origin() == Url::parse(base).ok()?.origin();
    (same && url.len() <= MAX_URL).then_some(url)
}

/// The base URL of a server as an operator gives it: scheme and host, perhaps a path, without a slash at
/// its end. `None`: it is none.
pub fn base_url(text: &str) -> Option<String> {
    let text = text.trim().trim_end_matches('/');
    let url = Url::parse(text).ok()?;
    let plain = matches!(url.scheme(), "https" | "http")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    (plain && text.len() <= MAX_URL && text.bytes().all(|b| b.is_ascii_graphic()))
        .then(|| text.to_owned())
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry {
    key_id: String,
    public_key: String,
    server_name: String,
    valid_until: UnixMs,
}

/// Reads a document of keys: those of this server, at most [`MAX_KEYS`]. An entry of another name, of
/// small order, of our own (`ours`) or without its form says nothing. `Err`: a sentence.
pub fn keys(
    name: &PeerName,
    body: &[u8],
    ours: &[PublicKey],
    now: UnixMs,
) -> Result<Vec<PeerKey>, String> {
    let document: Document<'_> = serde_json::from_slice(body)
        .map_err(|_| format!("what {name} shows as its keys is no JSON object with \"keys\""))?;
    let listed = document.keys.len();
    let mut keys: Vec<PeerKey> = Vec::new();
    for entry in document.keys {
        let Ok(entry) = serde_json::from_str::<Entry>(entry.get()) else {
            continue;
        };
        let named = !entry.key_id.is_empty()
            && entry.key_id.len() <= MAX_KEY_ID
            && !entry.key_id.chars().any(char::is_control);
        if !named || entry.server_name != name.as_str() {
            continue;
        }
        // Whoever shows a key of ours cannot sign with it: it could only repeat what we signed.
        let key = public(&entry.public_key).filter(|key| !ours.contains(key));
        let Some(key) = key else { continue };
        let known = |k: &PeerKey| k.key_id == entry.key_id && k.public == key;
        if keys.len() < MAX_KEYS && !keys.iter().any(known) {
            keys.push(PeerKey {
                key_id: entry.key_id,
                public: key,
                valid_until_ms: entry.valid_until,
                first_seen_ms: now,
                listed_ms: now,
            });
        }
    }
    if keys.is_empty() {
        return Err(match listed {
            0 => format!("{name} lists no key: federation is switched off there"),
            n => format!(
                "of the {n} keys that {name} lists none counts: each needs server_name {name:?}, a \
                 key_id, a valid_until and a sound Ed25519 public_key in 64 hex digits"
            ),
        });
    }
    Ok(keys)
}

/// The first key of a document, whoever it says it is of.
pub fn first_key(body: &[u8]) -> Option<PublicKey> {
    let document: Document<'_> = serde_json::from_slice(body).ok()?;
    let first = plain::json(document.keys.first()?.get().as_bytes()).ok()?;
    public(first.get("public_key")?.as_str()?)
}

/// The record with the keys that its server lists now. Its word is the last one: a key that it lists no
/// more counts no more, for it may no longer be its own alone.
pub fn with_keys(peer: &Peer, listed: Vec<PeerKey>, now: UnixMs) -> Peer {
    let keys = listed.into_iter().map(|key| {
        let same = |known: &&PeerKey| known.key_id == key.key_id && known.public == key.public;
        let known = peer.keys.iter().find(same);
        PeerKey {
            first_seen_ms: known.map_or(now, |known| known.first_seen_ms),
            ..key
        }
    });
    Peer {
        keys: keys.collect(),
        keys_fetched_ms: Some(now),
        last_error: None,
        ..peer.clone()
    }
}

/// Foreign text in a sentence: printable and bounded.
pub fn shown(text: &str) -> String {
    let printable = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    printable.take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::identity::{SigningKey, hex};

    const NOW: UnixMs = 1_795_246_080_000;
    const AT: &str = "https://para-b.example";

    fn name() -> PeerName {
        PeerName::parse("para-b.example").unwrap()
    }

    fn page(server_name: &str, domain: &str, endpoint: &str) -> Result<Description, String> {
        let page = json!({
            "domain": domain, "enabled": true, "federation_endpoint": endpoint,
            "server_name": server_name, "version": "federation-v1",
        });
        description(AT, &name(), page.to_string().as_bytes())
    }

    #[test]
    fn a_description_is_of_the_name_asked_for_or_none() {
        let found = page("para-b.example", "B.example", BASE).unwrap();
        assert_eq!(found.domain, "B.example");
        assert_eq!(found.endpoint, format!("{AT}{BASE}"));
        assert!(found.enabled);
        for other in ["PARA-b.example", "para-c.example", ""] {
            assert!(page(other, "b.example", BASE).is_err(), "{other:?}");
        }
        for domain in ["", "b example", "b/example", "b:example:1", "@b"] {
            assert!(page("para-b.example", domain, BASE).is_err(), "{domain:?}");
        }
        assert!(description(AT, &name(), b"[]").is_err());
    }

    #[test]
    fn an_endpoint_stays_at_the_server_that_names_it() {
        let at = |said: &str| page("para-b.example", "b", said).map(|found| found.endpoint);
        assert_eq!(at("/fed/v1/").unwrap(), format!("{AT}/fed/v1"));
        assert_eq!(
            at("https://para-b.example/fed/v1").unwrap(),
            format!("{AT}/fed/v1")
        );
        for said in [
            "https://evil.example/_paracord/federation/v1",
            "https://para-b.example.evil.example/x",
            "https://para-b.example@evil.example/x",
            "//evil.example/x",
            "/\\evil.example",
            "/a/../b",
            "/x?y=z",
            "/x#y",
            "fed/v1",
            "@evil.example/",
            "",
        ] {
            assert!(at(said).is_err(), "{said:?}");
        }
    }

    fn entry(seed: u8, key_id: &str, server: &str) -> Value {
        let key = SigningKey::from_seed([seed; 32]).public();
        json!({
            "key_id": key_id, "public_key": hex(&key.to_bytes()), "server_name": server,
            "valid_until": NOW,
        })
    }

    fn read(entries: Value) -> Result<Vec<PeerKey>, String> {
        let ours = [SigningKey::from_seed([99; 32]).public()];
        let body = json!({"keys": entries, "server_name": "para-b.example"});
        keys(&name(), body.to_string().as_bytes(), &ours, NOW)
    }

    #[test]
    fn only_sound_keys_of_the_server_itself_count() {
        let mut weak = entry(1, "weak", "para-b.example");
        weak["public_key"] = format!("01{}", "00".repeat(31)).into();
        let mut float = entry(2, "float", "para-b.example");
        float["valid_until"] = json!(1.5);
        let mut plus = entry(3, "plus", "para-b.example");
        plus["public_key"] = format!("+1{}", "11".repeat(31)).into();
        let found = read(json!([
            entry(4, "good", "para-b.example"),
            entry(5, "other", "para-c.example"),
            entry(6, "case", "PARA-B.example"),
            entry(7, "", "para-b.example"),
            entry(8, "line\nbreak", "para-b.example"),
            entry(99, "ours", "para-b.example"),
            weak,
            float,
            plus,
            "nothing",
            entry(4, "good", "para-b.example"),
            entry(9, "good", "para-b.example"),
        ]));
        let found = found.unwrap();
        let ids: Vec<_> = found.iter().map(|key| key.key_id.as_str()).collect();
        assert_eq!(ids, ["good", "good"], "two keys may have one id");
    }

    #[test]
    fn no_more_keys_are_kept_than_eight_and_none_is_a_sentence() {
        let many: Vec<_> = (1..30)
            .map(|n| entry(n, &format!("k{n}"), "para-b.example"))
            .collect();
        assert_eq!(read(json!(many)).unwrap().len(), MAX_KEYS);
        assert!(read(json!([])).unwrap_err().contains("switched off"));
        let other = read(json!([entry(1, "a", "para-c.example")]));
        assert!(other.unwrap_err().contains("none counts"));
    }

    #[test]
    fn a_key_that_is_listed_no_more_counts_no_more_and_a_known_one_keeps_its_age() {
        let peer = Peer::new(name(), format!("{AT}{BASE}"), NOW);
        let first = read(json!([
            entry(1, "a", "para-b.example"),
            entry(2, "b", "para-b.example"),
        ]));
        let peer = with_keys(&peer, first.unwrap(), NOW);
        let second = read(json!([
            entry(2, "b", "para-b.example"),
            entry(3, "a", "para-b.example"),
        ]));
        let peer = with_keys(&peer, second.unwrap(), NOW + 5);
        let seen: Vec<_> = peer
            .keys
            .iter()
            .map(|key| (key.key_id.as_str(), key.first_seen_ms))
            .collect();
        assert_eq!(seen, [("b", NOW), ("a", NOW + 5)]);
        let gone = SigningKey::from_seed([1; 32]).public();
        assert!(!peer.usable_keys("a", NOW).contains(&gone));
    }

    #[test]
    fn a_base_is_scheme_and_host() {
        assert_eq!(base_url("https://b.example/").unwrap(), "https://b.example");
        assert_eq!(
            base_url(" https://b.example:8443/at ").unwrap(),
            "https://b.example:8443/at"
        );
        for wrong in [
            "b.example",
            "ftp://b.example",
            "https://u:p@b.example",
            "https://b.example?x",
            "https://b.example#x",
            "https://",
        ] {
            assert!(base_url(wrong).is_none(), "{wrong}");
        }
    }
}
