//! What went wrong on the way out, as a kind: by walking the chain of sources and looking at types,
//! never at texts.

use std::error::Error;
use std::io;

use super::guard::Forbidden;
use crate::protocol::{TransportError, TransportKind};

/// A name that did not resolve. Travels through the client as a source and is found again here.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{name} does not resolve: {detail}")]
pub(super) struct Unresolved {
    /// The name asked for.
    pub name: String,
    /// What the name servers said, or did not.
    pub detail: String,
}

/// A failure with this kind and sentence.
pub(super) fn failure(kind: TransportKind, detail: impl Into<String>) -> TransportError {
    TransportError {
        kind,
        detail: detail.into(),
    }
}

/// Sorts a failed exchange with `target` (host and port, for the sentence); `connecting`: there was
/// no connection yet.
pub(super) fn classify(
    error: &(dyn Error + 'static),
    connecting: bool,
    target: &str,
) -> TransportError {
    let kind = kind_of(error, connecting);
    let causes = causes(error);
    let sentence = match kind {
        TransportKind::Forbidden | TransportKind::Dns => causes,
        TransportKind::Connect => format!("cannot connect to {target}: {causes}"),
        TransportKind::Tls => format!("TLS with {target} failed: {causes}"),
        TransportKind::Timeout => format!("{target} did not answer in time: {causes}"),
        _ => format!("the connection to {target} broke: {causes}"),
    };
    failure(kind, sentence)
}

fn kind_of(error: &(dyn Error + 'static), connecting: bool) -> TransportKind {
    let found = chain(error).find_map(|cause| {
        if cause.is::<Forbidden>() {
            Some(TransportKind::Forbidden)
        } else if cause.is::<Unresolved>() {
            Some(TransportKind::Dns)
        } else if cause.is::<rustls::Error>() {
            Some(TransportKind::Tls)
        } else {
            None
        }
    });
    match found {
        Some(kind) => kind,
        None if timed_out(error) => TransportKind::Timeout,
        None if connecting => TransportKind::Connect,
        None => TransportKind::Broken,
    }
}

fn timed_out(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        let hyper = cause.downcast_ref::<hyper::Error>();
        io.is_some_and(|e| e.kind() == io::ErrorKind::TimedOut)
            || hyper.is_some_and(hyper::Error::is_timeout)
    })
}

/// The error and everything under it. An `io::Error` hides the error it wraps from `source()`, so
/// its inside is looked at too. Bounded, should a chain ever be circular.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause| {
        let cause: &'a (dyn Error + 'static) = *cause;
        match cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => cause.source(),
        }
    })
    .take(16)
}

/// The innermost cause as text, for people. The outer layers only repeat that the request failed.
fn causes(error: &(dyn Error + 'static)) -> String {
    chain(error)
        .last()
        .filter(|_| error.source().is_some())
        .map_or_else(|| "no further detail".to_owned(), |cause| cause.to_string())
}
