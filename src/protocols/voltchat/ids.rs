//! Ids, relay types, reserved keys.
