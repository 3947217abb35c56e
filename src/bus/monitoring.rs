//! What a nats-server says about itself on its monitoring port (`/varz`).
//!
//! The addresses are the operator's own and usually private, so the guard for outgoing requests
//! does not apply; redirects, proxies and long answers do not either.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::Value;

/// One request, from connect to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// `/varz` is a few KiB.
const MAX_BODY: usize = 1 << 20;

/// How one server flushes, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Monitored {
    /// The server's name, as stream information names it.
    pub name: String,
    /// Every write is flushed before it is acknowledged.
    pub sync_always: bool,
    /// Otherwise how often.
    pub sync_interval_ms: u64,
    /// Where this is known from: an address or a setting.
    pub from: String,
}

/// Asks every address; answers what they said, and a sentence for each that did not answer.
pub(super) async fn ask(urls: &[String], roots: &[PathBuf]) -> (Vec<Monitored>, Vec<String>) {
    if urls.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let client = match client(roots) {
        Ok(client) => client,
        Err(what) => return (Vec::new(), vec![what]),
    };
    let answers = join_all(urls.iter().map(|url| one(&client, url))).await;
    let (mut servers, mut failures) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(server) => servers.push(server),
            Err(what) => failures.push(what),
        }
    }
    (servers, failures)
}

fn client(roots: &[PathBuf]) -> Result<reqwest::Client, String> {
    let tls = crate::http::tls::client_config(roots).map_err(|e| e.to_string())?;
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .map_err(|e| format!("the client for nats.monitoring_url cannot be set up: {e}"))
}

async fn one(client: &reqwest::Client, url: &str) -> Result<Monitored, String> {
    let about = |what: String| format!("the monitoring port {url} {what}");
    let mut answer = client
        .get(format!("{url}/varz"))
        .send()
        .await
        .map_err(|e| about(format!("does not answer: {}", e.without_url())))?;
    if !answer.status().is_success() {
        return Err(about(format!("answers {}", answer.status())));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer
        .chunk()
        .await
        .map_err(|e| about(format!("broke off: {}", e.without_url())))?
    {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(about("answers far too much".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    let value: Value =
        serde_json::from_slice(&body).map_err(|_| about("does not answer JSON".to_owned()))?;
    read(&value, url).ok_or_else(|| about("answers no server_name: is it a nats-server?".into()))
}

/// What `/varz` says. Servers older than 2.11 do not tell `sync_always`, so it is not assumed.
fn read(varz: &Value, url: &str) -> Option<Monitored> {
    let config = |member: &str| varz.get("jetstream")?.get("config")?.get(member);
    Some(Monitored {
        name: varz.get("server_name")?.as_str()?.to_owned(),
        sync_always: config("sync_always") == Some(&Value::Bool(true)),
        sync_interval_ms: config("sync_interval").and_then(Value::as_u64).unwrap_or(0) / 1_000_000,
        from: url.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_server_of_2_15_says_is_understood() {
        let said = json!({"server_name": "n1", "jetstream": {"config":
            {"sync_interval": 120_000_000_000_u64, "sync_always": true}}});
        let read = read(&said, "http://n1:8222").expect("a server");
        assert!(read.sync_always);
        assert_eq!(read.sync_interval_ms, 120_000);
    }

    #[test]
    fn silence_about_flushing_is_no_promise() {
        let read = read(&json!({"server_name": "n1"}), "http://n1:8222").expect("a server");
        assert!(!read.sync_always);
    }
}
