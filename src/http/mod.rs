//! The server skin (TLS, limits, drain) and the guarded client (pool, SSRF guard, timeouts).
//!
//! Outgoing: [`client`] sends, [`dial`] makes its connections, [`resolver`] finds addresses, [`guard`] judges them before anything
//! is dialled, [`failure`] turns what went wrong into a kind, [`inspect`] looks at each part of the
//! way by itself ([`certificate`]: what was shown there). Incoming: [`server`] accepts,
//! [`connection`] limits one connection, [`forwarded`] finds the client behind trusted proxies.
//! [`tls`] makes the settings of both sides; [`unrouted`] answers where no protocol has a route.

pub mod certificate;
pub mod client;
mod connection;
mod dial;
mod failure;
pub mod forwarded;
pub mod guard;
pub mod inspect;
mod resolver;
pub mod server;
pub mod tls;
pub mod unrouted;
pub mod written;
