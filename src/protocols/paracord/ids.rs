//! Names on the wire: rooms, users, events (sheet, 1 and 4).

/// A room: `!<guild>:<server>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    /// Signed 64-bit.
    pub guild: i64,
    /// The server it lives on, lower case, trimmed.
    pub server: String,
}
