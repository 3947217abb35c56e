//! One folder per protocol.
pub mod uam;
