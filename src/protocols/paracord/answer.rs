//! Answers and refusals in the protocol's own words (sheet, 5).
