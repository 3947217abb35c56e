//! Start-up and shutdown.
