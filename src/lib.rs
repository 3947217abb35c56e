//! Drawbridge: a federation bridge between NATS and remote servers that speak HTTP.
//!
//! The map. A room may look down this list, never up:
//!
//! | room | what it does |
//! | --- | --- |
//! | [`cli`] | one file per command |
//! | [`app`] | start-up and shutdown, top to bottom |
//! | [`admin`] | health, readiness, metrics and the admin API |
//! | [`protocols`] | one folder per protocol: wire types, seal and sign, verify, routes |
//! | [`outbound`] | intake from JetStream, a lane per peer, attempts, outcomes |
//! | [`inbound`] | the gate and the one door to `fed.in` |
//! | [`peers`] | who we know: registry, discovery, health |
//! | [`trust`] | allow and block rules, reputation, rates |
//! | [`identity`] | Ed25519 keys and the proof that a signature held |
//! | [`store`] | SQL behind one group-commit writer |
//! | [`bus`] | NATS: connection, streams, pull, publish, ask, the managed server |
//! | [`http`] | the server skin and the guarded client |
//! | [`protocol`] | the seam: the trait and the plain types that core and protocols share |
//! | [`ops`] | metrics, operator events, logging |
//! | [`config`] | the typed configuration |
//! | [`faults`] | promises broken on purpose, for the crash test only (feature `faults`) |

pub mod admin;
pub mod app;
pub mod bus;
pub mod cli;
pub mod clock;
pub mod config;
pub mod faults;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod ops;
pub mod outbound;
pub mod peers;
pub mod protocol;
pub mod protocols;
mod retry;
pub mod store;
pub mod trust;
