//! Intake from JetStream → lane per peer → attempt → outcome.
pub mod attempt;
pub mod lane;
pub mod outcome;
pub mod schedule;
pub mod shard;
