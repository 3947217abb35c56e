//! Structured log lines on standard error, as text or JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{ConfigError, LogConfig};

/// Starts logging for the process. A second call changes nothing: the first setting stands.
pub fn init(config: &LogConfig) -> Result<(), ConfigError> {
    let filter: EnvFilter = directives(&config.level).parse().map_err(|e| {
        ConfigError(format!(
            "log.level is no filter: {e}; use error, warn, info, debug or trace"
        ))
    })?;
    let to_stderr = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if config.json {
        to_stderr.json().flatten_event(true).finish().try_init()
    } else {
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        to_stderr.with_ansi(colours).finish().try_init()
    };
    // Only "already started" can fail, as in a test binary or a demo that runs two bridges.
    drop(started);
    Ok(())
}

/// `debug` and `trace` mean ours; the libraries' inner lives are asked for by name.
fn directives(level: &str) -> String {
    match level.to_ascii_lowercase().as_str() {
        fine @ ("debug" | "trace") => format!("info,drawbridge={fine}"),
        _ => level.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fine_level_is_about_the_bridge_and_a_filter_stands_as_given() {
        assert_eq!(directives("DEBUG"), "info,drawbridge=debug");
        assert_eq!(directives("warn"), "warn");
        assert_eq!(directives("info,h2=trace"), "info,h2=trace");
    }
}
