//! The connection: made with patience, kept for ever, and only to a broker that can keep the
//! promises.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::retry::{self, Failure};
use super::{Bus, BusError, BusErrorKind, Inner, Link, publish};
use crate::config::NatsConfig;

/// Subject transforms and several filter subjects, both needed, came with this version.
const OLDEST: Version = Version(2, 10, 0);

/// Before this, a work queue could lose messages or redeliver acknowledged ones after a restart.
const ADVISED: Version = Version(2, 12, 3);

/// Notices waiting to be sent at most; further ones are dropped and counted.
const NOTICES: usize = 4096;

impl Bus {
    /// Connects (retrying with `backoff` until `NatsConfig::connect_timeout`), checks the version.
    /// `NatsConfig::url` must be set: for the managed server, to [`super::ManagedServer::url`].
    pub async fn connect(config: &NatsConfig) -> Result<Self, BusError> {
        check_prefix(&config.prefix)?;
        let url = config.url.clone().ok_or_else(|| {
            BusError::new(
                BusErrorKind::Config,
                "nats.url is not set and no managed server was started",
            )
        })?;
        let (link_in, link) = watch::channel(Link::default());
        let (connected_in, connected) = watch::channel(true);
        let watchers = Arc::new((link_in, connected_in));
        let credentials = credentials(config).await?;
        let client = retry::until(config.connect_timeout, || {
            let options = options(config, &watchers);
            let (url, credentials) = (url.clone(), credentials.clone());
            async move {
                let options = match credentials {
                    None => options,
                    Some(text) => options.credentials(&text).map_err(|e| {
                        Failure::Final(BusError::new(
                            BusErrorKind::Config,
                            format!("nats.credentials_file holds no usable credentials: {e}"),
                        ))
                    })?,
                };
                options
                    .connect(&url)
                    .await
                    .map_err(|e| judge(&e, &show(&url)))
            }
        })
        .await?;
        check_version(&client.server_info().version)?;

        let mut js = jetstream::ContextBuilder::new()
            .timeout(config.request_timeout)
            .ack_timeout(config.request_timeout)
            .backpressure_on_inflight(true)
            .build(client.clone());
        js.set_timeout(config.request_timeout);
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
                notices,
                notices_dropped: dropped,
                closed,
            }),
        })
    }
}

fn options(
    config: &NatsConfig,
    watchers: &Arc<(watch::Sender<Link>, watch::Sender<bool>)>,
) -> ConnectOptions {
    let watchers = Arc::clone(watchers);
    ConnectOptions::new()
        .name("drawbridge")
        .connection_timeout(config.connect_timeout.min(Duration::from_secs(5)))
        .request_timeout(Some(config.request_timeout))
        .ping_interval(Duration::from_secs(10))
        .max_reconnects(None)
        .reconnect_delay_callback(retry::reconnect_delay)
        .event_callback(move |event| {
            match &event {
                Event::Connected => {
                    watchers.1.send_replace(true);
                    tracing::info!("nats: connected");
                }
                Event::Disconnected => {
                    watchers.0.send_modify(|link| link.losses += 1);
                    watchers.1.send_replace(false);
                    tracing::warn!("nats: connection lost; trying to get it back");
                }
                Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => {
                    tracing::warn!("nats: {event}");
                }
                Event::LameDuckMode | Event::Draining | Event::Closed => {
                    tracing::info!("nats: {event}");
                }
            }
            std::future::ready(())
        })
}

async fn credentials(config: &NatsConfig) -> Result<Option<zeroize::Zeroizing<String>>, BusError> {
    let Some(path) = &config.credentials_file else {
        return Ok(None);
    };
    match tokio::fs::read_to_string(path).await {
        Ok(text) => Ok(Some(zeroize::Zeroizing::new(text))),
        Err(e) => Err(BusError::new(
            BusErrorKind::Config,
            format!("nats.credentials_file {}: {e}", path.display()),
        )),
    }
}

fn judge(error: &async_nats::ConnectError, url: &str) -> Failure<BusError> {
    match error.kind() {
        ConnectErrorKind::ServerParse => Failure::Final(BusError::new(
            BusErrorKind::Config,
            format!("nats.url {url} is not an address such as nats://127.0.0.1:4222"),
        )),
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            Failure::Final(BusError::new(
                BusErrorKind::Config,
                format!("{url} refused our credentials; check nats.credentials_file"),
            ))
        }
        _ => Failure::Passing(BusError::unavailable(format!(
            "no connection to {url}: {error}"
        ))),
    }
}

/// The URL without a user name, password or token.
fn show(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            format!("{}{}", &url[..scheme + 3], &url[at + 1..])
        }
        (None, Some(at)) => url[at + 1..].to_owned(),
        _ => url.to_owned(),
    }
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
                part[..digits].parse::<u64>().ok()
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
    fn a_shown_url_holds_no_secret() {
        assert_eq!(show("nats://u:p@host:4222"), "nats://host:4222");
        assert_eq!(show("token@host"), "host");
        assert_eq!(show("nats://host:4222"), "nats://host:4222");
    }

    #[test]
    fn a_prefix_that_would_break_subjects_is_refused() {
        for bad in ["", "a b", "a.*", ">", ".a", "a..b"] {
            assert!(check_prefix(bad).is_err(), "{bad:?}");
        }
        assert!(check_prefix("acme.fed-1").is_ok());
    }
}
