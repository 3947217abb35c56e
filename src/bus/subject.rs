//! The one function that turns text into a subject token (design.md, section 1).

/// A token: `[a-z0-9:-]` kept, `.` written `_`, every other byte `=XX`; at most 128 characters
/// (longer: cut, with a hash).
pub fn token(_text: &str) -> String {
    todo!()
}

/// Reads a token back; `None` for a cut or malformed one.
pub fn untoken(_token: &str) -> Option<String> {
    todo!()
}
