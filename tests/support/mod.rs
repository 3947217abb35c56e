//! What the integration tests share: real servers on free ports, in directories of their own.
#![allow(dead_code)]

pub mod door;
pub mod nats;
pub mod postgres;
