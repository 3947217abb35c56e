//! What we say of ourselves to anybody: the discovery page and our keys (sheet, 2).
