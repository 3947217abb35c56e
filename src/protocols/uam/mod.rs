//! UAM.
