//! Host names and URLs in the one form that both sides compare and store.
//!
//! A host is what a WHATWG URL parser makes of it: lower case, punycode, `:port` unless it is the
//! scheme's own. `host` and `host:port` are different peers, and so is a host with a dot behind it.

use std::net::Ipv4Addr;

use url::{Host, Url};

use super::text::{trim, units};

/// Most UTF-16 units of a host.
const MAX_HOST: usize = 255;
/// Most UTF-16 units of a URL.
const MAX_URL: usize = 2048;
/// Beyond this many bytes nobody is asked to make a URL of a text.
const MAX_READ: usize = 16 * 1024;

/// A host as people and peers give it: `volt.example`, `volt.example:8443`, or a URL of it without
/// path, query, fragment or user. None: it is none of these.
pub fn strict(text: &str) -> Option<String> {
    let text = trim(text);
    if text.is_empty() || units(text) > MAX_HOST {
        return None;
    }
    bare(&parse(text)?)
}

/// The host in a text that may hold more around it, for looking up a peer and for an entry of the
/// allow list that is no [`strict`] one. Never fails; an unreadable text is only trimmed and
/// lower-cased, and names nobody.
pub fn lenient(text: &str) -> String {
    let text = trim(text);
    if let Some(url) = parse(text) {
        return with_port(&url).to_lowercase();
    }
    let lower = text.to_lowercase();
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| lower.strip_prefix(scheme))
        .unwrap_or(&lower);
    rest.trim_end_matches('/').to_owned()
}

/// The [`strict`] form, or the [`lenient`] one.
pub fn normal(text: &str) -> String {
    strict(text).unwrap_or_else(|| lenient(text))
}

/// Whether a host is one of a private network, of this machine, or unreadable: only an exact entry of
/// the allow list admits it. Every IPv6 literal is private.
pub fn is_private(host: &str) -> bool {
    let Some(url) = parse(trim(host)) else {
        return true;
    };
    match url.host() {
        None | Some(Host::Ipv6(_)) => true,
        Some(Host::Ipv4(address)) => private_address(address),
        Some(Host::Domain(name)) => {
            let name = name.to_lowercase();
            let name = name.strip_suffix('.').unwrap_or(&name);
            // A scheme other than http leaves an address as text.
            match name.parse::<Ipv4Addr>() {
                Ok(address) => private_address(address),
                Err(_) => {
                    name.is_empty()
                        || name == "localhost"
                        || [".localhost", ".local", ".internal"]
                            .iter()
                            .any(|suffix| name.ends_with(suffix))
                }
            }
        }
    }
}

/// A peer's URL as it is stored: `https://host[:port]`, no slash behind. None: it is no http or
/// https URL of `expected_host` (None: of whatever host) with nothing else in it, or it is http
/// although https is required.
pub fn normal_url<'a>(
    value: &str,
    expected_host: impl Into<Option<&'a str>>,
    require_https: bool,
) -> Option<String> {
    let value = trim(value);
    if value.is_empty() || units(value) > MAX_URL {
        return None;
    }
    let url = Url::parse(value).ok()?;
    let host = bare(&url)?;
    if require_https && url.scheme() != "https" {
        return None;
    }
    if expected_host
        .into()
        .is_some_and(|expected| expected != host)
    {
        return None;
    }
    Some(format!("{}://{host}", url.scheme()))
}

/// The URL of a text, `https://` put in front if it names no scheme.
fn parse(text: &str) -> Option<Url> {
    if text.is_empty() || text.len() > MAX_READ {
        return None;
    }
    if text.contains("://") {
        Url::parse(text).ok()
    } else {
        Url::parse(&format!("https://{text}")).ok()
    }
}

/// The host of an http or https URL that holds nothing else; an empty query or fragment passes.
fn bare(url: &Url) -> Option<String> {
    let nothing = |part: Option<&str>| part.unwrap_or("").is_empty();
    let holds_host_only = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && nothing(url.password())
        && matches!(url.path(), "" | "/")
        && nothing(url.query())
        && nothing(url.fragment());
    let host = with_port(url);
    (holds_host_only && !host.is_empty()).then_some(host)
}

/// Host and port of a URL, without the scheme's own port.
fn with_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or("");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Addresses that no stranger's name may stand for.
fn private_address(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    match a {
        0 | 10 | 127 | 224.. => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => b == 168,
        198 => b == 18 || b == 19,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_form_however_it_is_written() {
        for (text, host) in [
            ("\u{feff}HTTPS://Volt.Example:443/", "volt.example"),
            ("http://volt.example:80", "volt.example"),
            ("volt.example:80", "volt.example:80"),
            ("volt.example?", "volt.example"),
            ("volt.example#", "volt.example"),
            ("\u{ff56}olt.example", "volt.example"),
            ("b\u{fc}cher.example", "xn--bcher-kva.example"),
            ("volt.\texample", "volt.example"),
            ("0x7f.1", "127.0.0.1"),
            ("2130706433", "127.0.0.1"),
            ("[0:0:0:0:0:0:0:1]:8443", "[::1]:8443"),
            ("volt.example.", "volt.example."),
        ] {
            assert_eq!(strict(text).as_deref(), Some(host), "{text}");
            assert_eq!(lenient(text), host, "{text}");
        }
    }

    #[test]
    fn more_than_a_host_is_none_and_leniently_reduced_to_it() {
        for text in [
            "volt.example/x",
            "u@volt.example",
            "https://:p@volt.example",
            "ftp://volt.example",
            "volt.example?x",
            "volt.example#x",
        ] {
            assert_eq!(strict(text), None, "{text}");
            assert_eq!(lenient(text), "volt.example", "{text}");
        }
        assert_eq!(lenient(" HTTP://Volt Example// "), "volt example");
        assert_eq!(lenient(""), "");
        assert_eq!(strict(&"x".repeat(256)), None);
    }

    #[test]
    fn private_names_and_addresses_are_known_in_every_spelling() {
        for host in [
            "localhost",
            "LOCALHOST.",
            "a.localhost:3000",
            "printer.local.",
            "db.internal",
            "0x7f.1",
            "127.1",
            "127.0.0.1.",
            "ftp://10.0.0.1",
            "[::1]",
            "[::ffff:8.8.8.8]:8443",
            "[2001:db8::1]",
            "not a host",
            "",
        ] {
            assert!(is_private(host), "{host}");
        }
        for host in [
            "volt.example",
            "8.8.8.8:8443",
            "localhost.example",
            "internal",
        ] {
            assert!(!is_private(host), "{host}");
        }
    }

    #[test]
    fn a_url_is_stored_as_scheme_and_host_of_the_expected_peer() {
        let host = "volt.example:8443";
        assert_eq!(
            normal_url(" HTTPS://Volt.Example:8443/ ", host, true).as_deref(),
            Some("https://volt.example:8443")
        );
        assert_eq!(normal_url("http://volt.example:8443", host, true), None);
        assert!(normal_url("http://volt.example:8443", host, false).is_some());
        assert!(normal_url("https://volt.example", None, true).is_some());
        for text in [
            "volt.example:8443",
            "https://volt.example",
            "https://volt.example:8443/api",
            "https://volt.example:8443/?q",
            "https://u@volt.example:8443",
            "https://volt.example:8443/#f",
            "",
        ] {
            assert_eq!(normal_url(text, host, true), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_text_has_a_form_and_a_strict_host_is_its_own_lenient_one(
            text in "\\PC{0,40}|[a-z0-9.:/@?#\\[\\]\\\\ \\t-]{0,30}|(https?://)?[a-z.-]{1,20}(:[0-9]{1,5})?/?",
        ) {
            let lenient = lenient(&text);
            let _ = is_private(&lenient);
            if let Some(host) = strict(&text) {
                proptest::prop_assert_eq!(&host, &lenient);
                let as_url = format!("http://{host}");
                let again = strict(&as_url);
                proptest::prop_assert!(again.is_some());
                proptest::prop_assert_eq!(is_private(&text), is_private(&as_url));
            }
            if let Some(url) = normal_url(&text, None, false) {
                proptest::prop_assert_eq!(normal_url(&url, None, false), Some(url.clone()));
            }
        }
    }
}
