//! Hexadecimal text: either case, exact length, digits only.
//!
//! The reference's reader also takes `+N` for a byte `0N` (sheet, 2). Ours does not: a signature has
//! two spellings of each letter and no others, and what remembers signatures remembers their bytes.

pub use crate::identity::unhex as decode;
