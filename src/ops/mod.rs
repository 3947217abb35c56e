//! Metrics, operator events, logging, health, trace context.
//!
//! Nothing here is ever awaited on a message's path: counting is an atomic, an event is a
//! `try_send`, and what does not fit is dropped and counted.

mod events;
pub mod health;
pub mod log;
mod log_writer;
pub mod metrics;
pub mod trace;

pub use events::Ops;
