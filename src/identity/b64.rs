//! Base64 as the UAM relays read and write it: written URL-safe without padding, read in either
//! alphabet, with right padding or none. No other character passes, no line break, no white space.
//! Stray low bits in the last character are ignored, as every reader of the field does.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that is not base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not base64 (either alphabet, padding right or absent, no other character)")]
pub struct BadBase64;

/// URL-safe, without padding.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads either alphabet, padded rightly or not at all.
pub fn decode(text: &str) -> Result<Vec<u8>, BadBase64> {
    let bare = text.trim_end_matches('=');
    if bare.len() != text.len() && !text.len().is_multiple_of(4) {
        return Err(BadBase64);
    }
    if text.bytes().any(|b| matches!(b, b'+' | b'/')) {
        LENIENT.decode(text.replace('+', "-").replace('/', "_"))
    } else {
        LENIENT.decode(text)
    }
    .map_err(|_| BadBase64)
}

/// The same for a value of known length, such as a key.
pub fn decode_array<const N: usize>(text: &str) -> Result<[u8; N], BadBase64> {
    decode(text)?.try_into().map_err(|_| BadBase64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_alphabet_and_optional_padding_are_read() {
        for text in ["-_8", "-_8=", "+/8", "+/8=", "-_9"] {
            assert_eq!(decode(text), Ok(vec![0xfb, 0xff]), "{text}");
        }
        assert_eq!(decode(""), Ok(vec![]));
    }

    #[test]
    fn foreign_characters_and_wrong_padding_are_refused() {
        for text in [
            "-_\n8=", " -_8", "-_8==", "-_8===", "=", "AAAAA", "A", "-=_8", "éA",
        ] {
            assert_eq!(decode(text), Err(BadBase64), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_url_safe_and_unpadded() {
        assert_eq!(encode([0xfb, 0xff]), "-_8");
    }
}
