//! One folder per protocol, and what their examinations of remote servers share.

mod examine;
pub mod net;
pub mod paracord;
mod plain;
mod room;
mod turns;
pub mod uam;
pub mod voltchat;
mod wire;

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
    /// What the page must hold to be ours.
    pub shows: Shows,
}

/// By what a page of ours is known.
#[derive(Clone, Debug)]
pub enum Shows {
    /// The public half of the key in the file, as base64.
    Key,
    /// The same in hex digits.
    HexKey,
    /// This text; the key in the file is nobody else's business.
    Text(String),
}

/// The faces of the protocols that are configured.
pub fn faces(config: &Config) -> Vec<Face> {
    let faces = [
        uam::face(&config.uam),
        voltchat::face(&config.voltchat),
        paracord::face(&config.paracord),
    ];
    faces.into_iter().flatten().collect()
}
