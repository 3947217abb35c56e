//! One server we know.
