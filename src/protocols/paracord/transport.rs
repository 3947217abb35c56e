//! The signature of a request: what is signed, and what proves it (sheet, 3).
