//! Hexadecimal text: either case, exact length, digits only.
//!
//! The reference's reader also takes `+N` for a byte (sheet, 2); ours does not, so that one signature
//! has two spellings of each letter and no others. What remembers a signature remembers its bytes.

/// The bytes of a text of exactly `2 * N` hex digits; None: anything else.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N.checked_mul(2)? {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().try_fold(0u8, |sum, digit| {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                b'A'..=b'F' => digit - b'A' + 10,
                _ => return None,
            };
            Some(sum << 4 | value)
        })?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_case_is_read_and_the_bytes_are_the_same() {
        assert_eq!(decode::<3>("00aBfF"), Some([0, 0xab, 0xff]));
        assert_eq!(decode::<0>(""), Some([]));
    }

    #[test]
    fn a_sign_a_space_and_any_other_length_are_refused() {
        for text in [
            "+1ff", " 1ff", "1ff ", "0x1f", "1ff", "1fff0", "1ff", "é1f", "ｆｆ",
        ] {
            assert_eq!(decode::<2>(text), None, "{text:?}");
        }
    }
}
