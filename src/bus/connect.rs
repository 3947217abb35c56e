//! The connection: made with patience, kept for ever, and only to a broker that can keep the
//! promises.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Bus, BusError, BusErrorKind, Inner, Link, earlier, login, publish};
use crate::config::{NatsConfig, NatsLogin};
use crate::retry::{self, Failure};

/// Subject transforms and several filter subjects, both needed, came with this version.
const OLDEST: Version = Version(2, 10, 0);

/// Before this, a work queue could lose messages or redeliver acknowledged ones after a restart.
const ADVISED: Version = Version(2, 12, 3);

/// The client lets go of a server that left three of these in a row unanswered: in a cluster another one
/// serves meanwhile, and nothing tells us of a machine that stands still.
const PING_EVERY: Duration = Duration::from_secs(3);

/// Notices waiting to be sent at most; further ones are dropped and counted.
const NOTICES: usize = 4096;

impl Bus {
    /// Connects (retrying with `backoff` until `NatsConfig::connect_timeout`), checks the version.
    /// `NatsConfig::url` must be set: for the managed server, to [`super::ManagedServer::url`].
    pub async fn connect(config: &NatsConfig) -> Result<Self, BusError> {
        check_prefix(&config.prefix)?;
        let target = login::target(config)?;
        login::check(config, &target.login)?;
        let (link_in, link) = watch::channel(Link::default());
        let (connected_in, connected) = watch::channel(true);
        let (trouble_in, trouble) = watch::channel(None);
        let watchers = Arc::new((link_in, connected_in, trouble_in));
        let shown = config.shown_url().unwrap_or_default();
        let client = retry::until(config.connect_timeout, || {
            let options = options(config, &target.login, &watchers);
            let addresses = target.addresses.clone();
            let shown = &shown;
            async move {
                options
                    .connect(addresses)
                    .await
                    .map_err(|e| judge(&e, shown))
            }
        })
        .await?;
        check_version(&client.server_info().version)?;

        let js = jetstream(config, &client);
        let closed = CancellationToken::new();
        let dropped = Arc::new(AtomicU64::new(0));
        let (notices, queue) = mpsc::channel(NOTICES);
        tokio::spawn(publish::send_notices(client.clone(), queue, closed.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                js,
                window: Arc::new(Semaphore::new(config.publish_window.max(1))),
                config: config.clone(),
                link,
                connected,
                trouble,
                notices,
                notices_dropped: dropped,
                made: earlier::Made::default(),
                closed,
            }),
        })
    }
}

/// JetStream under the domain or prefix that was asked for.
fn jetstream(config: &NatsConfig, client: &async_nats::Client) -> jetstream::Context {
    let prefix = match (&config.jetstream_domain, &config.jetstream_api_prefix) {
        (Some(domain), _) => format!("$JS.{domain}.API"),
        (None, Some(prefix)) => prefix.clone(),
        (None, None) => "$JS.API".to_owned(),
    };
    let mut js = jetstream::ContextBuilder::new()
        .timeout(config.request_timeout)
        .ack_timeout(config.request_timeout)
        .backpressure_on_inflight(true)
        .api_prefix(prefix)
        .build(client.clone());
    js.set_timeout(config.request_timeout);
    js
}

/// What is told about the connection: how often it was lost, whether it is there, and why not.
type Watchers = Arc<(
    watch::Sender<Link>,
    watch::Sender<bool>,
    watch::Sender<Option<String>>,
)>;

fn options(config: &NatsConfig, login: &NatsLogin, watchers: &Watchers) -> ConnectOptions {
    let watchers = Arc::clone(watchers);
    login::options(config, login)
        .name("drawbridge")
        .custom_inbox_prefix(&config.inbox_prefix)
        .connection_timeout(config.connect_timeout.min(Duration::from_secs(5)))
        .request_timeout(Some(config.request_timeout))
        .ping_interval(PING_EVERY)
        .max_reconnects(None)
        .reconnect_delay_callback(retry::reconnect_delay)
        .event_callback(move |event| {
            match &event {
                Event::Connected => {
                    watchers.2.send_replace(None);
                    watchers.1.send_replace(true);
                    tracing::info!("nats: connected");
                }
                Event::Disconnected => {
                    watchers.0.send_modify(|link| link.losses += 1);
                    watchers.1.send_replace(false);
                    tracing::warn!("nats: connection lost; trying to get it back");
                }
                // A reconnect that failed says this at each try: once is enough for the log.
                Event::ClientError(error) => {
                    let said = error.to_string();
                    let new = watchers.2.send_if_modified(|last| {
                        let new = last.as_ref() != Some(&said);
                        *last = Some(said.clone());
                        new
                    });
                    if new {
                        tracing::warn!("nats: {said}; trying again");
                    }
                }
                Event::SlowConsumer(_) | Event::ServerError(_) => {
                    tracing::warn!("nats: {event}");
                }
                Event::LameDuckMode | Event::Draining | Event::Closed => {
                    tracing::info!("nats: {event}");
                }
            }
            std::future::ready(())
        })
}

fn judge(error: &async_nats::ConnectError, url: &str) -> Failure<BusError> {
    let wrong = |what: String| Failure::Final(BusError::new(BusErrorKind::Config, what));
    match error.kind() {
        ConnectErrorKind::ServerParse => wrong(format!(
            "nats.url {url} is not an address such as nats://127.0.0.1:4222"
        )),
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => wrong(
            format!("{url} refused our login ({error}); check the login under [nats]"),
        ),
        ConnectErrorKind::Tls => wrong(format!(
            "TLS to {url} cannot be set up: {error}; check nats.tls_roots, nats.tls_certificate \
             and nats.tls_key"
        )),
        _ if bad_certificate(error) => wrong(format!(
            "the certificate of {url} is not trusted: {error}; name its authority under \
             nats.tls_roots"
        )),
        _ => Failure::Passing(BusError::unavailable(format!(
            "no connection to {url}: {error}"
        ))),
    }
}

/// Whether the other side's certificate, or ours in its eyes, ended the handshake.
fn bad_certificate(error: &async_nats::ConnectError) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        // An I/O error hides what it carries from `source`.
        let carried = inner
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(tls) = inner.downcast_ref::<rustls::Error>().or(carried) {
            return matches!(tls, rustls::Error::InvalidCertificate(_));
        }
        cause = inner.source();
    }
    false
}

fn check_prefix(prefix: &str) -> Result<(), BusError> {
    let good = !prefix.is_empty()
        && prefix.len() <= 64
        && prefix.split('.').all(|token| {
            !token.is_empty()
                && token
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
    if good {
        return Ok(());
    }
    Err(BusError::new(
        BusErrorKind::Config,
        format!(
            "nats.prefix {prefix:?} is not made of letters, digits, - and _, with dots between"
        ),
    ))
}

/// A server version; what follows the third number is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u64, u64, u64);

impl Version {
    /// Reads `2.10.3`, `v2.10.3`, `2.12.0-RC.1`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text
            .trim()
            .trim_start_matches('v')
            .splitn(3, '.')
            .map(|part| {
                let digits = part
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(part.len());
                part.get(..digits)?.parse::<u64>().ok()
            });
        Some(Self(
            parts.next()??,
            parts.next()??,
            parts.next().flatten().unwrap_or(0),
        ))
    }

    /// Whether the bridge works with it.
    pub(super) fn usable(self) -> bool {
        self >= OLDEST
    }
}

fn check_version(text: &str) -> Result<(), BusError> {
    match Version::parse(text) {
        Some(version) if !version.usable() => Err(BusError::new(
            BusErrorKind::TooOld,
            format!("the server is nats-server {text}; 2.10 or newer is needed"),
        )),
        Some(version) if version < ADVISED => {
            tracing::warn!(
                "nats: the server is nats-server {text}; 2.12.3 or newer is advised, older ones \
                 have known faults in work queues and recovery"
            );
            Ok(())
        }
        Some(_) => Ok(()),
        None => {
            tracing::warn!("nats: the server's version {text:?} is not understood");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_older_than_2_10_is_refused_and_later_ones_are_not() {
        for old in ["2.9.25", "v2.9.0", "1.4.1", "2.0"] {
            let error = check_version(old).expect_err(old);
            assert_eq!(error.kind, BusErrorKind::TooOld);
        }
        for new in [
            "2.10.0",
            "2.10.0-RC.1",
            "2.12.2",
            "2.15.1",
            "3.0.0",
            "mystery",
        ] {
            assert!(check_version(new).is_ok(), "{new}");
        }
    }

    #[test]
    fn a_prefix_that_would_break_subjects_is_refused() {
        for bad in ["", "a b", "a.*", ">", ".a", "a..b"] {
            assert!(check_prefix(bad).is_err(), "{bad:?}");
        }
        assert!(check_prefix("acme.fed-1").is_ok());
    }
}
