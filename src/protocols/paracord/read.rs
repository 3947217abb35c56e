//! Rooms and events as other servers read them.
