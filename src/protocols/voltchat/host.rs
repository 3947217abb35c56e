//! Host names and URLs.
