//! `drawbridge check`: is there what the bridge needs, and does it do what it should?
//!
//! Looks at files, store, keys, listeners, broker, streams, durability, DNS, the public address as
//! others see it, and the clocks; whether a bridge runs or not. It takes no lock and changes nothing.
//! Each line is one thing looked at; the exit code is 0 only without a fault.

mod broker;
mod local;
mod outside;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::client::{AdminClient, AdminError};
use super::table::printable;
use super::{ConfigArgs, Outcome};
use crate::config::Config;
use crate::protocols;

/// What to look at.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object with all lines.
    #[arg(long)]
    json: bool,
}

/// What came of one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Works, but somebody should know.
    Warn,
    /// Does not work.
    Fault,
    /// Not looked at, and why.
    Skipped,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
struct Line {
    area: &'static str,
    item: String,
    state: State,
    detail: String,
}

/// The lines so far.
#[derive(Debug, Default)]
struct Report(Vec<Line>);

impl Report {
    fn add(&mut self, area: &'static str, item: &str, state: State, detail: impl Into<String>) {
        self.0.push(Line {
            area,
            item: item.to_owned(),
            state,
            detail: detail.into(),
        });
    }

    fn ok(&mut self, area: &'static str, item: &str, detail: impl Into<String>) {
        self.add(area, item, State::Ok, detail);
    }

    fn warn(&mut self, area: &'static str, item: &str, detail: impl Into<String>) {
        self.add(area, item, State::Warn, detail);
    }

    fn fault(&mut self, area: &'static str, item: &str, detail: impl Into<String>) {
        self.add(area, item, State::Fault, detail);
    }

    fn skip(&mut self, area: &'static str, item: &str, detail: impl Into<String>) {
        self.add(area, item, State::Skipped, detail);
    }

    fn count(&self, state: State) -> usize {
        self.0.iter().filter(|l| l.state == state).count()
    }

    fn show(&self, as_json: bool) {
        if as_json {
            let ok = self.count(State::Fault) == 0;
            println!("{}", json!({"ok": ok, "lines": self.0}));
            return;
        }
        let wide = |of: fn(&Line) -> usize| self.0.iter().map(of).max().unwrap_or(0);
        let (area, item) = (wide(|l| l.area.len()), wide(|l| l.item.chars().count()));
        for line in &self.0 {
            let mark = match line.state {
                State::Ok => "ok  ",
                State::Warn => "warn",
                State::Fault => "FAIL",
                State::Skipped => "-   ",
            };
            let detail = printable(&line.detail);
            println!("{mark} {:area$}  {:item$}  {detail}", line.area, line.item);
        }
        match (self.count(State::Fault), self.count(State::Warn)) {
            (0, 0) => println!("\nNo fault found."),
            (0, n) => println!("\nNo fault found; {n} to know about."),
            (n, _) => println!("\n{n} fault{}.", if n == 1 { "" } else { "s" }),
        }
    }
}

/// Whether a bridge with this configuration runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridge {
    Running,
    NotRunning,
    /// Something that is not ours answers where ours would.
    Stranger,
}

/// Looks at everything; exit code 0 only without a fault.
pub async fn check(args: CheckArgs) -> Outcome {
    let mut report = Report::default();
    match args.config.load() {
        Ok(config) => {
            report.ok("config", "read", "every setting is right");
            look(&config, &mut report).await;
        }
        Err(sentence) => report.fault("config", "read", sentence),
    }
    report.show(args.json);
    Ok(match report.count(State::Fault) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

async fn look(config: &Config, report: &mut Report) {
    let faces = protocols::faces(config);
    let bridge = running(config, report).await;
    if faces.is_empty() {
        report.warn("config", "protocols", "none is configured: set uam.domain");
    }
    local::files(config, report);
    local::keys(&faces, report);
    local::store(config, report).await;
    local::listeners(config, bridge, report);
    broker::broker(config, bridge, report).await;
    outside::outside(config, &faces, bridge, report).await;
}

/// Who answers at the admin address.
async fn running(config: &Config, report: &mut Report) -> Bridge {
    let said = match AdminClient::look(config, "/readyz").await {
        Ok(None) => {
            report.skip(
                "bridge",
                "runs",
                "no: what only a running one shows is skipped",
            );
            return Bridge::NotRunning;
        }
        Ok(Some((200 | 503, body))) if body["ready"].is_boolean() => body,
        Ok(Some((status, _))) => {
            let detail = format!("another program answers at the admin address ({status})");
            report.fault("bridge", "runs", detail);
            return Bridge::Stranger;
        }
        Err(detail) => {
            report.fault("bridge", "runs", detail);
            return Bridge::Stranger;
        }
    };
    // A bridge: but with our configuration?
    let known = match AdminClient::from_config(config) {
        Ok(client) => client.get("/api/v1/keys").await,
        Err(sentence) => {
            report.fault(
                "bridge",
                "runs",
                format!("another bridge than ours: {sentence}"),
            );
            return Bridge::Stranger;
        }
    };
    match known {
        Err(AdminError::Refused {
            status: 401 | 403, ..
        }) => {
            let detail = "a bridge answers at the admin address that does not know our token: it \
                          runs with another configuration or data_dir";
            report.fault("bridge", "runs", detail);
            return Bridge::Stranger;
        }
        Err(error) => report.fault("bridge", "admin API", error.to_string()),
        Ok(_) => report.ok("bridge", "runs", "yes, with this configuration"),
    }
    match said["reasons"].as_object().filter(|r| !r.is_empty()) {
        None => report.ok("bridge", "ready", "every part works"),
        Some(reasons) => {
            for (part, why) in reasons {
                report.fault("bridge", part, why.as_str().unwrap_or_default());
            }
        }
    }
    Bridge::Running
}
