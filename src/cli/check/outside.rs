//! What the world sees of us: DNS, and the public address asked from here.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};

use super::broker::say_skew;
use super::{Bridge, Report};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::client::Client;
use crate::identity::{SigningKey, hex};
use crate::protocol::{Request, TransportKind};
use crate::protocols::{Face, Shows};

/// One request to ourselves.
const PATIENCE: Duration = Duration::from_secs(10);

/// Our own pages are small.
const MAX_ANSWER: usize = 256 << 10;

/// Looks at each protocol's face.
pub(super) async fn outside(config: &Config, faces: &[Face], bridge: Bridge, report: &mut Report) {
    for face in faces {
        let client = match client(config, &face.page) {
            Ok(client) => client,
            Err(sentence) => {
                report.fault("public", face.protocol, sentence);
                continue;
            }
        };
        dns(config, &client, face, report).await;
        page(&client, face, bridge, report).await;
    }
}

/// The guarded client with our own address let through: it may well be private from in here.
fn client(config: &Config, page: &str) -> Result<Client, String> {
    let mut http = config.http.clone();
    if let Ok(uri) = page.parse::<Uri>()
        && let Some(authority) = uri.authority()
    {
        http.allow_hosts.push(authority.to_string());
        if uri.scheme_str() == Some("http") {
            http.plain_hosts.push(authority.to_string());
        }
    }
    Client::new(&http)
}

/// Whether a resolver answers, and what it says of our SRV record.
async fn dns(config: &Config, client: &Client, face: &Face, report: &mut Report) {
    let Some(name) = &face.srv else { return };
    if !config.http.srv {
        return report.skip("dns", name, "http.srv is off");
    }
    match client.srv(name).await {
        Ok(targets) if targets.is_empty() => report.ok(
            "dns",
            name,
            "the resolver answers; no SRV record, so other servers ask the domain itself",
        ),
        Ok(targets) => {
            let list: Vec<_> = targets
                .iter()
                .map(|t| format!("{}:{}", t.target, t.port))
                .collect();
            report.ok("dns", name, format!("SRV {}", list.join(", ")));
        }
        Err(e) => report.fault("dns", name, format!("no answer: {}", e.detail)),
    }
}

/// Whether our page is there and is ours.
async fn page(client: &Client, face: &Face, bridge: Bridge, report: &mut Report) {
    if bridge != Bridge::Running {
        let detail = format!(
            "{}: not asked for, since our bridge does not run",
            face.page
        );
        return report.skip("public", face.protocol, detail);
    }
    let request = Request {
        method: Method::GET,
        url: face.page.clone(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    let answer = match client.send(request, PATIENCE, MAX_ANSWER).await {
        Ok(answer) => answer,
        Err(e) => {
            let hint = match e.kind {
                TransportKind::Dns => "; does the domain have an address record?",
                TransportKind::Connect | TransportKind::Timeout => {
                    "; does the proxy or port forwarding lead here? From within a network its \
                     outside address is not always reachable"
                }
                TransportKind::Tls => "; is the certificate for this name, with its chain?",
                _ => "",
            };
            return report.fault("public", face.protocol, format!("{}{hint}", e.detail));
        }
    };
    if answer.status != 200 {
        let detail = format!(
            "{} answers {}: does another program or a proxy answer for us?",
            face.page, answer.status
        );
        return report.fault("public", face.protocol, detail);
    }
    let key = || Some(SigningKey::load(&face.key).ok()??.public());
    let expected = match &face.shows {
        Shows::Key => key().map(|key| ("key", key.to_base64())),
        Shows::HexKey => key().map(|key| ("key", hex(&key.to_bytes()))),
        Shows::Text(text) => Some(("name", text.clone())),
    };
    let shown = String::from_utf8_lossy(&answer.body);
    match expected {
        Some((what, expected)) if !shown.contains(&expected) => report.fault(
            "public",
            face.protocol,
            format!(
                "{} shows another {what} than ours: whose server is it?",
                face.page
            ),
        ),
        _ => report.ok(
            "public",
            face.protocol,
            format!("{} answers in {} ms", face.page, answer.elapsed.as_millis()),
        ),
    }
    if let Some(theirs) = date(&answer.headers) {
        // The header has whole seconds, cut off: on average half a second late.
        say_skew(
            report,
            face.protocol,
            theirs + 500 - Clock::system().now_ms(),
        );
    }
}

/// The answer's `Date`, milliseconds since the epoch.
fn date(headers: &HeaderMap) -> Option<i64> {
    let text = headers.get(header::DATE)?.to_str().ok()?;
    let zoned = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(zoned.timestamp().as_millisecond())
}
