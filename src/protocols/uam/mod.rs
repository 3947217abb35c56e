//! UAM.
pub mod address;
pub mod canonical;
pub mod envelope;
pub mod json;
mod number;
pub mod payload;
pub mod python;
pub mod relay_request;
pub mod time;
pub mod verify;
