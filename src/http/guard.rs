//! Which addresses the bridge may dial: the SSRF guard as pure functions over plain values.
//!
//! A remote server chooses the names we resolve and the endpoints we post to, so every address is
//! suspect until shown to be public. The rule is an allow-list where it can be one: of IPv6 only
//! `2000::/3` is public at all, less the ranges of the IANA special-purpose registry; of IPv4
//! everything less that registry. Forms that carry an IPv4 address are judged by what they carry
//! where the machine would really dial it (IPv4-mapped, NAT64), and are refused where nothing
//! public lives behind them (IPv4-compatible, 6to4, Teredo, local NAT64).
//!
//! Exceptions come from the configuration only, by network or by host name.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address that must not be dialled, and the range that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "address {address} is {range}; only public addresses are dialled unless http.allow_cidrs or http.allow_hosts names it"
)]
pub struct Forbidden {
    /// The address as resolved or written.
    pub address: IpAddr,
    /// What it is, for people: `loopback`, `private use`, …
    pub range: &'static str,
}

/// IANA IPv4 special-purpose registry, and what is no unicast: (network, prefix length, what).
const SPECIAL4: &[(Ipv4Addr, u32, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private use"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared address space"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private use"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "IETF protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 31, 196, 0), 24, "AS112"),
    (Ipv4Addr::new(192, 52, 193, 0), 24, "AMT"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay anycast"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private use"),
    (Ipv4Addr::new(192, 175, 48, 0), 24, "AS112"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved or broadcast"),
];

/// IPv6 ranges that are not public, most telling name first where they nest. What is in none of
/// them must still lie in `2000::/3`.
const SPECIAL6: &[(Ipv6Addr, u32, &str)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::UNSPECIFIED, 96, "IPv4-compatible"),
    (
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0),
        96,
        "IPv4-translated",
    ),
    (
        Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0),
        48,
        "local NAT64",
    ),
    (
        Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0),
        64,
        "discard-only",
    ),
    (
        Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 0),
        64,
        "dummy prefix",
    ),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, "Teredo"),
    (
        Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0),
        23,
        "IETF protocol assignments",
    ),
    (
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
        32,
        "documentation",
    ),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (
        Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0),
        48,
        "AS112",
    ),
    (
        Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0),
        20,
        "documentation",
    ),
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16, "SRv6 SIDs"),
    (
        Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0),
        7,
        "unique-local",
    ),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// NAT64 well-known prefix: the last 32 bits are the IPv4 address really reached.
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// What kind of special address this is; `None`: a public unicast address.
pub fn special(address: IpAddr) -> Option<&'static str> {
    match carried(address) {
        IpAddr::V4(v4) => special4(v4),
        IpAddr::V6(v6) => special6(v6),
    }
}

/// The address that dialling this one really reaches: IPv4-mapped and NAT64 forms unwrapped.
pub fn carried(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None if in_net6(v6, NAT64, 96) => {
                let [.., a, b, c, d] = v6.octets();
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            None => address,
        },
    }
}

fn special4(address: Ipv4Addr) -> Option<&'static str> {
    SPECIAL4
        .iter()
        .find(|(net, length, _)| {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            address.to_bits() & mask == net.to_bits()
        })
        .map(|(_, _, what)| *what)
}

fn special6(address: Ipv6Addr) -> Option<&'static str> {
    let listed = SPECIAL6
        .iter()
        .find(|(net, length, _)| in_net6(address, *net, *length))
        .map(|(_, _, what)| *what);
    let global = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0);
    listed.or_else(|| (!in_net6(address, global, 3)).then_some("outside global unicast"))
}

fn in_net6(address: Ipv6Addr, net: Ipv6Addr, length: u32) -> bool {
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    address.to_bits() & mask == net.to_bits()
}

/// Host names (with or without a port) that a rule speaks of. Lower case; literals without
/// brackets.
#[derive(Clone, Debug, Default)]
pub struct HostRules(HashMap<Box<str>, Ports>);

#[derive(Clone, Debug)]
enum Ports {
    Any,
    These(Vec<u16>),
}

impl HostRules {
    /// Reads `name`, `name:port`, `1.2.3.4:port`, `::1`, `[::1]` or `[::1]:port`.
    pub fn new<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        let mut rules: HashMap<Box<str>, Ports> = HashMap::new();
        for entry in entries {
            let (host, port) = split_host(entry.trim());
            let rule = rules
                .entry(host.to_ascii_lowercase().into())
                .or_insert_with(|| Ports::These(Vec::new()));
            match (rule, port) {
                (Ports::Any, _) => {}
                (rule, None) => *rule = Ports::Any,
                (Ports::These(ports), Some(port)) => ports.push(port),
            }
        }
        Self(rules)
    }

    /// Whether the rule names this host on this port. `host` is lower case, without brackets.
    pub fn names(&self, host: &str, port: u16) -> bool {
        match self.0.get(host) {
            None => false,
            Some(Ports::Any) => true,
            Some(Ports::These(ports)) => ports.contains(&port),
        }
    }

    /// Whether the rule names nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Takes `host[:port]` apart; brackets of an IPv6 literal are removed.
pub(super) fn split_host(entry: &str) -> (&str, Option<u16>) {
    if entry.parse::<Ipv6Addr>().is_ok() {
        return (entry, None);
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (entry, None),
        },
        None => (entry, None),
    };
    (bare(host), port)
}

/// An IPv6 literal without its brackets; anything else as it is.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host)
}

/// The judge of addresses: public ones, and those in the configured networks.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    cidrs: Vec<IpNet>,
}

impl Guard {
    /// A guard that lets these networks through besides public addresses.
    pub fn new(cidrs: &[IpNet]) -> Self {
        Self {
            cidrs: cidrs.to_vec(),
        }
    }

    /// Refuses an address that is neither public nor in an allowed network.
    pub fn check(&self, address: IpAddr) -> Result<(), Forbidden> {
        let Some(range) = special(address) else {
            return Ok(());
        };
        let carried = carried(address);
        if self
            .cidrs
            .iter()
            .any(|net| net.contains(&address) || net.contains(&carried))
        {
            return Ok(());
        }
        Err(Forbidden { address, range })
    }

    /// Refuses the whole answer when one address of it is forbidden: whoever mixes a private
    /// address among public ones is not to be trusted with the rest.
    pub fn check_all(&self, addresses: &[IpAddr]) -> Result<(), Forbidden> {
        addresses.iter().try_for_each(|a| self.check(*a))
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
