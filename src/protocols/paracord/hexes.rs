//! Hexadecimal text: either case, exact length, digits only.
