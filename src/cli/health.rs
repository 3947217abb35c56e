//! `drawbridge health`: asks the bridge of a configuration how it is, for health checks in places
//! where there is no other program to ask with (a container image that holds nothing but ours).

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::AdminClient;
use super::{ConfigArgs, Outcome};

/// A health check that takes longer is one that failed.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Ask whether it is ready for work (/readyz); without it: whether it moves on (/healthz).
    #[arg(long)]
    ready: bool,
}

/// Exit code 0 when it is well, 1 with the reasons when it is not or does not answer.
pub async fn health(args: HealthArgs) -> Outcome {
    let config = args.config.load()?;
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let asked = AdminClient::look(&config, path);
    let (status, body) = tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_| format!("{path}: no answer within {} s", PATIENCE.as_secs()))??
        .ok_or("no bridge answers under this configuration: it is not running")?;
    if status == 200 {
        println!("{}", if args.ready { "ready" } else { "alive" });
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!("{path} answers {status}: {}", reasons(&body)))
}

/// What the answer says is wrong, in one line.
fn reasons(body: &Value) -> String {
    if let Some(by_part) = body["reasons"].as_object() {
        let one = |(part, why): (&String, &Value)| {
            format!("{part}: {}", why.as_str().unwrap_or("unwell"))
        };
        return by_part.iter().map(one).collect::<Vec<_>>().join("; ");
    }
    body["reason"].as_str().unwrap_or("unwell").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wrong_is_said_part_by_part() {
        let red = json!({"ready": false, "reasons": {"bus": "not connected", "store": "full"}});
        assert_eq!(reasons(&red), "bus: not connected; store: full");
        assert_eq!(
            reasons(&json!({"status": "stuck", "reason": "no progress"})),
            "no progress"
        );
        assert_eq!(reasons(&Value::Null), "unwell");
    }
}
