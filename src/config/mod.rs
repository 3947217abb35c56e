//! The typed configuration.
//!
//! `config/drawbridge.toml` is documentation, lowest layer and test fixture in one: it names every
//! key, so a key that is not in it is unknown. Layers: that file, then the file given, then the
//! environment. Everything is read and judged once, at start; a mistake is one sentence that names
//! where it stands, the key, what is allowed and what was found.
//!
//! [`secret`] is the rule for files that hold one, [`context`] reads the `nats` command's contexts.
//! [`mainline`] makes a section of a VoltChat server's own file.
//! [`layers`] merges and remembers which layer a value came from, [`env`] turns variables into a
//! layer, [`read`] reads one value of one kind, [`build`] puts them together and checks what
//! concerns several keys, [`given`] tells one reading from another.

mod build;
mod context;
mod env;
mod given;
mod layers;
pub mod mainline;
mod model;
mod nats;
mod paracord;
mod read;
mod secret;
mod store;
mod voltchat;

use std::path::Path;

pub use model::*;
pub use nats::shown;
pub use read::parse_duration;
pub use secret::{mounted, private, read_secret};
pub use store::{PostgresUrl, Retention, StoreConfig, StorePlace};

/// The commented default file.
pub const DEFAULT_TOML: &str = include_str!("../../config/drawbridge.toml");

/// A setting that is wrong: a sentence that names the key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// Built-in defaults (the commented file), then `file`, then the environment given
    /// (`std::env::vars` of the process; names that are no settings are passed over).
    pub fn load(file: Option<&Path>, env: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut layers = layers::Layers::defaults()?;
        layers.set_homes(env);
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|e| {
                ConfigError(format!(
                    "the configuration file {} cannot be read: {e}",
                    path.display()
                ))
            })?;
            layers.add_text(&text, &path.display().to_string())?;
        }
        env::apply(&mut layers, env)?;
        build::config(&layers)
    }

    /// The same from text, without the environment: defaults, then `text`.
    pub fn from_text(text: &str) -> Result<Self, ConfigError> {
        let mut layers = layers::Layers::defaults()?;
        layers.add_text(text, "configuration")?;
        build::config(&layers)
    }
}
