//! What users of other federation servers asked for, each with the test that is named after it.
//!
//! A real nats-server, a real bridge, and peers that do as they are told.

#[path = "support/dns.rs"]
mod dns;
#[path = "support/nats.rs"]
#[allow(dead_code)]
mod nats;
#[path = "support/uam_client.rs"]
mod uam_client;

#[path = "outbound/peer.rs"]
#[allow(dead_code)]
mod peer;
#[path = "outbound/world.rs"]
#[allow(dead_code)]
mod world;

#[path = "support/bridge.rs"]
mod bridge;

#[path = "asks/catch_up.rs"]
mod catch_up;
#[path = "asks/memory.rs"]
mod memory;
#[path = "asks/names.rs"]
mod names;
#[path = "asks/trouble.rs"]
mod trouble;
