//! The checks in front of every signed route, in their order (sheet, 5).
