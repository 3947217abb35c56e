//! What a relay's pages say: the well-known file, its clock, its wire form. Pure readings.

use ::http::HeaderMap;
use ::http::header::CONTENT_TYPE;
use serde_json::Value;

use crate::clock::UnixMs;
use crate::identity::PublicKey;
use crate::protocol::{Answer, PeerName};

use super::super::relay_request::Form;
use crate::protocols::examine::skew;
use crate::protocols::plain;

/// A relay's description of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub endpoint: String,
    pub key: PublicKey,
    /// What it calls itself.
    pub domain: Option<String>,
    /// Its clock less ours, seconds.
    pub skew_s: Option<i64>,
    /// Status and type, for the line.
    pub seen: String,
}

/// Reads the answer for a well-known file; the error is a code and a sentence.
pub(super) fn read(
    url: &str,
    name: &PeerName,
    answer: &Answer,
    now_ms: UnixMs,
) -> Result<Page, (&'static str, String)> {
    let kind = content_type(&answer.headers);
    let seen = format!("{} {kind}, {} bytes", answer.status, answer.body.len());
    match answer.status {
        200 => {}
        300..=399 => {
            return Err((
                "redirect",
                format!("{url} redirects ({seen}), and no relay follows redirects"),
            ));
        }
        404 | 410 => {
            return Err((
                "no_well_known",
                format!("{url} answers {seen}: no UAM relay serves {name} at this address"),
            ));
        }
        500 => {
            return Err((
                "federation_disabled",
                format!("{url} answers {seen}; a relay with federation switched off does so"),
            ));
        }
        _ => return Err(("no_well_known", format!("{url} answers {seen}"))),
    }
    let Ok(Value::Object(file)) = plain::json(&answer.body) else {
        let html =
            kind.starts_with("text/html") || answer.body.trim_ascii_start().first() == Some(&b'<');
        return Err(if html {
            (
                "parked",
                format!(
                    "{url} answers {seen}: a web page stands there (a parked domain, or a site that \
                     answers every path), no relay"
                ),
            )
        } else {
            (
                "not_uam",
                format!("{url} answers {seen}, which is no JSON object"),
            )
        });
    };
    let text = |field: &str| file.get(field).and_then(Value::as_str);
    let missing: Vec<&str> = ["federation_endpoint", "public_key"]
        .into_iter()
        .filter(|field| text(field).is_none())
        .collect();
    if !missing.is_empty() {
        return Err((
            "bad_well_known",
            format!("{url} lacks {} as text", missing.join(" and ")),
        ));
    }
    let key = PublicKey::from_base64(text("public_key").unwrap_or_default()).map_err(|error| {
        (
            "bad_key",
            format!("public_key in {url} cannot be used: {error}"),
        )
    })?;
    Ok(Page {
        endpoint: text("federation_endpoint").unwrap_or_default().to_owned(),
        key,
        domain: text("relay_domain").map(str::to_owned),
        skew_s: skew(&answer.headers, now_ms),
        seen,
    })
}

/// The wire form by the answer of `/api/v1/versions`, and what it said.
pub(super) fn form(answer: &Answer) -> (Option<Form>, String) {
    match answer.status {
        200 => {
            let body = plain::json(&answer.body).unwrap_or_default();
            let majors: Vec<&str> = body
                .get("supported_major_versions")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .take(8)
                .collect();
            let said = format!(
                "with nonce, as relays of 1.0 speak; major versions {}",
                if majors.is_empty() {
                    "not named".into()
                } else {
                    majors.join(", ")
                }
            );
            (Some(Form::Nonce), said)
        }
        404 => (
            Some(Form::Legacy),
            "without nonce, as relays of 0.2 and 0.3 speak".into(),
        ),
        status => (
            None,
            format!("{status}, so the form stays open until the first delivery"),
        ),
    }
}

fn content_type(headers: &HeaderMap) -> String {
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("without a type");
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ::http::header::{AGE, DATE};
    use bytes::Bytes;

    use super::*;

    const KEY: &str = "3_fb1woeOHR4pW88SAJip0-LUqhuGt0tMfQ3KpT9BcM";

    fn answer(status: u16, kind: &str, body: &str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        Answer {
            status,
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
            elapsed: Duration::ZERO,
        }
    }

    fn code(answer: &Answer) -> &'static str {
        let name = PeerName::parse("a.test").unwrap();
        read("https://a.test/x", &name, answer, 0).unwrap_err().0
    }

    #[test]
    fn what_stands_there_instead_of_a_relay_is_named() {
        let html = "<!doctype html><title>Buy this domain</title>";
        assert_eq!(code(&answer(200, "text/html", html)), "parked");
        assert_eq!(code(&answer(200, "application/json", html)), "parked");
        assert_eq!(code(&answer(200, "text/plain", "ok")), "not_uam");
        assert_eq!(code(&answer(404, "text/html", "")), "no_well_known");
        assert_eq!(code(&answer(301, "text/html", "")), "redirect");
        let half = r#"{"public_key":"x"}"#;
        assert_eq!(
            code(&answer(200, "application/json", half)),
            "bad_well_known"
        );
        let bad = r#"{"public_key":"x","federation_endpoint":"https://a.test"}"#;
        assert_eq!(code(&answer(200, "application/json", bad)), "bad_key");
    }

    #[test]
    fn the_clock_is_compared_through_a_cache() {
        let body = format!(r#"{{"public_key":"{KEY}","federation_endpoint":"https://a.test"}}"#);
        let mut page = answer(200, "application/json", &body);
        let date = "Sat, 21 Nov 2026 07:28:00 GMT";
        page.headers.insert(DATE, date.parse().unwrap());
        let now = 1_795_246_080_000 + 400_000;
        let name = PeerName::parse("a.test").unwrap();
        let skew = |page: &Answer| read("u", &name, page, now).unwrap().skew_s;
        assert_eq!(skew(&page), Some(-400));
        page.headers.insert(AGE, "390".parse().unwrap());
        assert_eq!(skew(&page), Some(-10));
    }
}
