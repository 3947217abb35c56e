//! Whether an answer has left: its last byte was taken by the system for the client's connection.
//!
//! It says nothing of the client having read it, only that nothing of it was still with us. On HTTP/2
//! the last frames may still wait for the client's window.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

/// Bytes handed over at once: a connection takes the next piece when it has room for it.
const PIECE: usize = 16 * 1024;

/// A connection's list of who wants to know; in the extensions of its requests.
#[derive(Clone, Debug, Default)]
pub struct Connection(Arc<Mutex<Vec<oneshot::Sender<()>>>>);

impl Connection {
    /// Everything written so far has left.
    pub(super) fn flushed(&self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tell in waiting.drain(..) {
            let _ = tell.send(()); // who asked may have gone
        }
    }

    fn expect(&self, tell: oneshot::Sender<()>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(tell);
    }
}

/// Resolves when the answer has left.
#[derive(Debug)]
pub struct Written(oneshot::Receiver<()>);

impl Written {
    /// False: the connection ended first.
    pub async fn wait(self) -> bool {
        self.0.await.is_ok()
    }
}

/// A body that tells when it has left by this connection; without one, when it was taken whole.
pub fn body(bytes: Bytes, connection: Option<&Connection>) -> (Body, Written) {
    let (tell, told) = oneshot::channel();
    let body = Told {
        left: bytes,
        connection: connection.cloned(),
        tell: Some(tell),
    };
    (Body::new(body), Written(told))
}

struct Told {
    left: Bytes,
    connection: Option<Connection>,
    tell: Option<oneshot::Sender<()>>,
}

impl hyper::body::Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let size = self.left.len().min(PIECE);
        let piece = self.left.split_to(size);
        if self.left.is_empty()
            && let Some(tell) = self.tell.take()
        {
            match &self.connection {
                // The piece is in the connection's buffer before that is next flushed.
                Some(connection) => connection.expect(tell),
                None => drop(tell.send(())),
            }
        }
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn an_answer_has_left_only_when_its_connection_was_flushed_after_its_last_piece() {
        let connection = Connection::default();
        let (mut body, written) = body(Bytes::from(vec![7; PIECE + 1]), Some(&connection));
        body.frame().await.unwrap().unwrap();
        connection.flushed();
        let mut told = written.0;
        assert!(told.try_recv().is_err(), "a piece of it is still here");
        body.frame().await.unwrap().unwrap();
        connection.flushed();
        assert!(told.try_recv().is_ok());
    }

    #[tokio::test]
    async fn an_answer_whose_connection_ends_has_not_left() {
        let connection = Connection::default();
        let (mut body, written) = body(Bytes::from_static(b"x"), Some(&connection));
        body.frame().await.unwrap().unwrap();
        drop((body, connection));
        assert!(!written.wait().await);
    }
}
