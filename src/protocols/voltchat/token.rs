//! The token that proves a request.
