//! Is anybody there: the addresses of a host, the certificate.

use std::collections::HashSet;
use std::net::SocketAddr;

use jiff::Timestamp;

use super::{Found, Place, Report};
use crate::clock::Clock;
use crate::http::client::Client;
use crate::http::inspect::{AddressSight, Inspector, Met, TlsFault, TlsSight, is_plain_allowed};

const DAY_MS: i64 = 86_400_000;

/// Looks at hosts as our client would meet them.
pub(in crate::protocols) struct Reach<'a> {
    pub client: &'a Client,
    pub clock: &'a Clock,
}

impl Reach<'_> {
    /// Addresses and certificate of a URL's host, once each; false: no request can get there.
    pub(in crate::protocols) async fn reach(
        &self,
        url: &str,
        seen: &mut HashSet<(String, u16)>,
        report: &mut Report<'_>,
    ) -> bool {
        let Some(place) = Place::of(url) else {
            report.fault(
                "address",
                Found::blocks("bad_url", format!("{url} is no URL")),
            );
            return false;
        };
        if !seen.insert((place.host.clone(), place.port)) {
            return true;
        }
        let Some(at) = self.address(&place, report).await else {
            return false;
        };
        if place.tls {
            return self.tls(&place, at, report).await;
        }
        if is_plain_allowed(&self.client.settings(), &place.host, place.port) {
            report.info("tls", "none: http.plain_hosts names this host");
            return true;
        }
        let found = Found::blocks(
            "plain_http",
            format!("{url} has no TLS; it is spoken to only if http.plain_hosts names it"),
        );
        report.fault("tls", found);
        false
    }

    async fn address(&self, place: &Place, report: &mut Report<'_>) -> Option<SocketAddr> {
        let Place { host, port, .. } = place;
        let sights = match self.inspector().addresses(host, *port).await {
            Ok(sights) => sights,
            Err(error) => {
                report.fault("address", Found::blocks(error.kind.code(), error.detail));
                return None;
            }
        };
        let (open, fault) = judge(host, *port, &sights);
        let shown = format!("{host}:{port}: {}", describe(&sights));
        match fault {
            None => report.pass("address", shown),
            Some(found) => report.fault("address", found),
        }
        open
    }

    async fn tls(&self, place: &Place, at: SocketAddr, report: &mut Report<'_>) -> bool {
        let sight = match self.inspector().tls(&place.host, at).await {
            Ok(sight) => sight,
            Err(error) => {
                report.fault("tls", Found::blocks("tls", error.detail));
                return false;
            }
        };
        let chain = chain(&sight, self.clock.now_ms());
        match fault(&place.host, &sight) {
            None => {
                let version = sight.version.as_deref().unwrap_or("TLS");
                report.pass("tls", format!("{version}; {chain}"));
                true
            }
            Some((code, why)) => {
                report.fault("tls", Found::blocks(code, format!("{why} ({chain})")));
                false
            }
        }
    }

    fn inspector(&self) -> Inspector {
        Inspector::new(&self.client.settings())
    }
}

/// Which address to go on with, and what is wrong with the host.
fn judge(host: &str, port: u16, sights: &[AddressSight]) -> (Option<SocketAddr>, Option<Found>) {
    let forbidden = sights.iter().find_map(|sight| match &sight.met {
        Met::Forbidden(why) => Some(why),
        _ => None,
    });
    if let Some(why) = forbidden {
        let found = Found::blocks("address_forbidden", format!("{host} is not dialled: {why}"));
        return (None, Some(found));
    }
    let is_open = |sight: &&AddressSight| matches!(sight.met, Met::Connected(_));
    let open = sights.iter().find(is_open);
    let at = open.map(|sight| SocketAddr::new(sight.address, port));
    let shown = describe(sights);
    let all = sights.iter().filter(is_open).count() == sights.len();
    let found = match at {
        None => Some(Found::blocks(
            "connect",
            format!("nothing takes connections at {host} port {port}: {shown}"),
        )),
        Some(_) if !all => Some(Found::hurts(
            "address_dead",
            format!("not every address of {host} takes connections on port {port}: {shown}"),
        )),
        Some(_) => None,
    };
    (at, found)
}

fn describe(sights: &[AddressSight]) -> String {
    let one = |sight: &AddressSight| match &sight.met {
        Met::Forbidden(why) => format!("{} is {}", sight.address, why.range),
        Met::Connected(took) => format!("{} open ({} ms)", sight.address, took.as_millis()),
        Met::Closed(why) => format!("{} closed ({why})", sight.address),
    };
    sights.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The chain in one line.
fn chain(sight: &TlsSight, now_ms: i64) -> String {
    let Some(leaf) = sight.chain.first() else {
        return match sight.sent {
            0 => "no certificate was shown".into(),
            n => format!("{n} certificates that cannot be read"),
        };
    };
    let until = Timestamp::from_millisecond(leaf.not_after_ms)
        .map_or_else(|_| "?".into(), |at| format!("{at:.0}"));
    let days = leaf.not_after_ms.saturating_sub(now_ms).div_euclid(DAY_MS);
    let validity = match days {
        0.. => format!("valid until {until}, {days} days left"),
        _ => format!("valid until {until}, {} days ago", -(days + 1)),
    };
    let mut issuers: Vec<&str> = sight.chain.iter().map(|c| c.issuer.as_str()).collect();
    issuers.dedup();
    format!(
        "{} for {}, issued by {}; {validity}; {} certificate{} sent",
        leaf.title(),
        if leaf.names.is_empty() {
            "no host name".into()
        } else {
            leaf.names.join(" ")
        },
        issuers.join(", then "),
        sight.sent,
        if sight.sent == 1 { "" } else { "s" },
    )
}

fn fault(host: &str, sight: &TlsSight) -> Option<(&'static str, String)> {
    Some(match sight.fault.as_ref()? {
        TlsFault::Expired => (
            "tls_expired",
            format!("the certificate of {host} has expired"),
        ),
        TlsFault::NotYetValid => (
            "tls_not_yet_valid",
            format!("the certificate of {host} is not valid yet, or our clock is behind"),
        ),
        TlsFault::WrongName => (
            "tls_wrong_name",
            format!("the certificate shown is not for {host}"),
        ),
        TlsFault::UnknownAuthority => (
            "tls_unknown_authority",
            format!(
                "the certificate of {host} is signed by nobody we trust; if the chain is incomplete \
                 its operator must send the intermediates, if it is a private authority name it in \
                 http.extra_roots"
            ),
        ),
        TlsFault::Other(why) => ("tls", format!("TLS with {host} fails: {why}")),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::guard::Guard;

    fn sight(address: &str, met: Met) -> AddressSight {
        AddressSight {
            address: address.parse().unwrap(),
            met,
        }
    }

    fn open() -> Met {
        Met::Connected(Duration::from_millis(3))
    }

    #[test]
    fn one_forbidden_address_stops_it_and_one_dead_address_does_not() {
        let loopback = "127.0.0.1".parse().unwrap();
        let refused = Met::Forbidden(Guard::default().check(loopback).unwrap_err());
        let mixed = [sight("192.0.2.1", open()), sight("127.0.0.1", refused)];
        let (at, found) = judge("a.test", 443, &mixed);
        assert_eq!(at, None);
        assert_eq!(found.unwrap().refusal.code, "address_forbidden");

        let closed = Met::Closed("connection refused".into());
        let half = [sight("192.0.2.1", closed), sight("192.0.2.2", open())];
        let (at, found) = judge("a.test", 443, &half);
        assert_eq!(at, Some("192.0.2.2:443".parse().unwrap()));
        assert_eq!(found.unwrap().refusal.code, "address_dead");

        let (at, found) = judge("a.test", 443, &[sight("192.0.2.1", open())]);
        assert!(at.is_some() && found.is_none());
    }
}
