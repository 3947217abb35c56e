//! The invite routes of the public listener: four for operators (bearer), one for anybody.
//!
//! `/invites/public` is open and answers with federation off. What it costs is bounded: so many
//! questions a minute of one client address, each answered from memory.

use axum::response::Response;
use serde_json::{Value, json};

use super::VoltChat;
use super::answer::{Fail, ok};
use super::invites::calls;
use super::invites::refused::Refused;
use super::request::Received;

/// Questions a minute of one client address.
const PUBLIC_PER_MINUTE: u32 = 300;
/// Seconds after which a request that found no store may be repeated.
const STORE_AGAIN_S: u32 = 5;

/// `POST /invites/share`.
pub async fn share(v: &VoltChat, r: &Received) -> Result<Response, Fail> {
    let body = r.body.clone().unwrap_or_else(|| json!({}));
    answer(calls::share(v, body).await)
}

/// `GET /invites`.
pub fn list(v: &VoltChat) -> Result<Response, Fail> {
    answer(calls::list(v))
}

/// `POST /invites/:id/use`.
pub async fn spend(v: &VoltChat, id: &str) -> Result<Response, Fail> {
    answer(calls::spend(v, id).await)
}

/// `DELETE /invites/:id`.
pub async fn remove(v: &VoltChat, id: &str) -> Result<Response, Fail> {
    answer(calls::remove(v, id).await)
}

/// `GET /invites/public?host=H`.
pub fn public(v: &VoltChat, r: &Received) -> Result<Response, Fail> {
    if let Some(client) = &r.client
        && !v
            .trust
            .admit(&format!("voltchat/public/{client}"), PUBLIC_PER_MINUTE)
    {
        return Err(Fail::limited());
    }
    answer(claimed(r.query.as_deref()).and_then(|host| calls::public(v, host.as_ref())))
}

/// The host of the query; given twice it is none.
fn claimed(query: Option<&str>) -> Result<Option<Value>, Refused> {
    let mut found = None;
    for pair in query.unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decoded(name).as_deref() != Some("host") {
            continue;
        }
        if found.is_some() {
            return Err(Refused::BadHost);
        }
        found = Some(decoded(value).ok_or(Refused::BadHost)?.into());
    }
    Ok(found)
}

/// A part of a query as text; `None`: no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let escaped = hex.filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        let escaped = escaped.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (other, _) => {
                bytes.push(*other);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

fn answer(outcome: Result<Value, Refused>) -> Result<Response, Fail> {
    match outcome {
        Ok(body) => Ok(ok(&body)),
        Err(Refused::Unavailable(why)) => Err(Fail::unavailable(&why, STORE_AGAIN_S)),
        Err(refused) => Err(Fail::new(refused.status(), refused.text())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claimed_host_is_one_text_of_the_query() {
        let host = |query| claimed(Some(query));
        assert_eq!(claimed(None), Ok(None));
        assert_eq!(host("x=1&y"), Ok(None));
        assert_eq!(
            host("host=b.example%3A8443"),
            Ok(Some("b.example:8443".into()))
        );
        assert_eq!(host("a=1&h%6Fst=b+c"), Ok(Some("b c".into())));
        assert_eq!(host("host=%zz%4"), Ok(Some("%zz%4".into())));
        assert_eq!(host("host=a&host=a"), Err(Refused::BadHost));
        assert_eq!(host("host=%ff"), Err(Refused::BadHost));
    }
}
