//! Which hosts may peer with us.
