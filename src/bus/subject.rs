//! The one function that turns text into a subject token (design.md, section 1).
//!
//! Promises: total (any text makes a token), injective while not cut, and host names read back
//! exactly. Nothing else in the bridge makes subject tokens, so a peer's name can never smuggle in
//! a wildcard, a dot or a space.

use sha2::{Digest, Sha256};

/// Longest token, in characters (all of them ASCII).
pub const MAX_TOKEN: usize = 128;

/// Marks where a long token was cut; an escape is always followed by two hex digits, so no token
/// that was not cut holds it.
const CUT: &str = "==";

/// Hex digits of the hash behind [`CUT`].
const HASH_DIGITS: usize = 32;

const HEX_UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// A token: `[a-z0-9:-]` kept, `.` written `_`, every other byte `=XX`; at most 128 characters
/// (longer: cut, then `==` and the first 32 hex digits of the text's SHA-256). Empty text is `=`.
pub fn token(text: &str) -> String {
    if text.is_empty() {
        return "=".to_owned();
    }
    let mut out = String::with_capacity(text.len().min(MAX_TOKEN) + 3);
    // Where a cut may fall without splitting an escape.
    let mut safe = 0;
    for byte in text.bytes() {
        match byte {
            b if kept(b) => out.push(char::from(b)),
            b'.' => out.push('_'),
            b => {
                out.push('=');
                out.push(digit(HEX_UPPER, b >> 4));
                out.push(digit(HEX_UPPER, b));
            }
        }
        if out.len() <= MAX_TOKEN - CUT.len() - HASH_DIGITS {
            safe = out.len();
        }
        if out.len() > MAX_TOKEN {
            out.truncate(safe);
            out.push_str(CUT);
            out.extend(
                hex(&Sha256::digest(text.as_bytes()))
                    .chars()
                    .take(HASH_DIGITS),
            );
            return out;
        }
    }
    out
}

/// Reads a token back; `None` for a cut or malformed one, and for any spelling that [`token`]
/// would not have produced.
pub fn untoken(token: &str) -> Option<String> {
    if token == "=" {
        return Some(String::new());
    }
    if token.is_empty() || token.len() > MAX_TOKEN {
        return None;
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b if kept(b) => bytes.push(b),
            b'_' => bytes.push(b'.'),
            b'=' => {
                let value = (nibble(rest.next()?)? << 4) | nibble(rest.next()?)?;
                if kept(value) || value == b'.' {
                    return None;
                }
                bytes.push(value);
            }
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(digit(DIGITS, byte >> 4));
        out.push(digit(DIGITS, *byte));
    }
    out
}

/// The digit of the low four bits.
fn digit(digits: &[u8; 16], byte: u8) -> char {
    let found = digits.get(usize::from(byte & 15));
    found.map_or('0', |digit| char::from(*digit))
}

fn kept(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b':' | b'-')
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The outbound subjects that are stored as they came: with too few tokens for a partition. Not
/// `out.>`, which takes in the subjects of all others before they are transformed: a server (2.15.1
/// did) then keeps what their readers acknowledged, for the reader of this one might want it.
pub fn strays(prefix: &str) -> [String; 2] {
    [format!("{prefix}.out.*"), format!("{prefix}.out.*.*")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_host_name_with_a_port_is_written_as_the_contract_says() {
        assert_eq!(token("beta.com:8443"), "beta_com:8443");
        assert_eq!(untoken("beta_com:8443").as_deref(), Some("beta.com:8443"));
    }

    #[test]
    fn everything_that_has_a_meaning_in_a_subject_is_escaped() {
        assert_eq!(token("A_b *>\u{e9}"), "=41=5Fb=20=2A=3E=C3=A9");
    }

    #[test]
    fn empty_text_has_a_token_of_its_own() {
        assert_eq!(token(""), "=");
        assert_eq!(untoken("=").as_deref(), Some(""));
    }

    #[test]
    fn a_spelling_that_the_function_does_not_produce_is_not_read() {
        for bad in [
            "", "A", "=2e", "=2E", "=61", "=4", "=", "a b", "a.b", "=FF", "a==",
        ] {
            let read = untoken(bad);
            assert!(read.is_none() || bad == "=", "{bad:?} read as {read:?}");
        }
    }

    #[test]
    fn a_long_text_is_cut_with_a_hash_and_does_not_read_back() {
        let one = token(&"x".repeat(500));
        let other = token(&format!("{}y", "x".repeat(499)));
        assert_eq!((one.len(), other.len()), (MAX_TOKEN, MAX_TOKEN));
        assert_ne!(one, other);
        assert_eq!(untoken(&one), None);
    }

    #[test]
    fn a_text_that_just_fits_is_not_cut() {
        let text = "x".repeat(MAX_TOKEN);
        assert_eq!(token(&text), text);
    }

    proptest! {
        #[test]
        fn any_text_makes_a_token_that_is_safe_in_a_subject(text in any::<String>()) {
            let token = token(&text);
            prop_assert!(!token.is_empty() && token.len() <= MAX_TOKEN);
            prop_assert!(token.bytes().all(|b| kept(b) || matches!(b, b'_' | b'=' | b'A'..=b'F')));
        }

        #[test]
        fn a_token_that_was_not_cut_reads_back(text in "\\PC{0,40}") {
            let token = token(&text);
            if !token.contains(CUT) {
                prop_assert_eq!(untoken(&token), Some(text));
            }
        }

        #[test]
        fn a_token_that_reads_back_is_the_only_spelling(spelling in "[a-z0-9:_=A-F-]{1,30}") {
            if let Some(text) = untoken(&spelling) {
                prop_assert_eq!(token(&text), spelling);
            }
        }

        #[test]
        fn host_names_read_back(host in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,20}){0,3}(:[0-9]{1,5})?") {
            prop_assert_eq!(untoken(&token(&host)), Some(host));
        }
    }
}
