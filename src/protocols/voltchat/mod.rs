//! VoltChat: mainline servers that push, fetch and ping over HTTPS, each pair of them sharing one
//! secret.
//!
//! A bridge is a peer with its own host name. It serves `/relay/push` and `/relay/fetch` and proves
//! itself by a token made with the secret it shares with the peer.

pub mod allow;
pub mod host;
pub mod ids;
pub mod invites;
pub mod text;
pub mod token;

use crate::protocol::ProtocolId;

/// Its name in subjects, tables and settings.
pub const ID: ProtocolId = "voltchat";
