//! What a certificate says of itself, for people: names, issuer, validity.
//!
//! Only for showing; whether a certificate is good is rustls's to say. So the reader is small, takes
//! what it knows from the DER text and gives up (`None`) on anything unexpected.

use std::net::IpAddr;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Longest text shown, characters.
const MAX_TEXT: usize = 200;
/// Names shown at most.
const MAX_NAMES: usize = 16;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, explicit: the version.
const VERSION: u8 = 0xa0;
/// `[3]`, explicit: the extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[2]` and `[7]` of a general name: host name and address.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// subjectAltName, 2.5.29.17.
const ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// Parts of a distinguished name that are shown.
const PARTS: [(&[u8], &str); 4] = [
    (&[0x55, 0x04, 0x03], "CN"),
    (&[0x55, 0x04, 0x0b], "OU"),
    (&[0x55, 0x04, 0x0a], "O"),
    (&[0x55, 0x04, 0x06], "C"),
];

/// A certificate as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// `CN=…, O=…`; empty when the certificate names its owner by [`CertificateFacts::names`] only.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Valid from then, ms since 1970.
    pub not_before_ms: i64,
    /// Valid until then, ms since 1970.
    pub not_after_ms: i64,
    /// Host names and addresses it is for.
    pub names: Vec<String>,
}

impl CertificateFacts {
    /// Reads a certificate in DER; `None`: it is built otherwise than expected.
    pub fn read(der: &[u8]) -> Option<Self> {
        let mut outer = Reader(der);
        let mut certificate = Reader(outer.expect(SEQUENCE)?);
        let mut tbs = Reader(certificate.expect(SEQUENCE)?);
        if tbs.peek() == Some(VERSION) {
            tbs.next()?;
        }
        tbs.next()?; // serial number
        tbs.expect(SEQUENCE)?; // signature algorithm
        let issuer = name(tbs.expect(SEQUENCE)?)?;
        let mut validity = Reader(tbs.expect(SEQUENCE)?);
        let (not_before_ms, not_after_ms) = (time(validity.next()?)?, time(validity.next()?)?);
        let subject = name(tbs.expect(SEQUENCE)?)?;
        tbs.expect(SEQUENCE)?; // key
        let mut names = Vec::new();
        while let Some((tag, content)) = tbs.next() {
            if tag == EXTENSIONS {
                names = alt_names(content).unwrap_or_default();
            }
        }
        Some(Self {
            subject,
            issuer,
            not_before_ms,
            not_after_ms,
            names,
        })
    }

    /// The subject, or the first name where it is empty.
    pub fn title(&self) -> &str {
        match self.names.first() {
            Some(name) if self.subject.is_empty() => name,
            _ => &self.subject,
        }
    }
}

/// Elements of a DER text, one after another.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// Tag and content of the next element.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 {
                return None;
            }
            let (bytes, after) = rest.split_at_checked(count)?;
            rest = after;
            bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b))
        };
        let (content, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((tag, content))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let (tag, content) = self.next()?;
        (tag == wanted).then_some(content)
    }
}

/// A distinguished name: the parts people know, in the order of [`PARTS`].
fn name(content: &[u8]) -> Option<String> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut sets = Reader(content);
    while let Some((tag, set)) = sets.next() {
        if tag != SET {
            return None;
        }
        let mut pair = Reader(Reader(set).expect(SEQUENCE)?);
        let oid = pair.expect(OID)?;
        let (_, value) = pair.next()?;
        let mut known = PARTS.iter().enumerate();
        if let Some((place, (_, short))) = known.find(|(_, (known, _))| *known == oid) {
            found.push((place, format!("{short}={}", printable(value))));
        }
    }
    found.sort_by_key(|(place, _)| *place);
    let texts: Vec<String> = found.into_iter().map(|(_, text)| text).collect();
    Some(texts.join(", "))
}

fn alt_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader(Reader(extensions).expect(SEQUENCE)?);
    while let Some((_, extension)) = list.next() {
        let mut parts = Reader(extension);
        if parts.expect(OID)? != ALT_NAME {
            continue;
        }
        // A flag may stand between.
        let (mut tag, mut content) = parts.next()?;
        if tag != OCTETS {
            (tag, content) = parts.next()?;
        }
        if tag != OCTETS {
            return None;
        }
        let mut all = Reader(Reader(content).expect(SEQUENCE)?);
        let mut names = Vec::new();
        while let Some((tag, value)) = all.next() {
            match tag {
                DNS_NAME => names.push(printable(value)),
                IP_ADDRESS => names.extend(address(value).map(|ip| ip.to_string())),
                _ => {}
            }
        }
        names.truncate(MAX_NAMES);
        return Some(names);
    }
    Some(Vec::new())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ` as ms since 1970.
fn time((tag, content): (u8, &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let two: i16 = text.get(..2)?.parse().ok()?;
            (two + if two < 50 { 2000 } else { 1900 }, text.get(2..)?)
        }
        GENERALIZED_TIME => (text.get(..4)?.parse().ok()?, text.get(4..)?),
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<i8>().ok();
    let at = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    Some(
        at.to_zoned(TimeZone::UTC)
            .ok()?
            .timestamp()
            .as_millisecond(),
    )
}

/// Foreign text: bounded, without anything a terminal would act on.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(MAX_TEXT)
        .collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn names_issuer_and_validity_are_read() {
        let mut params =
            CertificateParams::new(vec!["relay.example".into(), "192.0.2.7".into()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "Relay \u{1b}[31m");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Example");
        params.not_before = date_time_ymd(2024, 1, 2);
        params.not_after = date_time_ymd(2055, 3, 4);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let facts = CertificateFacts::read(certificate.der()).unwrap();
        assert_eq!(facts.subject, "CN=Relay \u{fffd}[31m, O=Example");
        assert_eq!(facts.issuer, facts.subject);
        assert_eq!(facts.names, ["relay.example", "192.0.2.7"]);
        assert_eq!(facts.not_before_ms, 1_704_153_600_000);
        assert_eq!(facts.not_after_ms, 2_687_731_200_000);
    }

    #[test]
    fn a_cut_certificate_is_no_certificate_and_no_panic() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.example".into()]).unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        for length in 0..der.len() {
            assert_eq!(CertificateFacts::read(&der[..length]), None);
        }
    }
}
