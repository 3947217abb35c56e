//! `drawbridge streams …`: the streams as they are, beside `streams/*.json`; makes what is missing.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{ConfigArgs, Outcome, connect};
use crate::bus::{Bus, ManagedServer, StreamReport};

/// `drawbridge streams …`
#[derive(Debug, Subcommand)]
pub enum StreamsCommand {
    /// What each stream holds, and how.
    List(StreamsArgs),
    /// One stream, and what differs from its definition.
    Show(ShowArgs),
    /// What differs from the definitions; exit code 1 if something does.
    Diff(StreamsArgs),
    /// Make what is missing. Nothing that is there is changed.
    Apply(StreamsArgs),
    /// The broker's address as backends need it. Holds the managed server's password.
    Url(ConfigArgs),
}

/// Options of a list.
#[derive(Debug, Args)]
pub struct StreamsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Which stream.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// `FED_OUT` or the name under your prefix.
    stream: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Print the definition alone, as `nats stream add --config` takes it. Needs no broker.
    #[arg(long)]
    definition: bool,
}

/// Runs one of them.
pub async fn streams(command: StreamsCommand) -> Outcome {
    match command {
        StreamsCommand::List(args) => list(args).await,
        StreamsCommand::Show(args) => show(args).await,
        StreamsCommand::Diff(args) => diff(args).await,
        StreamsCommand::Apply(args) => apply(args).await,
        StreamsCommand::Url(args) => url(&args).await,
    }
}

async fn reports(config: &ConfigArgs) -> Result<(Bus, Vec<StreamReport>), String> {
    let bus = connect(&config.load()?).await?;
    let reports = bus.look_at_streams().await.map_err(|e| e.to_string())?;
    Ok((bus, reports))
}

async fn list(args: StreamsArgs) -> Outcome {
    let (_, reports) = reports(&args.config).await?;
    if args.json {
        println!("{}", json!({"streams": reports}));
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<16} {:>10} {:>12} {:>9} {:<8} {:>8}  state",
        "stream", "messages", "bytes", "consumers", "storage", "replicas"
    );
    for report in &reports {
        match &report.state {
            Some(s) => println!(
                "{:<16} {:>10} {:>12} {:>9} {:<8} {:>8}  {}",
                report.name,
                s.messages,
                s.bytes,
                s.consumers,
                s.storage,
                s.replicas,
                word(report)
            ),
            None => println!("{:<16} {}", report.name, word(report)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One word on a stream's state.
fn word(report: &StreamReport) -> &'static str {
    match report {
        StreamReport { state: None, .. } => "missing",
        StreamReport {
            broken: Some(_), ..
        } => "broken",
        StreamReport { differences, .. } if !differences.is_empty() => "differs",
        _ => "as defined",
    }
}

async fn show(args: ShowArgs) -> Outcome {
    if args.definition {
        let config = args.config.load()?;
        let definition = crate::bus::stream_definition(&args.stream, &config.nats)
            .map_err(|e| e.to_string())?
            .ok_or_else(|| unknown(&args.stream))?;
        println!("{definition:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let (_, reports) = reports(&args.config).await?;
    let report = reports
        .iter()
        .find(|r| r.name == args.stream || r.contract == args.stream)
        .ok_or_else(|| unknown(&args.stream))?;
    if args.json {
        println!("{}", json!(report));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}: {}", report.name, word(report));
    if let Some(s) = &report.state {
        println!(
            "  {} messages ({} bytes), sequence {} to {}, {} consumers, storage {}, replicas {}{}",
            s.messages,
            s.bytes,
            s.first_seq,
            s.last_seq,
            s.consumers,
            s.storage,
            s.replicas,
            s.leader
                .as_ref()
                .map_or_else(String::new, |l| format!(", leader {l}"))
        );
    }
    for line in report.broken.iter().chain(&report.differences) {
        println!("  {line}");
    }
    Ok(ExitCode::SUCCESS)
}

fn unknown(name: &str) -> String {
    format!("{name:?} is not one of our streams: FED_OUT, FED_IN, FED_HELD, FED_DEAD, FED_OPS")
}

async fn diff(args: StreamsArgs) -> Outcome {
    let (_, reports) = reports(&args.config).await?;
    let wrong: Vec<_> = reports.iter().filter(|r| word(r) != "as defined").collect();
    if args.json {
        println!("{}", json!({"streams": wrong}));
    } else {
        for report in &wrong {
            if report.state.is_none() {
                println!("stream {} does not exist", report.name);
            }
            for line in report.broken.iter().chain(&report.differences) {
                println!("{line}");
            }
        }
        if wrong.is_empty() {
            println!("every stream is as defined");
        }
    }
    Ok(ExitCode::from(u8::from(!wrong.is_empty())))
}

async fn apply(args: StreamsArgs) -> Outcome {
    let bus = connect(&args.config.load()?).await?;
    let made = bus
        .make_missing_streams()
        .await
        .map_err(|e| e.to_string())?;
    let reports = bus.look_at_streams().await.map_err(|e| e.to_string())?;
    if args.json {
        println!("{}", json!({"made": made, "streams": reports}));
    } else {
        for name in &made {
            println!("made {name}");
        }
        for report in &reports {
            for line in report.broken.iter().chain(&report.differences) {
                println!("{line}");
            }
        }
        if made.is_empty() {
            println!("nothing was missing");
        }
    }
    let broken = reports.iter().any(|r| r.broken.is_some());
    Ok(ExitCode::from(u8::from(broken)))
}

async fn url(args: &ConfigArgs) -> Outcome {
    let config = args.load()?;
    let url = match config.nats.shown_url() {
        Some(url) => url,
        None => ManagedServer::running_url(&config.nats.managed)
            .await
            .ok_or("no bridge with a managed server runs in this data_dir: start `drawbridge run` first")?,
    };
    println!("{url}");
    Ok(ExitCode::SUCCESS)
}
