//! Invites, joins and leaves: asked of us ([`routes`]), and asked of others ([`remote`]); what a
//! backend says about those asked of us ([`backend`]).

mod backend;
mod remote;
mod routes;
#[cfg(test)]
mod tests;

pub use backend::Desk;
pub use remote::{ask_invite, ask_join, ask_leave};
pub use routes::{invite, join, leave};

use serde::{Deserialize, Serialize};

use super::request::Typed;

/// Body of an invite, in normal form's order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invite {
    pub origin_server: String,
    pub room_id: String,
    /// Who invites.
    pub sender: String,
    /// How long it is to hold, seconds.
    pub max_age_seconds: Option<i64>,
}

/// Body of a join or a leave, in normal form's order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Membership {
    pub origin_server: String,
    pub room_id: String,
    pub user_id: String,
}

impl Typed for Invite {
    fn origin(&self) -> Option<&str> {
        Some(&self.origin_server)
    }
}

impl Typed for Membership {
    fn origin(&self) -> Option<&str> {
        Some(&self.origin_server)
    }
}
