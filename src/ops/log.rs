//! Structured log lines on standard error, as text or JSON.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, registry, reload};

use super::log_writer::Lines;
use crate::config::{ConfigError, LogConfig};

/// Where lines wait; set when logging started.
static LINES: OnceLock<Lines> = OnceLock::new();
/// The filter in force; set when logging started.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for the process. A second call changes nothing: the first setting stands.
pub fn init(config: &LogConfig) -> Result<(), ConfigError> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let writer = Lines::start()
        .map_err(|e| ConfigError(format!("the log's thread could not be started: {e}")))?;
    let lines = fmt::layer().with_writer(writer.clone());
    let lines = if config.json {
        lines.json().flatten_event(true).boxed()
    } else {
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        lines.with_ansi(colours).boxed()
    };
    // Only "already started" can fail, as in a test binary or a demo that runs two bridges.
    if registry().with(filter).with(lines).try_init().is_ok() {
        drop(FILTER.set(handle));
        drop(LINES.set(writer));
    }
    Ok(())
}

/// Writes the lines that wait; for the end of the process.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush();
    }
}

/// Whether [`set_level`] would take it.
pub fn check_level(level: &str) -> Result<(), ConfigError> {
    filter(level).map(drop)
}

/// Puts another level (or filter) in force. Where logging was started by somebody else it is left
/// as it is.
pub fn set_level(level: &str) -> Result<(), ConfigError> {
    let fresh = filter(level)?;
    match FILTER.get().map(|handle| handle.reload(fresh)) {
        None | Some(Ok(())) => Ok(()),
        Some(Err(e)) => Err(ConfigError(format!("log.level could not be changed: {e}"))),
    }
}

fn filter(level: &str) -> Result<EnvFilter, ConfigError> {
    directives(level).parse().map_err(|e| {
        ConfigError(format!(
            "log.level is no filter: {e}; use error, warn, info, debug or trace"
        ))
    })
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
