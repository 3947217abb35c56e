//! Metrics, operator events, logging, health, trace context, and what becomes of a panic.
//!
//! Nothing here is ever awaited on a message's path: counting is an atomic, an event is a
//! `try_send`, and what does not fit is dropped and counted.

pub mod defect;
mod events;
pub mod health;
pub mod log;
mod log_writer;
pub mod metrics;
pub mod trace;

pub use events::Ops;
