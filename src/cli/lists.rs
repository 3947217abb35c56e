//! `queue list`, `peers list`, `keys show`: asked of the running bridge's admin API; without one, read
//! from its store.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{ConfigArgs, Outcome};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::client::Client;
use crate::identity::SigningKey;
use crate::protocol::{PeerRecord, Request, TransportKind};
use crate::store::{RowFilter, RowState, Store};

/// `drawbridge queue …`
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Rows of the outbound queue.
    List(QueueArgs),
}

/// Which rows.
#[derive(Debug, Args)]
pub struct QueueArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Of this protocol.
    #[arg(long)]
    protocol: Option<String>,
    /// For this peer.
    #[arg(long)]
    peer: Option<String>,
    /// `pending`, `delivered`, `failed` or `held`.
    #[arg(long, default_value = "pending")]
    state: String,
    /// At most this many.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// `drawbridge peers …`
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// The servers we know.
    List(ListArgs),
}

/// `drawbridge keys …`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Our public keys and their fingerprints.
    Show(ListArgs),
}

/// Options of a list.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Shows the queue.
pub async fn queue(command: QueueCommand) -> Outcome {
    let QueueCommand::List(args) = command;
    let config = args.config.load()?;
    let state = match args.state.as_str() {
        "pending" => RowState::Pending,
        "delivered" => RowState::Delivered,
        "failed" => RowState::Failed,
        "held" => RowState::Held,
        other => {
            return Err(format!(
                "--state {other:?}: one of pending, delivered, failed, held"
            ));
        }
    };
    let mut path = format!("/api/v1/queue?state={}&limit={}", args.state, args.limit);
    for (name, value) in [("protocol", &args.protocol), ("peer", &args.peer)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={value}"));
        }
    }
    let rows = match ask(&config, &path, "rows").await? {
        Some(rows) => rows,
        None => {
            let filter = RowFilter {
                protocol: args.protocol,
                peer: args.peer,
                states: [state].into(),
                limit: args.limit,
                ..RowFilter::default()
            };
            let rows = offline(&config)
                .await?
                .list_rows(&filter)
                .await
                .map_err(|e| e.to_string())?;
            rows.iter().map(|r| json!(r)).collect()
        }
    };
    let now = Clock::system().now_ms();
    show(
        &rows,
        args.json,
        &[
            "id", "protocol", "peer", "state", "attempts", "next", "event_id", "reason",
        ],
        |row, column| match column {
            "next" => row["next_at_ms"]
                .as_i64()
                .map_or("now".into(), |at| in_seconds(at - now)),
            "reason" => row["reason_code"].as_str().unwrap_or_default().to_owned(),
            other => text(&row[other]),
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// Shows the peers.
pub async fn peers(command: PeersCommand) -> Outcome {
    let PeersCommand::List(args) = command;
    let config = args.config.load()?;
    let rows = match ask(&config, "/api/v1/peers", "peers").await? {
        Some(rows) => rows,
        None => {
            let peers = offline(&config)
                .await?
                .peers()
                .await
                .map_err(|e| e.to_string())?;
            peers.iter().map(peer).collect()
        }
    };
    show(
        &rows,
        args.json,
        &[
            "protocol",
            "name",
            "endpoint",
            "discovered_via",
            "score",
            "facts",
        ],
        |row, column| text(&row[column]),
    );
    Ok(ExitCode::SUCCESS)
}

/// Shows our keys, from their files: this needs no running bridge.
pub fn keys(command: KeysCommand) -> Outcome {
    let KeysCommand::Show(args) = command;
    let config = args.config.load()?;
    let path = &config.uam.key_path;
    if !path.exists() {
        return Err(format!(
            "{} does not exist yet: the first `drawbridge run` makes it",
            path.display()
        ));
    }
    let (key, _) = SigningKey::load_or_create(path).map_err(|e| e.to_string())?;
    let public = key.public();
    let rows = vec![
        json!({"protocol": "uam", "name": config.uam.domain, "public_key": public.to_base64(),
        "fingerprint": public.fingerprint(), "file": path}),
    ];
    show(
        &rows,
        args.json,
        &["protocol", "name", "public_key", "fingerprint"],
        |row, column| text(&row[column]),
    );
    Ok(ExitCode::SUCCESS)
}

/// The list under `member` of the admin API's answer; `None`: no bridge answers there.
pub(super) async fn ask(
    config: &Config,
    path: &str,
    member: &str,
) -> Result<Option<Vec<Value>>, String> {
    let host = config.admin.address.to_string();
    let mut http = config.http.clone();
    http.plain_hosts.push(host.clone());
    http.allow_hosts.push(host.clone());
    let request = Request {
        method: http::Method::GET,
        url: format!("http://{host}{path}"),
        headers: http::HeaderMap::new(),
        body: bytes::Bytes::new(),
    };
    let answer = Client::new(&http)?
        .send(request, http.timeout, 64 << 20)
        .await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(e) if e.kind == TransportKind::Connect => return Ok(None),
        Err(e) => return Err(format!("the admin API at {host}: {e}")),
    };
    let mut body: Value = serde_json::from_slice(&answer.body)
        .map_err(|e| format!("the admin API at {host}: {e}"))?;
    match body.get_mut(member).map(Value::take) {
        Some(Value::Array(rows)) if answer.status == 200 => Ok(Some(rows)),
        _ => Err(format!(
            "the admin API at {host} answered {}: {body}",
            answer.status
        )),
    }
}

/// A stored record with the members that the admin API has too.
fn peer(record: &PeerRecord) -> Value {
    json!({"protocol": record.protocol, "name": record.name, "endpoint": record.endpoint,
        "discovered_via": record.discovered_via, "last_verified_ms": record.last_verified_ms,
        "facts": record.facts})
}

pub(super) async fn offline(config: &Config) -> Result<Store, String> {
    let path = config.data_dir.join("drawbridge.db");
    if !path.exists() {
        return Err(format!(
            "no bridge answers at {} and there is no {}",
            config.admin.address,
            path.display()
        ));
    }
    Store::open_read_only(&path)
        .await
        .map_err(|e| e.to_string())
}

fn show(rows: &[Value], as_json: bool, columns: &[&str], cell: impl Fn(&Value, &str) -> String) {
    if as_json {
        rows.iter().for_each(|row| println!("{row}"));
        return;
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|c| cell(row, c)).collect())
        .collect();
    let width = |i: usize| {
        cells
            .iter()
            .map(|r| r[i].chars().count())
            .chain([columns[i].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let print = |line: Vec<String>| {
        let padded: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(c, w)| format!("{c:w$}"))
            .collect();
        println!("{}", padded.join("  ").trim_end());
    };
    print(columns.iter().map(|c| (*c).to_owned()).collect());
    cells.into_iter().for_each(print);
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn in_seconds(ms: i64) -> String {
    if ms <= 0 {
        "now".into()
    } else {
        format!(
            "in {:.1} s",
            f64::from(i32::try_from(ms).unwrap_or(i32::MAX)) / 1000.0
        )
    }
}
