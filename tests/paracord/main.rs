//! Paracord end to end: real bridges, a scripted reference server, and people who mean no good.

mod attacks;
mod bridges;
mod federation;
mod pace;
mod reading;
mod script;
mod trust;

#[path = "../support"]
#[allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]
mod support {
    pub mod bridge;
    pub mod checker;
    pub mod nats;
    pub mod para_world;
    pub mod paracord_client;
    pub mod reference;
    pub mod traffic;
    pub mod uam_client;
}
