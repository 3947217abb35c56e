//! Names to addresses: the configured table first, then DNS; every answer passes the guard.
//!
//! The client dials exactly the addresses that [`GuardedResolver`] hands it, so the address checked is
//! the address dialled: a second look-up that could answer otherwise does not exist.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
    ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData};
use hyper_util::client::legacy::connect::dns::Name as Asked;
use tower::{BoxError, Service};

use super::client::SrvTarget;
use super::failure::{Unresolved, failure};
use super::guard::Guard;
use crate::config::HttpConfig;
use crate::protocol::{TransportError, TransportKind};

/// A query has this long in all, repeats included.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// A datagram may be lost: the question is put again after this long.
const TRY_TIMEOUT: Duration = Duration::from_millis(950);
/// Answers kept by name, for as long as their TTL says.
const CACHED_NAMES: u64 = 4_096;
/// SRV targets looked at; more is no service but an attack.
const MAX_SRV_TARGETS: usize = 16;

/// Table and DNS, without the guard.
pub(super) struct Names {
    table: HashMap<Box<str>, Vec<IpAddr>>,
    /// Why there is no DNS, if there is none; tables and literals still work then.
    dns: Result<TokioResolver, String>,
}

impl Names {
    /// By `http.hosts` and `http.dns_servers` (empty: the name servers of `/etc/resolv.conf`; its
    /// search list and `/etc/hosts` are not used).
    pub(super) fn new(config: &HttpConfig) -> Self {
        let table = config
            .hosts
            .iter()
            .map(|(name, addresses)| (name.to_ascii_lowercase().into(), addresses.clone()))
            .collect();
        let servers = if config.dns_servers.is_empty() {
            system_servers()
        } else {
            Ok(config.dns_servers.clone())
        };
        Self {
            table,
            dns: servers.and_then(|servers| dns(&servers)),
        }
    }

    pub(super) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        if let Some(listed) = self.table.get(name) {
            return Ok(listed.clone());
        }
        let unresolved = |detail: String| Unresolved {
            name: name.to_owned(),
            detail,
        };
        let dns = self.dns.as_ref().map_err(|why| unresolved(why.clone()))?;
        let full = absolute(name).map_err(unresolved)?;
        match tokio::time::timeout(QUERY_TIMEOUT, dns.lookup_ip(full)).await {
            Ok(Ok(found)) => {
                let addresses: Vec<IpAddr> = found.iter().collect();
                if addresses.is_empty() {
                    return Err(unresolved("it has no address".into()));
                }
                Ok(addresses)
            }
            Ok(Err(error)) if is_absent(&error) => Err(unresolved("it has no address".into())),
            Ok(Err(error)) => Err(unresolved(error.to_string())),
            Err(_) => Err(unresolved("the name servers did not answer in 2 s".into())),
        }
    }

    /// SRV targets, best first: lowest priority, then highest weight, then by name so that the
    /// order is the same each time. `Ok(vec![])`: no such record, or the service is declared absent.
    pub(super) async fn srv(&self, name: &str) -> Result<Vec<SrvTarget>, TransportError> {
        let fail = |detail: String| {
            failure(
                TransportKind::Dns,
                format!("SRV query for {name} failed: {detail}"),
            )
        };
        let dns = self.dns.as_ref().map_err(|why| fail(why.clone()))?;
        let full = absolute(name).map_err(fail)?;
        let found = match tokio::time::timeout(QUERY_TIMEOUT, dns.srv_lookup(full)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) if is_absent(&error) => return Ok(Vec::new()),
            Ok(Err(error)) => return Err(fail(error.to_string())),
            Err(_) => return Err(fail("the name servers did not answer in 2 s".into())),
        };
        let mut targets: Vec<SrvTarget> = found
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) if !srv.target.is_root() => Some(SrvTarget {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    target: plain_name(&srv.target),
                }),
                _ => None,
            })
            .collect();
        targets.sort_by(|a, b| {
            (a.priority, std::cmp::Reverse(a.weight), &a.target, a.port).cmp(&(
                b.priority,
                std::cmp::Reverse(b.weight),
                &b.target,
                b.port,
            ))
        });
        targets.truncate(MAX_SRV_TARGETS);
        Ok(targets)
    }
}

/// What the client dials by: [`Names`], each answer judged. `guard` `None`: the configuration lets
/// these hosts resolve anywhere.
#[derive(Clone)]
pub(super) struct GuardedResolver {
    pub names: Arc<Names>,
    pub guard: Option<Arc<Guard>>,
}

/// Addresses to dial, of any port: the client knows it.
type Dial = std::vec::IntoIter<SocketAddr>;

impl Service<Asked> for GuardedResolver {
    type Response = Dial;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Dial, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Asked) -> Self::Future {
        let names = Arc::clone(&self.names);
        let guard = self.guard.clone();
        Box::pin(async move {
            let found = names.addresses(name.as_str()).await?;
            if let Some(guard) = guard {
                guard.check_all(&found)?;
            }
            let dial: Vec<_> = found.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(dial.into_iter())
        })
    }
}

fn dns(servers: &[SocketAddr]) -> Result<TokioResolver, String> {
    let servers = servers
        .iter()
        .map(|server| {
            let at = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            let mut config = NameServerConfig::udp_and_tcp(server.ip());
            config.connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
            config
        })
        .collect();
    let mut options = ResolverOpts::default();
    options.timeout = TRY_TIMEOUT;
    options.attempts = 1;
    options.cache_size = CACHED_NAMES;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|e| format!("the DNS client cannot be set up: {e}"))
}

fn system_servers() -> Result<Vec<SocketAddr>, String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").map_err(|e| {
        format!("no http.dns_servers are configured and /etc/resolv.conf cannot be read: {e}")
    })?;
    match nameservers(&text) {
        found if found.is_empty() => Err(
            "no http.dns_servers are configured and /etc/resolv.conf names no name server".into(),
        ),
        found => Ok(found),
    }
}

/// The `nameserver` lines of a resolv.conf, port 53. Scoped addresses (`fe80::1%eth0`) are left out.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then_some(())?;
            let ip: IpAddr = words.next()?.parse().ok()?;
            Some(SocketAddr::new(ip, 53))
        })
        .take(3)
        .collect()
}

/// A name as fully qualified, so that no search list applies.
fn absolute(name: &str) -> Result<Name, String> {
    let mut full = Name::from_ascii(name).map_err(|e| format!("it is no DNS name: {e}"))?;
    full.set_fqdn(true);
    Ok(full)
}

fn plain_name(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_ascii_lowercase()
}

/// The name servers answered, and there is no such record (NXDOMAIN, or none of this type).
fn is_absent(error: &NetError) -> bool {
    matches!(
        error,
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_from_a_resolv_conf() {
        let text = "# x\nsearch lan\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n\
                    options ndots:5\nnameserver 2001:db8::53 \n";
        let expected: Vec<SocketAddr> = vec![
            "192.0.2.53:53".parse().unwrap(),
            "[2001:db8::53]:53".parse().unwrap(),
        ];
        assert_eq!(nameservers(text), expected);
    }
}
