//! One accepted connection: its time limits, its requests' limits, its end.
//!
//! hyper knows a limit for reading a request head, but it also runs while a kept-alive connection
//! is idle, and none at all runs before the first bytes. So the connection keeps its own account
//! ([`Activity`]): waiting for a head, idle between requests, or busy; a timer that is re-armed only
//! when it fires asks the account whether time is up. A request costs no timer for this.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use ::http::{HeaderValue, Request, Response, StatusCode, Version};
use axum::Router;
use axum::body::Body;
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::forwarded::client_address;
use super::server::ClientAddr;
use super::written;
use crate::config::ListenConfig;
use crate::ops::defect;

/// Header fields of one request at most.
const MAX_HEADERS: usize = 100;
/// Requests of one HTTP/2 connection in hand at most.
const MAX_STREAMS: u32 = 128;
/// hyper reads heads into a buffer no smaller than this.
const MIN_HEAD: usize = 8 * 1024;
/// While requests are in hand the account is looked at this often.
const BUSY_LOOK: Duration = Duration::from_secs(1);

/// What all connections of a listener share.
pub(super) struct Shared {
    pub config: ListenConfig,
    pub router: Router,
    /// Finish what is in hand, take nothing new.
    pub drain: CancellationToken,
    /// End at once.
    pub kill: CancellationToken,
    pub builder: auto::Builder<TokioExecutor>,
}

/// hyper's settings by ours.
pub(super) fn builder(config: &ListenConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .max_headers(MAX_HEADERS)
        .max_buf_size(config.max_header_bytes.max(MIN_HEAD))
        .header_read_timeout(None);
    builder
        .http2()
        .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS);
    builder
}

/// Serves a connection until it ends, its time is up or the listener stops.
pub(super) async fn serve<S>(stream: S, peer: IpAddr, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::new());
    let left = written::Connection::default();
    let io = TokioIo::new(Watched {
        stream,
        activity: Arc::clone(&activity),
        left: left.clone(),
    });
    let service = {
        let shared = Arc::clone(&shared);
        let activity = Arc::clone(&activity);
        hyper::service::service_fn(move |request: Request<Incoming>| {
            let busy = Busy::new(&activity, request.version());
            let shared = Arc::clone(&shared);
            let left = left.clone();
            async move {
                let answer = answer(request, peer, left, &shared).await;
                drop(busy);
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let mut connection = pin!(shared.builder.serve_connection_with_upgrades(io, service));
    let mut look = pin!(tokio::time::sleep(shared.config.header_timeout));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(client = %peer, error = %error, "connection ended with an error");
                }
                return;
            }
            () = look.as_mut() => match activity.left(&shared.config) {
                Some(left) => look.as_mut().reset(tokio::time::Instant::now() + left),
                None => {
                    tracing::debug!(client = %peer, "connection closed: no request in time");
                    return;
                }
            },
            () = shared.drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = shared.kill.cancelled() => return,
        }
    }
}

/// One request through the listener's limits to the router.
async fn answer(
    request: Request<Incoming>,
    peer: IpAddr,
    left: written::Connection,
    shared: &Shared,
) -> Response<Body> {
    let config = &shared.config;
    if request.headers().len() > MAX_HEADERS {
        return refusal(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            "the request has too many header fields",
        );
    }
    let limit = config.max_body_bytes;
    if announced(&request).is_some_and(|length| length > limit as u64) {
        return refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            "the request's body is larger than this server takes",
        );
    }
    let client = client_address(peer, request.headers(), &config.trusted_proxies);
    let received = Arc::new(AtomicBool::new(false));
    let mut request = request.map(|body| {
        Body::new(Tracked {
            body: Limited::new(body, limit),
            received: Arc::clone(&received),
        })
    });
    if hyper::body::Body::is_end_stream(request.body()) {
        received.store(true, Ordering::Relaxed);
    }
    request.extensions_mut().insert(ClientAddr(client));
    request.extensions_mut().insert(left);
    let mut router = shared.router.clone();
    let work = defect::contained(router.call(request));
    match tokio::time::timeout(config.request_timeout, work).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(never))) => match never {},
        Ok(Err(defect)) => refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            &format!("the request was not answered: {defect}"),
        ),
        Err(_) if received.load(Ordering::Relaxed) => refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "timeout",
            "the request was not answered in time; try again later",
        ),
        Err(_) => refusal(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "the request did not arrive in time",
        ),
    }
}

fn announced<B>(request: &Request<B>) -> Option<u64> {
    request
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// A refusal by the listener itself. The connection closes after it: the rest of the request may
/// still be on its way.
fn refusal(status: StatusCode, code: &str, detail: &str) -> Response<Body> {
    let body = format!(r#"{{"error":"{code}","detail":"{detail}"}}"#);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What a connection is doing, and since when.
struct Activity {
    started: Instant,
    /// Requests in hand.
    busy: AtomicUsize,
    /// A head is awaited: nothing was answered yet, or bytes came after the last answer.
    head: AtomicBool,
    /// HTTP/2: bytes are no sign of a head.
    frames: AtomicBool,
    /// Milliseconds after `started` of the last change.
    since_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            busy: AtomicUsize::new(0),
            head: AtomicBool::new(true),
            frames: AtomicBool::new(false),
            since_ms: AtomicU64::new(0),
        }
    }

    fn touch(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since_ms.store(now, Ordering::Relaxed);
    }

    /// Bytes came in.
    fn read(&self) {
        if self.busy.load(Ordering::Relaxed) == 0
            && !self.frames.load(Ordering::Relaxed)
            && !self.head.swap(true, Ordering::Relaxed)
        {
            self.touch();
        }
    }

    /// Time left until the next look; `None`: time is up.
    fn left(&self, config: &ListenConfig) -> Option<Duration> {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return Some(BUSY_LOOK);
        }
        let allowed = if self.head.load(Ordering::Relaxed) {
            config.header_timeout
        } else {
            config.idle_timeout
        };
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        let left = (since + allowed).checked_sub(self.started.elapsed())?;
        // An idle connection may start a head at any moment, so the look is not further off than
        // that limit.
        Some(
            left.min(config.header_timeout)
                .max(Duration::from_millis(1)),
        )
    }
}

/// A request in hand; dropping it, answered or not, gives the connection back to waiting.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>, version: Version) -> Self {
        activity.busy.fetch_add(1, Ordering::Relaxed);
        activity.head.store(false, Ordering::Relaxed);
        if version == Version::HTTP_2 {
            activity.frames.store(true, Ordering::Relaxed);
        }
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stream, telling the account what moves.
struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    left: written::Connection,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.read();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.left.flushed();
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S> Watched<S> {
    /// A long answer that is still being taken is no idle connection.
    fn wrote(&self, polled: &Poll<io::Result<usize>>) {
        if matches!(polled, Poll::Ready(Ok(n)) if *n > 0)
            && !self.activity.head.load(Ordering::Relaxed)
        {
            self.activity.touch();
        }
    }
}

/// A request body that notes when it has been received whole.
struct Tracked {
    body: Limited<Incoming>,
    received: Arc<AtomicBool>,
}

impl hyper::body::Body for Tracked {
    type Data = bytes::Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.received.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
