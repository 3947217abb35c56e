//! A peer's health as a pure function of facts and the time.
