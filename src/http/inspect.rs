//! Looking at the way to a host step by step: its addresses, who answers there, its certificate.
//!
//! The client does all of this at once and answers with one error; a diagnosis wants each part by
//! itself. The rules are the client's own: the same name servers, the same guard (an address it
//! refuses is never dialled here either), the same roots.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificate::CertificateFacts;
use super::failure::failure;
use super::guard::{Forbidden, Guard, HostRules, bare};
use super::resolver::Names;
use super::tls;
use crate::config::HttpConfig;
use crate::protocol::{TransportError, TransportKind};

/// Addresses of one host that are looked at.
const MAX_ADDRESSES: usize = 8;

/// Looks at hosts by one set of settings.
pub struct Inspector {
    names: Names,
    guard: Guard,
    allow_hosts: HostRules,
    extra_roots: Vec<std::path::PathBuf>,
    connect_timeout: Duration,
}

/// One address of a host.
#[derive(Debug)]
pub struct AddressSight {
    pub address: IpAddr,
    /// What came of dialling it.
    pub met: Met,
}

/// What is at an address.
#[derive(Debug)]
pub enum Met {
    /// The guard refuses it; it was not dialled.
    Forbidden(Forbidden),
    /// It takes connections; the time that took.
    Connected(Duration),
    /// It does not; the sentence says how.
    Closed(String),
}

/// A TLS handshake as it went.
#[derive(Debug)]
pub struct TlsSight {
    /// Leaf first; what could not be read is left out.
    pub chain: Vec<CertificateFacts>,
    /// Certificates sent.
    pub sent: usize,
    /// `TLSv1_3`, …; only if the handshake succeeded.
    pub version: Option<String>,
    /// Why it failed.
    pub fault: Option<TlsFault>,
}

/// Which fault of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsFault {
    Expired,
    NotYetValid,
    /// The certificate is for other names.
    WrongName,
    /// Signed by nobody we trust (or by itself).
    UnknownAuthority,
    /// Anything else, as rustls says it.
    Other(String),
}

impl Inspector {
    /// By these settings.
    pub fn new(config: &HttpConfig) -> Self {
        Self {
            names: Names::new(config),
            guard: Guard::new(&config.allow_cidrs),
            allow_hosts: HostRules::new(config.allow_hosts.iter().map(String::as_str)),
            extra_roots: config.extra_roots.clone(),
            connect_timeout: config.connect_timeout,
        }
    }

    /// Resolves a host, judges each address as a request would, and dials those that are allowed.
    /// As for a request, one forbidden address keeps all of them from being dialled.
    pub async fn addresses(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Vec<AddressSight>, TransportError> {
        let host = bare(host);
        let mut found = match host.parse::<IpAddr>() {
            Ok(literal) => vec![literal],
            Err(_) => self
                .names
                .addresses(host)
                .await
                .map_err(|e| failure(TransportKind::Dns, e.to_string()))?,
        };
        found.truncate(MAX_ADDRESSES);
        let exempt = self.allow_hosts.names(host, port);
        let judged: Vec<Option<Forbidden>> = found
            .iter()
            .map(|ip| self.guard.check(*ip).err().filter(|_| !exempt))
            .collect();
        let dial = judged.iter().all(Option::is_none);
        let mut sights = Vec::new();
        for (address, forbidden) in found.into_iter().zip(judged) {
            let met = match forbidden {
                Some(forbidden) => Met::Forbidden(forbidden),
                None if !dial => Met::Closed("not dialled, because of the other".into()),
                None => self.dial(address, port).await,
            };
            sights.push(AddressSight { address, met });
        }
        Ok(sights)
    }

    async fn dial(&self, address: IpAddr, port: u16) -> Met {
        let begun = Instant::now();
        let connecting = TcpStream::connect(SocketAddr::new(address, port));
        match tokio::time::timeout(self.connect_timeout, connecting).await {
            Ok(Ok(_)) => Met::Connected(begun.elapsed()),
            Ok(Err(error)) => Met::Closed(error.to_string()),
            Err(_) => Met::Closed(format!(
                "no answer within {} ms",
                self.connect_timeout.as_millis()
            )),
        }
    }

    /// A handshake with a host at an address that [`Inspector::addresses`] found open. The verdict on
    /// the certificate is the client's; what was shown is told whatever the verdict.
    pub async fn tls(&self, host: &str, at: SocketAddr) -> Result<TlsSight, TransportError> {
        let own = |detail: String| failure(TransportKind::Tls, detail);
        let name = ServerName::try_from(bare(host).to_owned())
            .map_err(|e| own(format!("{host} is no name for TLS: {e}")))?;
        let verifier = tls::verifier(&self.extra_roots).map_err(|e| own(e.to_string()))?;
        let witness = Arc::new(Witness {
            verifier,
            seen: Mutex::default(),
        });
        let config = tls::watched_config(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
            .map_err(|e| own(e.to_string()))?;
        let connector = TlsConnector::from(Arc::new(config));
        let handshake = async {
            let stream = TcpStream::connect(at).await?;
            connector.connect(name, stream).await
        };
        let outcome = tokio::time::timeout(self.connect_timeout * 2, handshake).await;
        let seen = std::mem::take(&mut *lock(&witness.seen));
        let (version, fault) = match outcome {
            Ok(Ok(stream)) => {
                let version = stream.get_ref().1.protocol_version();
                (version.map(|v| format!("{v:?}")), None)
            }
            Ok(Err(error)) => (None, Some(fault_of(&error))),
            Err(_) => (
                None,
                Some(TlsFault::Other("the handshake did not finish".into())),
            ),
        };
        Ok(TlsSight {
            chain: seen
                .iter()
                .filter_map(|der| CertificateFacts::read(der))
                .collect(),
            sent: seen.len(),
            version,
            fault,
        })
    }
}

/// Whether the configuration lets a request go without TLS to this host.
pub fn is_plain_allowed(config: &HttpConfig, host: &str, port: u16) -> bool {
    HostRules::new(config.plain_hosts.iter().map(String::as_str)).names(bare(host), port)
}

fn fault_of(error: &std::io::Error) -> TlsFault {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                TlsFault::Expired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsFault::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFault::WrongName
            }
            CertificateError::UnknownIssuer => TlsFault::UnknownAuthority,
            other => TlsFault::Other(other.to_string()),
        },
        Some(other) => TlsFault::Other(other.to_string()),
        None => TlsFault::Other(error.to_string()),
    }
}

/// Keeps what was shown and hands on the verdict of the real verifier, unchanged.
#[derive(Debug)]
struct Witness {
    verifier: Arc<WebPkiServerVerifier>,
    seen: Mutex<Vec<Vec<u8>>>,
}

fn lock(seen: &Mutex<Vec<Vec<u8>>>) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *lock(&self.seen) = std::iter::once(leaf)
            .chain(others)
            .map(|der| der.to_vec())
            .collect();
        self.verifier
            .verify_server_cert(leaf, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
