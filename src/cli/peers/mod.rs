//! `peers …`: the servers we know, through the admin API.

mod peering;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{AdminClient, AdminError};
use super::table::{age, printable, show, text};
use super::{ConfigArgs, Outcome};
use crate::admin::params::encode;

/// `drawbridge peers …`
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// The servers we know, pinned ones included.
    List(PeersArgs),
    /// One server: where each value came from, when, and what happens next.
    Show(PeerArgs),
    /// Asks another server to peer with us (VoltChat), or looks one up by its name (Paracord).
    Add(peering::AddArgs),
    /// Accepts a server, after a look at who asks, what stands there, and its keys' fingerprints.
    Accept(peering::AcceptArgs),
    /// Refuses a server until it is accepted after all.
    Reject(peering::PeeringArgs),
    /// Ends a peering; what still waits for the server is dead (`peer_removed`).
    Remove(peering::PeeringArgs),
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
    /// Over which protocol; left out, the one that knows it, uam first.
    #[arg(long)]
    protocol: Option<String>,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

impl PeerArgs {
    /// Its name as bridges keep it.
    fn name(&self) -> String {
        self.peer.trim().to_ascii_lowercase()
    }

    /// The protocol meant.
    async fn protocol(&self, admin: &AdminClient) -> Result<String, AdminError> {
        if let Some(protocol) = &self.protocol {
            return Ok(protocol.clone());
        }
        // 404: this peer is not known over it; 422: the bridge does not speak it at all.
        let status = match admin.get(&path(USUAL, &self.name())).await {
            Err(AdminError::Refused { status, .. }) if matches!(status, 404 | 422) => status,
            Err(error) => return Err(error),
            Ok(_) => return Ok(USUAL.to_owned()),
        };
        for one in peering::protocols() {
            if peering::one(admin, one, &self.name()).await?.is_some() {
                return Ok(one.to_owned());
            }
        }
        if status == 422 {
            // Known nowhere: the first that is spoken says so in its own words.
            for one in peering::protocols() {
                match admin.get(&path(one, &self.name())).await {
                    Err(AdminError::Refused { status: 422, .. }) => {}
                    _ => return Ok(one.to_owned()),
                }
            }
        }
        Ok(USUAL.to_owned())
    }
}

/// The protocol of a peer that nothing else is known of.
const USUAL: &str = "uam";

/// Where the admin API keeps one peer.
fn path(protocol: &str, name: &str) -> String {
    format!("/api/v1/peers/{}/{}", encode(protocol), encode(name))
}

/// Runs `peers …`.
pub async fn peers(command: PeersCommand) -> Outcome {
    match command {
        PeersCommand::List(args) => list(args).await,
        PeersCommand::Show(args) => one(args).await,
        PeersCommand::Add(args) => peering::add(args).await,
        PeersCommand::Accept(args) => peering::accept(args).await,
        PeersCommand::Reject(args) => peering::end(args, "peer.reject", "rejected").await,
        PeersCommand::Remove(args) => peering::end(args, "peer.remove", "removed").await,
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
    let protocol = args.protocol(&admin).await?;
    let path = format!("{}/{verb}", path(&protocol, &args.name()));
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
    let mut now_ms = 0;
    while rows.len() < args.limit {
        let page = (args.limit - rows.len()).min(1000);
        let path = format!(
            "/api/v1/peers?limit={page}&after={}{filters}",
            encode(&after)
        );
        let mut body = admin.get(&path).await?;
        now_ms = body["now_ms"].as_i64().unwrap_or(0);
        if let Value::Array(found) = body["peers"].take() {
            rows.extend(found);
        }
        match body["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    let peerings = match args.standing {
        None => peering::all(&admin, args.protocol.as_deref()).await?,
        // A standing is a matter of rules, which the rows above tell.
        Some(_) => Vec::new(),
    };
    let columns: &[&str] = match peerings.is_empty() {
        true => &[
            "protocol", "name", "state", "standing", "pending", "dead", "score", "from", "endpoint",
        ],
        false => &[
            "protocol",
            "name",
            "peering",
            "state",
            "standing",
            "pending",
            "dead",
            "direction",
            "last seen",
            "last error",
            "endpoint",
        ],
    };
    add_peerings(&mut rows, peerings);
    show(&rows, args.json, columns, |row, column| match column {
        "endpoint" => {
            let peering = &row["peering"];
            let known = [
                &row["endpoint"],
                &peering["url"],
                &peering["endpoint"],
                &row["pin"]["endpoint"],
            ];
            text(
                known
                    .into_iter()
                    .find(|at| !at.is_null())
                    .unwrap_or(&Value::Null),
            )
        }
        "from" => match &row["discovered_via"] {
            Value::Null if !row["pin"].is_null() => "config".into(),
            way => text(way),
        },
        "peering" if row["peering"].is_null() => "-".into(),
        "peering" => peering::state(&row["peering"]),
        "direction" => text(&row["peering"]["direction"]),
        "last seen" => match &row["peering"]["last_seen_ms"] {
            Value::Null => age(&millis(&row["peering"]["lastSeen"]), now_ms),
            at => age(at, now_ms),
        },
        "last error" => peering::last_error(&row["peering"]).map_or_else(|| "-".into(), printable),
        other => text(&row[other]),
    });
    Ok(ExitCode::SUCCESS)
}

/// Puts each peering to the row of its host, or into a row of its own, as the member `peering`.
fn add_peerings(rows: &mut Vec<Value>, peerings: Vec<(&str, Value)>) {
    for (protocol, peer) in peerings {
        let of = |row: &&mut Value| row["protocol"] == protocol && row["name"] == peer["host"];
        match rows.iter_mut().find(of) {
            Some(row) => row["peering"] = peer,
            None => {
                let name = peer["host"].clone();
                rows.push(json!({"protocol": protocol, "name": name, "peering": peer}));
            }
        }
    }
}

/// A time as the protocol writes it, in milliseconds since the epoch.
fn millis(time: &Value) -> Value {
    let at = time.as_str().and_then(|text| text.parse().ok());
    at.map_or(Value::Null, |at: jiff::Timestamp| {
        at.as_millisecond().into()
    })
}

async fn one(args: PeerArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let (protocol, name) = (args.protocol(&admin).await?, args.name());
    let peering = peering::one(&admin, &protocol, &name).await?;
    let mut peer = match admin.get(&path(&protocol, &name)).await {
        // A server that asked and was never sent anything is no more than its peering.
        Err(AdminError::Refused { status: 404, .. }) if peering.is_some() => {
            json!({"protocol": protocol, "name": name})
        }
        answer => answer?,
    };
    if let Some(peering) = peering {
        peer["peering"] = peering;
    }
    if args.json {
        println!("{peer}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} over {}", text(&peer["name"]), text(&peer["protocol"]));
    if !peer["peering"].is_null() {
        for line in peering::lines(&protocol, &peer["peering"]) {
            println!("  {line}");
        }
    }
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
