//! `peers …`: the servers we know, through the admin API.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::AdminClient;
use super::table::{printable, show, text};
use super::{ConfigArgs, Outcome};
use crate::admin::params::encode;

/// `drawbridge peers …`
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// The servers we know, pinned ones included.
    List(PeersArgs),
    /// One server: where each value came from, when, and what happens next.
    Show(PeerArgs),
    /// Attempts nothing until it is resumed; what is sent meanwhile waits.
    Pause(PauseArgs),
    /// Ends a pause.
    Resume(PeerArgs),
    /// One attempt now, even while the server is backing off.
    Probe(PeerArgs),
    /// Forgets the server's failures.
    Reset(PeerArgs),
    /// Makes everything that waits for a retry due now.
    Flush(PeerArgs),
}

/// Options of `peers pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    peer: PeerArgs,
    /// Why, for whoever looks.
    #[arg(long)]
    reason: Option<String>,
    /// Ends at this time, RFC 3339.
    #[arg(long, value_name = "TIME", conflicts_with = "lasting")]
    until: Option<String>,
    /// Ends after this time (`2h`, `7d`).
    #[arg(long = "for", value_name = "DURATION", id = "lasting")]
    lasting: Option<String>,
}

/// Options of `peers list`.
#[derive(Debug, Args)]
pub struct PeersArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Of this protocol.
    #[arg(long)]
    protocol: Option<String>,
    /// `blocked`, `quarantined`, `allowed` or `ordinary`.
    #[arg(long)]
    standing: Option<String>,
    /// At most this many.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Which peer.
#[derive(Debug, Args)]
pub struct PeerArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Its name, such as `relay.example.org`.
    peer: String,
    /// Over which protocol.
    #[arg(long, default_value = "uam")]
    protocol: String,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

impl PeerArgs {
    fn path(&self) -> String {
        format!(
            "/api/v1/peers/{}/{}",
            encode(&self.protocol),
            encode(&self.peer)
        )
    }
}

/// Runs `peers …`.
pub async fn peers(command: PeersCommand) -> Outcome {
    match command {
        PeersCommand::List(args) => list(args).await,
        PeersCommand::Show(args) => one(args).await,
        PeersCommand::Pause(args) => {
            let mut body = json!({});
            for (name, value) in [
                ("reason", args.reason),
                ("until", args.until),
                ("for", args.lasting),
            ] {
                if let Some(value) = value {
                    body[name] = value.into();
                }
            }
            order(args.peer, "pause", "paused", Some(&body)).await
        }
        PeersCommand::Resume(args) => order(args, "resume", "resumed", None).await,
        PeersCommand::Probe(args) => order(args, "probe", "probed", None).await,
        PeersCommand::Reset(args) => order(args, "reset", "reset", None).await,
        PeersCommand::Flush(args) => order(args, "flush", "flushed", None).await,
    }
}

async fn order(args: PeerArgs, verb: &str, done: &str, body: Option<&Value>) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let path = format!("{}/{verb}", args.path());
    let answer = admin.post(&path, body).await?;
    if args.json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let outlook = &answer["outlook"];
    let name = text(&outlook["peer"]);
    match (answer["probed"].as_str(), answer["rows"].as_u64()) {
        (Some("nothing_waits"), _) => {
            println!("nothing waits for {name}, so there is no message to try it with");
        }
        (Some(_), _) => println!("{name}: one attempt goes as soon as none is in flight"),
        (None, Some(rows)) => println!("{name}: {rows} messages are due now"),
        (None, None) => println!("{name} is {done}"),
    }
    println!(
        "  state {}, {} in flight, next: {}",
        text(&outlook["state"]),
        outlook["in_flight"],
        printable(&text(&outlook["next_why"]))
    );
    Ok(ExitCode::SUCCESS)
}

async fn list(args: PeersArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let mut filters = String::new();
    for (name, value) in [("protocol", &args.protocol), ("standing", &args.standing)] {
        if let Some(value) = value {
            filters.push_str(&format!("&{name}={}", encode(value)));
        }
    }
    let mut rows: Vec<Value> = Vec::new();
    let mut after = String::new();
    while rows.len() < args.limit {
        let page = (args.limit - rows.len()).min(1000);
        let path = format!(
            "/api/v1/peers?limit={page}&after={}{filters}",
            encode(&after)
        );
        let mut body = admin.get(&path).await?;
        if let Value::Array(found) = body["peers"].take() {
            rows.extend(found);
        }
        match body["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    show(
        &rows,
        args.json,
        &[
            "protocol", "name", "state", "standing", "pending", "dead", "score", "from", "endpoint",
        ],
        |row, column| match column {
            "endpoint" => match &row["endpoint"] {
                Value::Null => text(&row["pin"]["endpoint"]),
                endpoint => text(endpoint),
            },
            "from" => match &row["discovered_via"] {
                Value::Null if !row["pin"].is_null() => "config".into(),
                way => text(way),
            },
            other => text(&row[other]),
        },
    );
    Ok(ExitCode::SUCCESS)
}

async fn one(args: PeerArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let peer = admin.get(&args.path()).await?;
    if args.json {
        println!("{peer}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} over {}", text(&peer["name"]), text(&peer["protocol"]));
    if let Some(fingerprint) = peer["fingerprint"].as_str() {
        println!("  Fingerprint {fingerprint}");
    }
    for line in peer["explanation"].as_array().into_iter().flatten() {
        println!("  {}", printable(&text(line)));
    }
    if let Some(facts) = peer["facts"].as_object().filter(|f| !f.is_empty()) {
        println!("  Learned:");
        for (name, value) in facts {
            println!("    {name} = {}", printable(&text(value)));
        }
    }
    Ok(ExitCode::SUCCESS)
}
