//! `queue …` and `dead …`: rows of the outbound queue, through the admin API.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::AdminClient;
use super::table::{age, show, show_one, text, time, until};
use super::{ConfigArgs, Outcome};
use crate::admin::params::encode;

/// Rows asked for at once.
const PAGE: usize = 500;

/// `drawbridge queue …`
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Rows of the outbound queue, oldest first.
    List(QueueArgs),
    /// One row, with its attempts.
    Show(ShowArgs),
    /// Pending rows are due now; held rows are pending again.
    Retry(BulkArgs),
    /// Pending and held rows become dead letters, with the reason `dropped`.
    Drop(BulkArgs),
}

/// `drawbridge dead …`
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// Dead letters, oldest first.
    List(ListArgs),
    /// One dead letter, with its attempts.
    Show(ShowArgs),
    /// Sends dead letters again: same event id, a new schedule from the start.
    Redrive(BulkArgs),
    /// Forgets dead letters for good.
    Drop(BulkArgs),
}

/// Which rows.
#[derive(Clone, Debug, Args)]
pub struct Filters {
    /// Row numbers.
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    /// Of this protocol.
    #[arg(long)]
    protocol: Option<String>,
    /// For this peer.
    #[arg(long)]
    peer: Option<String>,
    /// Of this event type.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// With this reason code.
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Of this message.
    #[arg(long, value_name = "ID")]
    msg_id: Option<String>,
    /// Made longer ago than this (`15m`, `2h`, `7d`).
    #[arg(long, value_name = "AGE")]
    older_than: Option<String>,
    /// Made within this time.
    #[arg(long, value_name = "AGE")]
    newer_than: Option<String>,
}

/// Options of a list.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    filters: Filters,
    /// At most this many.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Options of `queue list`.
#[derive(Debug, Args)]
pub struct QueueArgs {
    #[command(flatten)]
    list: ListArgs,
    /// `pending`, `delivered`, `failed` or `held`; several with commas.
    #[arg(long, default_value = "pending")]
    state: String,
}

/// Options of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The row's number, as the list shows it.
    id: i64,
    /// The event itself, too.
    #[arg(long)]
    body: bool,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

/// Options of what changes rows.
#[derive(Debug, Args)]
pub struct BulkArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    filters: Filters,
    /// Without any filter: every row there is.
    #[arg(long)]
    all: bool,
    /// Only say how many it would be.
    #[arg(long)]
    dry_run: bool,
    /// At most this many, the oldest.
    #[arg(long)]
    limit: Option<u64>,
    /// The outcome as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Filters {
    fn query(&self) -> String {
        let mut query = String::new();
        let mut put = |name: &str, value: &str| {
            query.push_str(&format!("&{name}={}", encode(value)));
        };
        if !self.ids.is_empty() {
            let ids: Vec<String> = self.ids.iter().map(ToString::to_string).collect();
            put("id", &ids.join(","));
        }
        for (name, value) in [
            ("protocol", &self.protocol),
            ("peer", &self.peer),
            ("type", &self.kind),
            ("reason", &self.reason),
            ("msg_id", &self.msg_id),
            ("older_than", &self.older_than),
            ("newer_than", &self.newer_than),
        ] {
            if let Some(value) = value {
                put(name, value);
            }
        }
        query
    }
}

/// Runs `queue …`.
pub async fn queue(command: QueueCommand) -> Outcome {
    match command {
        QueueCommand::List(args) => {
            let states = format!("&state={}", encode(&args.state));
            list("/api/v1/queue", &states, args.list).await
        }
        QueueCommand::Show(args) => one("/api/v1/queue", args).await,
        QueueCommand::Retry(args) => change("/api/v1/queue/retry", "due now", args).await,
        QueueCommand::Drop(args) => change("/api/v1/queue/drop", "dropped", args).await,
    }
}

/// Runs `dead …`.
pub async fn dead(command: DeadCommand) -> Outcome {
    match command {
        DeadCommand::List(args) => list("/api/v1/dead", "", args).await,
        DeadCommand::Show(args) => one("/api/v1/dead", args).await,
        DeadCommand::Redrive(args) => change("/api/v1/dead/redrive", "sent again", args).await,
        DeadCommand::Drop(args) => change("/api/v1/dead/drop", "forgotten", args).await,
    }
}

async fn list(path: &str, states: &str, args: ListArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let mut rows: Vec<Value> = Vec::new();
    let (mut after, mut now) = (0, 0);
    while rows.len() < args.limit {
        let page = (args.limit - rows.len()).min(PAGE);
        let path = format!(
            "{path}?limit={page}&after={after}{states}{}",
            args.filters.query()
        );
        let mut body = admin.get(&path).await?;
        now = body["now_ms"].as_i64().unwrap_or(0);
        if let Value::Array(found) = body["rows"].take() {
            rows.extend(found);
        }
        match body["next"].as_i64() {
            Some(next) => after = next,
            None => break,
        }
    }
    show(
        &rows,
        args.json,
        &[
            "id", "protocol", "peer", "type", "state", "attempts", "age", "next", "reason",
            "event_id",
        ],
        |row, column| match column {
            "type" => text(&row["event_type"]),
            "age" => age(&row["created_ms"], now),
            "next" if row["reason_code"] == "not_attempted" => "-".into(),
            "next" => match (row["state"].as_str(), row["next_at_ms"].as_i64()) {
                (Some("pending"), Some(_)) => until(&row["next_at_ms"], now),
                (Some("pending"), None) => "now".into(),
                _ => "-".into(),
            },
            "reason" => text(&row["reason_code"]),
            other => text(&row[other]),
        },
    );
    if rows.len() == args.limit && !args.json {
        eprintln!("(the first {}; --limit shows more)", args.limit);
    }
    Ok(ExitCode::SUCCESS)
}

async fn one(path: &str, args: ShowArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let path = format!("{path}/{}?body={}", args.id, args.body);
    let found = admin.get(&path).await?;
    let (row, now) = (&found["row"], found["now_ms"].as_i64().unwrap_or(0));
    let mut members: Vec<(&str, String)> = [
        "id",
        "protocol",
        "peer",
        "event_type",
        "event_id",
        "msg_id",
        "out_seq",
        "order_key",
        "state",
        "attempts",
        "reason_code",
        "reason",
        "traceparent",
    ]
    .into_iter()
    .map(|name| (name, text(&row[name])))
    .collect();
    for (name, member) in [
        ("created", "created_ms"),
        ("first failed", "first_failed_ms"),
        ("expires", "expires_ms"),
        ("settled", "settled_ms"),
    ] {
        members.push((name, time(&row[member])));
    }
    if row["state"] == "pending" && row["reason_code"] != "not_attempted" {
        let next = match row["next_at_ms"].as_i64() {
            Some(_) => until(&row["next_at_ms"], now),
            None => "now".into(),
        };
        members.push(("next attempt", next));
    }
    show_one(&found, args.json, &members);
    if args.json {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(attempts) = found["attempts"].as_array().filter(|a| !a.is_empty()) {
        println!();
        show(
            attempts,
            false,
            &["attempt", "at", "took", "status", "code", "detail"],
            |attempt, column| match column {
                "attempt" => text(&attempt["number"]),
                "at" => time(&attempt["at_ms"]),
                "took" => format!("{} ms", text(&attempt["duration_ms"])),
                other => text(&attempt[other]),
            },
        );
    }
    if args.body {
        println!("\n{:#}", found["body"]);
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(path: &str, done: &str, args: BulkArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let mut sum = Sum::default();
    let mut after = 0;
    let progress = std::io::stderr().is_terminal() && !args.json;
    loop {
        let mut path = format!("{path}?after={after}{}", args.filters.query());
        for (name, on) in [("all", args.all), ("dry_run", args.dry_run)] {
            if on {
                path.push_str(&format!("&{name}=true"));
            }
        }
        if let Some(limit) = args.limit {
            path.push_str(&format!(
                "&limit={}",
                (limit - sum.matched).clamp(1, 100_000)
            ));
        }
        let answer = admin.post(&path, None).await?;
        sum.add(&answer);
        if progress {
            eprint!("\r{} {done}", sum.changed);
            let _ = std::io::stderr().flush();
        }
        match answer["next"].as_i64() {
            Some(next) if args.limit.is_none_or(|limit| sum.matched < limit) => after = next,
            _ => break,
        }
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    if args.json {
        println!("{}", sum.json(args.dry_run));
    } else if args.dry_run {
        println!("{} rows would be {done}", sum.matched);
    } else {
        println!("{} rows {done}", sum.changed);
    }
    if sum.expired > 0 && !args.json {
        println!(
            "{} left alone: their Fed-Expires is over, they would be dead at once",
            sum.expired
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Default)]
struct Sum {
    matched: u64,
    changed: u64,
    expired: u64,
}

impl Sum {
    fn add(&mut self, answer: &Value) {
        let of = |name: &str| answer[name].as_u64().unwrap_or(0);
        self.matched += of("matched");
        self.changed += of("changed");
        self.expired += of("expired");
    }

    fn json(&self, dry_run: bool) -> Value {
        serde_json::json!({
            "matched": self.matched,
            "changed": self.changed,
            "expired": self.expired,
            "dry_run": dry_run,
        })
    }
}
