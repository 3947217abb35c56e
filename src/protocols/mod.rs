//! One folder per protocol, and what their examinations of remote servers share.

mod examine;
pub mod uam;
pub mod voltchat;

use std::path::PathBuf;

use crate::config::Config;

/// What a protocol shows the world about us, by the configuration alone: what `check` looks at.
#[derive(Clone, Debug)]
pub struct Face {
    pub protocol: &'static str,
    /// Our name in that protocol.
    pub name: String,
    /// A page of ours that other servers read.
    pub page: String,
    /// Where our SRV record would be; None: the protocol knows none.
    pub srv: Option<String>,
    /// The key file.
    pub key: PathBuf,
}

/// The faces of the protocols that are configured.
pub fn faces(config: &Config) -> Vec<Face> {
    uam::face(&config.uam).into_iter().collect()
}
