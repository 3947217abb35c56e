//! The server skin (TLS, limits, drain) and the guarded client (pool, SSRF guard, timeouts).
pub mod client;
pub mod server;
