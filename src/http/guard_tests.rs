//! The table of addresses: first and last of every range, and the neighbours that are public.

use super::*;

const FORBIDDEN: &[&str] = &[
    "0.0.0.0",
    "0.255.255.255",
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.0",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "169.254.0.0",
    "169.254.169.254",
    "169.254.255.255",
    "172.16.0.0",
    "172.31.255.255",
    "192.0.0.0",
    "192.0.0.8",
    "192.0.0.9",
    "192.0.0.10",
    "192.0.0.170",
    "192.0.0.171",
    "192.0.0.255",
    "192.0.2.0",
    "192.0.2.255",
    "192.31.196.0",
    "192.31.196.255",
    "192.52.193.0",
    "192.52.193.255",
    "192.88.99.0",
    "192.88.99.255",
    "192.168.0.0",
    "192.168.255.255",
    "192.175.48.0",
    "192.175.48.255",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.0",
    "198.51.100.255",
    "203.0.113.0",
    "203.0.113.255",
    "224.0.0.0",
    "239.255.255.255",
    "240.0.0.0",
    "255.255.255.254",
    "255.255.255.255",
    // IPv6
    "::",
    "::1",
    "::2",
    "::7f00:1",
    "::8.8.8.8",
    "::ffff:0.0.0.0",
    "::ffff:127.0.0.1",
    "::ffff:10.1.2.3",
    "::ffff:169.254.169.254",
    "::ffff:192.168.1.1",
    "::ffff:0:127.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:0:0:0:1::1",
    "64:ff9b:1::",
    "64:ff9b:1::8.8.8.8",
    "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
    "100::",
    "100::1",
    "100::ffff:ffff:ffff:ffff",
    "100:0:0:1::1",
    "2001::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:1::1",
    "2001:1::2",
    "2001:1::3",
    "2001:2::1",
    "2001:3::1",
    "2001:4:112::1",
    "2001:10::1",
    "2001:20::1",
    "2001:30::1",
    "2001:1ff:ffff::1",
    "2001:db8::1",
    "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "2002::",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2002:808:808::1",
    "2620:4f:8000::1",
    "3fff::",
    "3fff:fff:ffff::1",
    "4000::1",
    "5f00::1",
    "1fff::1",
    "fc00::1",
    "fdff::1",
    "fd00:ec2::254",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "feff::1",
    "ff00::1",
    "ff02::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

const PUBLIC: &[&str] = &[
    "1.0.0.0",
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.31.195.255",
    "192.31.197.0",
    "192.52.192.255",
    "192.52.194.0",
    "192.88.98.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "192.175.47.255",
    "192.175.49.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "198.51.101.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2000::1",
    "2001:200::1",
    "2001:db7:ffff::1",
    "2001:db9::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2606:4700:4700::1111",
    "2620:4f:7fff::1",
    "2620:4f:8001::1",
    "2a00:1450::1",
    "3ffe::1",
    "3fff:1000::1",
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn every_special_purpose_address_is_refused() {
    for text in FORBIDDEN {
        assert!(special(ip(text)).is_some(), "{text} must be forbidden");
        assert!(Guard::default().check(ip(text)).is_err(), "{text}");
    }
}

#[test]
fn public_addresses_next_to_special_ranges_are_dialled() {
    for text in PUBLIC {
        assert_eq!(special(ip(text)), None, "{text} must be public");
    }
}

#[test]
fn an_answer_with_one_forbidden_address_is_refused_whole() {
    let guard = Guard::default();
    let answer = [ip("8.8.8.8"), ip("10.0.0.1"), ip("1.1.1.1")];
    assert_eq!(
        guard.check_all(&answer).unwrap_err().address,
        ip("10.0.0.1")
    );
}

#[test]
fn an_allowed_network_also_allows_its_addresses_in_ipv6_clothes() {
    let guard = Guard::new(&["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
    for text in [
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "64:ff9b::10.1.2.3",
        "fd00::5",
    ] {
        assert_eq!(guard.check(ip(text)), Ok(()), "{text}");
    }
    for text in ["127.0.0.1", "192.168.0.1", "fc00::1", "::1"] {
        assert!(guard.check(ip(text)).is_err(), "{text}");
    }
}

#[test]
fn a_refusal_names_the_address_and_its_range() {
    let refusal = Guard::default().check(ip("127.0.0.1")).unwrap_err();
    let sentence = refusal.to_string();
    assert!(sentence.contains("127.0.0.1") && sentence.contains("loopback"));
}

#[test]
fn host_rules_name_a_host_on_every_port_or_on_one() {
    let rules = HostRules::new([
        "Beta.test",
        "gamma.test:8443",
        "127.0.0.1:9000",
        "[::1]:9000",
        "fd00::1",
    ]);
    assert!(rules.names("beta.test", 1));
    assert!(rules.names("gamma.test", 8443) && !rules.names("gamma.test", 443));
    assert!(rules.names("127.0.0.1", 9000) && !rules.names("127.0.0.1", 9001));
    assert!(rules.names("::1", 9000) && !rules.names("::1", 80));
    assert!(rules.names("fd00::1", 80));
    assert!(!rules.names("evil.beta.test", 1));
}
