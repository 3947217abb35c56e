//! Runs of bad events in proven requests, and the quarantine that follows.

use crate::config::ParacordConfig;

/// What each server did wrong lately.
pub struct Conduct {}

impl Conduct {
    pub fn new(_config: &ParacordConfig) -> Self {
        Self {}
    }
}
