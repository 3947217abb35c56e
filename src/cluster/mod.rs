//! Who serves what when several instances share one PostgreSQL database and one NATS.
//!
//! The outbound work is divided in units; each has one owner at a time, by a lease in the database.
//! What must hold, whoever is killed, frozen or cut off at any moment:
//!
//! - Nothing is written under a lease that is another's: the commit itself looks
//!   ([`Leases`](crate::store::Leases)).
//! - No attempt begins unless its lease is surely ours ([`tenure`]).
//! - A unit whose owner is gone is another's within ten seconds; one given back in good order at once.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`units`] | which unit a peer belongs to, which messages are a unit's |
//! | [`tenure`] | what this instance holds, for everything that works under a lease |
//! | [`deal`] | what to take and what to give back (pure) |
//! | [`one_owner`] | a protocol that one instance serves as a whole, as all see it |
//! | [`keeper`] | renews, takes, gives back |

pub mod deal;
pub mod keeper;
mod name;
pub mod one_owner;
pub mod tenure;
pub mod units;

pub use keeper::{Keeper, Turn};
pub use name::own as own_name;
pub use one_owner::OneOwner;
pub use tenure::{Held, Hold, Tenure};
pub use units::Units;
