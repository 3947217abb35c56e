//! `drawbridge tail`: events as they arrive, one line each.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{ConfigArgs, Outcome, connect};
use crate::bus::{StoredMessage, TailFrom};

/// Which events.
#[derive(Debug, Args)]
pub struct TailArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// `in`, `dead`, `held`, `ops`, or a full subject filter such as `fed.in.uam.>`.
    #[arg(default_value = "in")]
    what: String,
    /// Begin with the oldest event held instead of new ones.
    #[arg(long)]
    all: bool,
    /// Stop after this many events.
    #[arg(long, short = 'n')]
    count: Option<u64>,
    /// One JSON object a line, with headers.
    #[arg(long)]
    json: bool,
}

/// Shows events until interrupted, or until `--count`.
pub async fn tail(args: TailArgs) -> Outcome {
    let config = args.config.load()?;
    let bus = connect(&config).await?;
    let filter = match args.what.as_str() {
        area @ ("in" | "dead" | "held" | "ops") => format!("{}.{area}.>", bus.prefix()),
        other => other.to_owned(),
    };
    let from = if args.all {
        TailFrom::All
    } else {
        TailFrom::New
    };
    let mut tail = bus.tail(&filter, from).await.map_err(|e| e.to_string())?;
    let mut seen = 0;
    while args.count.is_none_or(|n| seen < n) {
        let message = tail.next().await.map_err(|e| e.to_string())?;
        println!("{}", line(&message, args.json));
        seen += 1;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn line(message: &StoredMessage, as_json: bool) -> String {
    let payload = String::from_utf8_lossy(&message.payload);
    if as_json {
        let body = serde_json::from_slice::<Box<serde_json::value::RawValue>>(&message.payload);
        let headers: serde_json::Map<_, _> = message
            .headers
            .iter()
            .map(|(k, v)| (k.clone(), json!(v)))
            .collect();
        let mut object = json!({"seq": message.seq, "time_ms": message.time_ms, "subject": message.subject, "headers": headers});
        // A body that is not JSON is shown as text.
        object["payload"] = body.map_or_else(
            |_| json!(payload),
            |raw| serde_json::from_str(raw.get()).unwrap_or_else(|_| json!(raw.get())),
        );
        return object.to_string();
    }
    // Control characters of a stranger's event must not reach the terminal.
    let shown: String = payload
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("{} {} {shown}", message.seq, message.subject)
}
