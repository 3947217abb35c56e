//! Who the client is when trusted proxies stand between.
//!
//! Each proxy appends the address it was called from to `X-Forwarded-For`, so the list is believed
//! from the right, hop by hop, only as long as the hop that wrote the entry is one of ours. The
//! first hop that is not is the client; whatever stands further left it may have invented.

use std::net::{IpAddr, SocketAddr};

use ::http::HeaderMap;
use ipnet::IpNet;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The client's address: the socket's, or the rightmost hop that is no trusted proxy. An entry
/// that is no address ends the search at the hop that wrote it. IPv4-mapped addresses are given as
/// IPv4.
pub fn client_address(socket: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = socket.to_canonical();
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    if trusted.is_empty() || !is_trusted(&client) {
        return client;
    }
    // Several headers of the name are one list, in the order received.
    let values = headers.get_all(X_FORWARDED_FOR);
    for value in values.iter().rev() {
        let Ok(text) = value.to_str() else {
            return client;
        };
        for hop in text.rsplit(',') {
            let Some(ip) = hop_address(hop.trim()) else {
                return client;
            };
            client = ip;
            if !is_trusted(&client) {
                return client;
            }
        }
    }
    client
}

/// `1.2.3.4`, `1.2.3.4:5678`, `::1`, `[::1]` or `[::1]:5678`.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let ip = hop
        .parse::<IpAddr>()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|a| a.ip()))
        .or_else(|| hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok())?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(socket: &str, headers: &[&str], trusted: &[&str]) -> String {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(X_FORWARDED_FOR, value.parse().unwrap());
        }
        let nets: Vec<IpNet> = trusted.iter().map(|n| n.parse().unwrap()).collect();
        client_address(socket.parse().unwrap(), &map, &nets).to_string()
    }

    #[test]
    fn a_stranger_cannot_choose_its_address() {
        assert_eq!(client("203.0.113.9", &["1.1.1.1"], &[]), "203.0.113.9");
        assert_eq!(
            client("203.0.113.9", &["1.1.1.1"], &["10.0.0.0/8"]),
            "203.0.113.9"
        );
    }

    #[test]
    fn the_rightmost_untrusted_hop_is_the_client() {
        let trusted = &["10.0.0.0/8"];
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6, 1.1.1.1"], trusted),
            "1.1.1.1"
        );
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6, 1.1.1.1, 10.9.9.9"], trusted),
            "1.1.1.1"
        );
        assert_eq!(client("::ffff:10.0.0.1", &["1.1.1.1"], trusted), "1.1.1.1");
    }

    #[test]
    fn several_headers_are_one_list() {
        let trusted = &["10.0.0.0/8"];
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6", "1.1.1.1", "10.2.2.2"], trusted),
            "1.1.1.1"
        );
    }

    #[test]
    fn an_unreadable_hop_ends_the_search_at_the_hop_that_wrote_it() {
        let trusted = &["10.0.0.0/8"];
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6, unknown"], trusted),
            "10.0.0.1"
        );
        assert_eq!(
            client("10.0.0.1", &["1.1.1.1, x, 10.2.2.2"], trusted),
            "10.2.2.2"
        );
    }

    #[test]
    fn ports_and_brackets_are_read() {
        let trusted = &["127.0.0.0/8", "::1/128"];
        assert_eq!(client("127.0.0.1", &["1.1.1.1:4444"], trusted), "1.1.1.1");
        assert_eq!(client("::1", &["[2a00::1]:4444"], trusted), "2a00::1");
        assert_eq!(client("::1", &["[2a00::1]"], trusted), "2a00::1");
    }

    #[test]
    fn only_trusted_hops_give_the_leftmost() {
        assert_eq!(
            client("10.0.0.1", &["10.0.0.3, 10.0.0.2"], &["10.0.0.0/8"]),
            "10.0.0.3"
        );
        assert_eq!(client("10.0.0.1", &[], &["10.0.0.0/8"]), "10.0.0.1");
    }
}
