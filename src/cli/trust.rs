//! `trust …`: allow, block and quarantine, through the admin API.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::AdminClient;
use super::table::{age, show, text, time};
use super::{ConfigArgs, Outcome};
use crate::admin::params::encode;

/// `drawbridge trust …`
#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// The rules.
    List(ListArgs),
    /// Refuses a server, and sends it nothing. Wins over every other rule.
    Block(RuleArgs),
    /// Marks a server as trusted.
    Allow(RuleArgs),
    /// Holds what a server sends until it is released.
    Quarantine(RuleArgs),
    /// Takes a server out of quarantine, or off a list; what was held of it goes to the backends.
    Release(ReleaseArgs),
    /// What is held of quarantined servers.
    Held(HeldArgs),
}

/// Options of `trust list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Of this protocol.
    #[arg(long)]
    protocol: Option<String>,
    /// `block`, `allow` or `quarantine`.
    #[arg(long)]
    rule: Option<String>,
    /// Those whose time is over, too.
    #[arg(long)]
    ended: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Options of a rule.
#[derive(Debug, Args)]
pub struct RuleArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A server's name, or `*.example.org`: every server below it.
    pattern: String,
    /// Over which protocol; may be left out when the bridge speaks one.
    #[arg(long)]
    protocol: Option<String>,
    /// Why, for whoever reads the list.
    #[arg(long)]
    reason: Option<String>,
    /// Ends at this time, RFC 3339.
    #[arg(long, value_name = "TIME", conflicts_with = "lasting")]
    until: Option<String>,
    /// Ends after this time (`2h`, `7d`).
    #[arg(long = "for", value_name = "DURATION", id = "lasting")]
    lasting: Option<String>,
    /// The rule as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Options of `trust release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The name or suffix as it stands in the list.
    pattern: String,
    /// Over which protocol; may be left out when the bridge speaks one.
    #[arg(long)]
    protocol: Option<String>,
    /// Off this list (`block`, `allow`, `quarantine`); without it off block and quarantine.
    #[arg(long, conflicts_with = "drop")]
    rule: Option<String>,
    /// Forget what is held of it instead.
    #[arg(long)]
    drop: bool,
    /// The outcome as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Options of `trust held`.
#[derive(Debug, Args)]
pub struct HeldArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Runs `trust …`.
pub async fn trust(command: TrustCommand) -> Outcome {
    match command {
        TrustCommand::List(args) => list(args).await,
        TrustCommand::Block(args) => add("block", args).await,
        TrustCommand::Allow(args) => add("allow", args).await,
        TrustCommand::Quarantine(args) => add("quarantine", args).await,
        TrustCommand::Release(args) => release(args).await,
        TrustCommand::Held(args) => held(args).await,
    }
}

async fn held(args: HeldArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let mut body = admin.get("/api/v1/held").await?;
    let now = body["now_ms"].as_i64().unwrap_or(0);
    let held = match body["held"].take() {
        Value::Array(held) => held,
        _ => Vec::new(),
    };
    show(
        &held,
        args.json,
        &["protocol", "peer", "events", "bytes", "oldest"],
        |row, column| match column {
            "oldest" => age(&row["oldest_ms"], now),
            other => text(&row[other]),
        },
    );
    Ok(ExitCode::SUCCESS)
}

async fn list(args: ListArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let mut path = format!("/api/v1/trust?ended={}", args.ended);
    for (name, value) in [("protocol", &args.protocol), ("rule", &args.rule)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", encode(value)));
        }
    }
    let mut body = admin.get(&path).await?;
    let rules = match body["rules"].take() {
        Value::Array(rules) => rules,
        _ => Vec::new(),
    };
    show(
        &rules,
        args.json,
        &["protocol", "rule", "pattern", "since", "until", "reason"],
        |rule, column| match column {
            "since" => time(&rule["created_ms"]),
            "until" if rule["in_force"] == false => "ended".into(),
            "until" => time(&rule["ends_ms"]),
            other => text(&rule[other]),
        },
    );
    Ok(ExitCode::SUCCESS)
}

async fn add(rule: &str, args: RuleArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let mut body = json!({"rule": rule, "pattern": args.pattern});
    for (name, value) in [
        ("protocol", args.protocol),
        ("reason", args.reason),
        ("until", args.until),
        ("for", args.lasting),
    ] {
        if let Some(value) = value {
            body[name] = value.into();
        }
    }
    let answer = admin.post("/api/v1/trust", Some(&body)).await?;
    let added = &answer["rule"];
    if args.json {
        println!("{added}");
        return Ok(ExitCode::SUCCESS);
    }
    let end = match added["ends_ms"].as_i64() {
        Some(_) => format!("until {}", time(&added["ends_ms"])),
        None => "without an end".into(),
    };
    let again = if answer["new"] == true {
        ""
    } else {
        " (replaced)"
    };
    println!(
        "{rule} {} over {} {end}{again}",
        text(&added["pattern"]),
        text(&added["protocol"])
    );
    Ok(ExitCode::SUCCESS)
}

async fn release(args: ReleaseArgs) -> Outcome {
    let admin = AdminClient::from_config(&args.config.load()?)?;
    let mut body = json!({"pattern": args.pattern, "drop": args.drop});
    for (name, value) in [("protocol", args.protocol), ("rule", args.rule)] {
        if let Some(value) = value {
            body[name] = value.into();
        }
    }
    let answer = admin.post("/api/v1/trust/release", Some(&body)).await?;
    if args.json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    for rule in answer["removed"].as_array().into_iter().flatten() {
        println!(
            "{} {} over {} is off the list",
            text(&rule["rule"]),
            text(&rule["pattern"]),
            text(&rule["protocol"])
        );
    }
    for (name, word) in [("released", "let in"), ("dropped", "forgotten")] {
        if answer[name].as_u64().unwrap_or(0) > 0 {
            println!("{} held events {word}", answer[name]);
        }
    }
    if !answer["still"].is_null() {
        println!(
            "the rule {} {} still speaks of it",
            text(&answer["still"]["rule"]),
            text(&answer["still"]["pattern"])
        );
    }
    Ok(ExitCode::SUCCESS)
}
