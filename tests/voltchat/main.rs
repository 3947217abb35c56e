//! VoltChat end to end: real bridges, a scripted mainline, and people who mean no good.

mod attacks;
mod bounds;
mod bridges;
mod mailbox;
mod peering;
mod script;
mod secrecy;

#[path = "../support"]
#[allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]
mod support {
    pub mod bridge;
    pub mod checker;
    pub mod mainline;
    pub mod nats;
    pub mod traffic;
    pub mod uam_client;
    pub mod volt_client;
    pub mod volt_world;
}
