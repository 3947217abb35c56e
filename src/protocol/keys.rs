//! Our own keys, as far as the core and an operator see them.

use serde::Serialize;

use crate::clock::UnixMs;

/// One of our own keys; the secret half is the protocol's alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OwnKey {
    /// Which protocol signs with it.
    pub protocol: String,
    /// Whom it speaks for: our name in that protocol.
    pub name: String,
    /// What it is used for now.
    pub state: KeyState,
    /// Hex SHA-256 of the 32 key bytes.
    pub fingerprint: String,
    /// The key as the protocol publishes it.
    pub public_key: String,
    /// Since when it is in this state.
    pub since_ms: UnixMs,
    /// An old one: until when it still serves peers that have not noticed the new one.
    pub until_ms: Option<UnixMs>,
}

/// Where a key stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// Made, to be told to those who need it beforehand; nothing is signed with it yet.
    Next,
    /// What we publish and sign with.
    Active,
    /// Replaced; used for peers that have not noticed, until the overlap ends.
    Old,
}

/// What is asked of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Say what it would mean, change nothing.
    Plan,
    /// Make the next key, so that it can be told to peers' operators; sign with the present one.
    Prepare,
    /// Switch to the next key; the present one serves on for the overlap.
    Switch,
    /// Switch, and never use the present key again: it is no longer ours alone.
    Replace,
}
