//! temporary
use crate::protocol::Step;
pub struct Context {
    pub own_domain: Option<String>,
    pub now_ms: i64,
    pub max_age: std::time::Duration,
    pub max_hops: i64,
    pub relay_key: Option<String>,
    pub agent_key: Option<String>,
}
pub fn explain(_: &[u8], _: &Context) -> Vec<Step> {
    Vec::new()
}
