//! The routes on the public listener.

use std::sync::Arc;

use super::Paracord;

/// The routes on the public listener.
pub fn router(_p: Arc<Paracord>) -> axum::Router {
    axum::Router::new()
}
