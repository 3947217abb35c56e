//! `drawbridge send`: publish an outbound event as a backend would, and optionally follow it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::client::AdminClient;
use super::{ConfigArgs, Outcome, connect, read};
use crate::admin::params::encode;
use crate::bus::{Bus, TailFrom};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::client::Client;
use crate::identity::{PublicKey, SigningKey};
use crate::protocol::Request;
use crate::protocols::uam::address::Address;
use crate::protocols::uam::envelope::{self, Draft};
use crate::protocols::uam::{payload, time};

/// What to send.
#[derive(Debug, Args)]
pub struct SendArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Protocol: `uam`, `voltchat` or `paracord`.
    protocol: String,
    /// The peer (a host name), `_all`, for UAM `_to` (where the body's own `to` says), for Paracord
    /// `_room` (every server in the room).
    #[arg(default_value = "_to")]
    peer: String,
    /// Event type.
    #[arg(default_value = "message", id = "TYPE")]
    kind: String,
    /// The event's body; `-` reads standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "text")]
    body: Option<PathBuf>,
    /// Make a UAM message with this text instead (with --from, --to and --agent-key).
    #[arg(long, requires_all = ["from", "to", "agent_key"], conflicts_with = "body")]
    text: Option<String>,
    /// The sending agent, `name::our-domain`.
    #[arg(long)]
    from: Option<String>,
    /// The receiving agent, `name::domain`.
    #[arg(long)]
    to: Option<String>,
    /// The agent's key file (made when missing); its public half is registered with the bridge.
    #[arg(long, value_name = "FILE")]
    agent_key: Option<PathBuf>,
    /// The recipient's public key, base64; otherwise its home relay is asked.
    #[arg(long, value_name = "KEY")]
    to_key: Option<String>,
    /// Idempotency key.
    #[arg(long)]
    msg_id: Option<String>,
    /// Ordering key.
    #[arg(long)]
    order: Option<String>,
    /// Give up at this time, RFC 3339.
    #[arg(long)]
    expires: Option<String>,
    /// Wait for the outcome, at most this many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    wait: Option<u64>,
}

/// Publishes; with `--wait` exits 0 only when it was delivered.
pub async fn send(args: SendArgs) -> Outcome {
    let config = args.config.load()?;
    let bus = connect(&config).await?;
    let body = match (&args.text, &args.body) {
        (Some(text), _) => message(&args, &config, &bus, text).await?,
        (None, Some(path)) => read(path)?,
        (None, None) => return Err("give --body FILE or --text TEXT".into()),
    };
    let id = match &args.msg_id {
        Some(id) => id.clone(),
        None => format!("send-{}", crate::identity::hex(&random::<12>()?)),
    };
    let mut headers = vec![("Nats-Msg-Id".to_owned(), id.clone())];
    headers.extend(args.order.clone().map(|v| ("Fed-Order".to_owned(), v)));
    headers.extend(args.expires.clone().map(|v| ("Fed-Expires".to_owned(), v)));
    let mut outcomes = match args.wait {
        Some(_) => {
            let filter = format!("{}.ops.delivery.>", bus.prefix());
            Some(
                bus.tail(&filter, TailFrom::New)
                    .await
                    .map_err(|e| e.to_string())?,
            )
        }
        None => None,
    };
    let published = bus
        .publish_out(&args.protocol, &args.peer, &args.kind, headers, body)
        .await;
    let (seq, duplicate) = published.map_err(|e| e.to_string())?;
    println!(
        "{}",
        json!({"msg_id": id, "out_seq": seq, "duplicate": duplicate})
    );
    let (Some(tail), Some(seconds)) = (&mut outcomes, args.wait) else {
        return Ok(ExitCode::SUCCESS);
    };
    let waited = tokio::time::timeout(Duration::from_secs(seconds), outcome(tail, &id)).await;
    match waited {
        Ok(ended) => ended,
        Err(_) => queued(&config, &id, seconds).await,
    }
}

/// Follows the operator events until this message is delivered or dead.
async fn outcome(tail: &mut crate::bus::Tail, id: &str) -> Outcome {
    loop {
        let message = tail.next().await.map_err(|e| e.to_string())?;
        let what = message
            .subject
            .split('.')
            .nth(3)
            .unwrap_or_default()
            .to_owned();
        let Ok(event) = serde_json::from_slice::<serde_json::Value>(&message.payload) else {
            continue;
        };
        if !mentions(&event, id) {
            continue;
        }
        println!("{what} {event}");
        match what.as_str() {
            "delivered" => return Ok(ExitCode::SUCCESS),
            "dead" | "held" => return Ok(ExitCode::FAILURE),
            _ => {}
        }
    }
}

/// The time is over: a busy peer's sum does not name every message, so the row itself is asked.
async fn queued(config: &Config, id: &str, seconds: u64) -> Outcome {
    let path = format!("/api/v1/queue?msg_id={}", encode(id));
    // A backend's machine may have no bridge, or not its token: the broker's word is all there is.
    let found = match AdminClient::from_config(config) {
        Ok(admin) => admin.get(&path).await.ok(),
        Err(_) => None,
    };
    let rows = found.as_ref().and_then(|found| found["rows"].as_array());
    for state in ["delivered", "failed", "pending", "held"] {
        let mut of_state = rows
            .into_iter()
            .flatten()
            .filter(|row| row["state"] == state);
        if let Some(row) = of_state.next() {
            println!("{state} {row}");
            if state == "delivered" {
                return Ok(ExitCode::SUCCESS);
            }
            break;
        }
    }
    Err(format!(
        "not delivered within {seconds} s; `drawbridge queue list` shows what waits"
    ))
}

/// Whether an event, or one of a sum's events, speaks of this message.
fn mentions(event: &serde_json::Value, id: &str) -> bool {
    match event {
        serde_json::Value::Object(map) => {
            map.get("msg_id").and_then(|v| v.as_str()) == Some(id)
                || map.values().any(|v| mentions(v, id))
        }
        serde_json::Value::Array(list) => list
            .iter()
            .any(|v| v.as_str() == Some(id) || mentions(v, id)),
        _ => false,
    }
}

/// A signed UAM message with encrypted text; registers the sender's key with the bridge.
async fn message(args: &SendArgs, config: &Config, bus: &Bus, text: &str) -> Result<Bytes, String> {
    let (Some(from), Some(to), Some(key_file)) = (&args.from, &args.to, &args.agent_key) else {
        return Err("--text needs --from, --to and --agent-key".into());
    };
    let parse = |a: &String| Address::parse(a).map_err(|e| format!("{a}: {e}"));
    let (from, to) = (parse(from)?, parse(to)?);
    let (key, _) = SigningKey::load_or_create(key_file).map_err(|e| e.to_string())?;
    let put = json!({"address": from.as_str(), "public_key": key.public().to_base64()});
    bus.call_bridge("uam", "agent.put", put.to_string().into())
        .await
        .map_err(|e| e.to_string())?;
    let recipient = match &args.to_key {
        Some(text) => PublicKey::from_base64(text).map_err(|e| format!("--to-key: {e}"))?,
        None => look_up(config, &to).await?,
    };
    let nonce = random::<24>()?;
    let sealed =
        payload::seal_box(text.as_bytes(), &key, &recipient, &nonce).map_err(|e| e.to_string())?;
    let now = Clock::system().now_ms();
    let draft = Draft {
        from: &from,
        to: &to,
        kind: &args.kind,
        payload: &sealed,
        message_id: &envelope::message_id(now, &random::<10>()?),
        timestamp: &time::format_ms(now),
        nonce: &random::<24>()?,
        thread_id: None,
        reply_to: None,
        expires: None,
        media_type: None,
    };
    Ok(envelope::build(&draft, &key).into())
}

/// Asks the recipient's relay for its key: the pinned endpoint, else `https://DOMAIN`.
async fn look_up(config: &Config, to: &Address) -> Result<PublicKey, String> {
    let pin = config
        .peers
        .iter()
        .find(|p| p.protocol == "uam" && p.name == to.domain());
    let base = pin
        .and_then(|p| p.endpoint.clone())
        .unwrap_or_else(|| format!("https://{}", to.domain()));
    let url = format!(
        "{}/api/v1/agents/{}/public-key",
        base.trim_end_matches('/'),
        to.as_str()
    );
    let request = Request {
        method: http::Method::GET,
        url: url.clone(),
        headers: http::HeaderMap::new(),
        body: Bytes::new(),
    };
    let client = Client::new(&config.http)?;
    let answer = client
        .send(request, config.http.timeout, config.http.max_answer_bytes)
        .await;
    let answer = answer.map_err(|e| format!("{url}: {e}"))?;
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let key = body
        .get("public_key")
        .and_then(|k| k.as_str())
        .filter(|_| answer.status == 200);
    let key = key.ok_or_else(|| {
        format!(
            "{url} answered {} without a key: is the address right?",
            answer.status
        )
    })?;
    PublicKey::from_base64(key).map_err(|e| format!("{url}: {e}"))
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| format!("the system gives no random bytes: {e}"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_found_in_single_events_and_in_sums() {
        assert!(mentions(&json!({"msg_id": "a"}), "a"));
        assert!(mentions(
            &json!({"count": 2, "events": [{"msg_id": "b"}, {"msg_id": "a"}]}),
            "a"
        ));
        assert!(!mentions(&json!({"msg_id": "b"}), "a"));
    }
}
