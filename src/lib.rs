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
//! | [`cluster`] | who serves what, when several instances share a database |
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
//! | `fuzzing` | what the fuzzers call (feature `fuzzing`) |

// What strangers send leads to no panic: the ways to one are errors of the lints. (What becomes of one
// all the same: [`ops::defect`].) Commands may take a JSON answer of our own by its members' names.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::todo,
        clippy::unimplemented,
        clippy::unreachable,
        clippy::unwrap_used,
    )
)]

pub mod admin;
pub mod app;
pub mod bus;
#[allow(clippy::indexing_slicing, clippy::string_slice)]
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod faults;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
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
