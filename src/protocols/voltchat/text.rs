//! Text as ECMAScript measures and trims it.
