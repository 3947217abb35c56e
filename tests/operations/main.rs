//! What operators rely on, against the bridge's own binary as a process, a real broker, real
//! signals and sockets.

#[path = "../support"]
mod support {
    pub mod bridge;
    pub mod sink;
    pub mod uam_client;
}

mod compose;
mod drain;
mod metrics;
mod reload;
mod secrets;
mod trace;
mod world;
