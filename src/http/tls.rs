//! TLS settings of both sides: the client's roots, the server's certificate and its reload.
//!
//! The crypto provider is always given by hand (ring), never the process default, so that no other
//! crate in the build can change what we speak.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Why TLS cannot be set up: a sentence that names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing, unreadable or not PEM of the expected kind.
    #[error("cannot read {what} from {}: {source}", path.display())]
    Pem {
        /// `a certificate`, `a private key`.
        what: &'static str,
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds no certificate at all.
    #[error("{} holds no certificate in PEM form", .0.display())]
    Empty(PathBuf),
    /// A root certificate that rustls does not take.
    #[error("{} holds a root certificate that cannot be used: {source}", path.display())]
    Root {
        path: PathBuf,
        source: rustls::Error,
    },
    /// Certificate and key do not fit, or rustls refuses them.
    #[error("certificate {} and its key cannot be used: {source}", path.display())]
    Pair {
        path: PathBuf,
        source: rustls::Error,
    },
    /// Only one of certificate and key is set.
    #[error("tls_certificate and tls_key must be set together")]
    Half,
    /// The provider lacks what we ask of it (a fault of the build).
    #[error("TLS is not available in this build: {0}")]
    Provider(rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The outgoing side: Mozilla's roots and those of `extra_roots`; HTTP/2 where the peer offers it.
pub fn client_config(extra_roots: &[PathBuf]) -> Result<ClientConfig, TlsError> {
    let roots = roots(extra_roots)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The verdict on certificates that [`client_config`] reaches, for whoever wants to see them first.
pub(super) fn verifier(extra_roots: &[PathBuf]) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let roots = Arc::new(roots(extra_roots)?);
    WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|e| TlsError::Provider(rustls::Error::General(e.to_string())))
}

/// [`client_config`] with a verifier that wraps the one of [`verifier`].
pub(super) fn watched_config(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(extra_roots: &[PathBuf]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    for path in extra_roots {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|source| TlsError::Root {
                path: path.clone(),
                source,
            })?;
        }
    }
    Ok(roots)
}

/// A certificate with its key, read and found to fit.
#[derive(Clone, Debug)]
pub struct Prepared(Arc<ServerConfig>);

/// A listener's certificate, replaceable while it serves. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<ArcSwap<ServerConfig>>,
}

impl Certificate {
    /// Reads the PEM files. `Ok(None)` when neither is set.
    pub fn load(certificate: Option<&Path>, key: Option<&Path>) -> Result<Option<Self>, TlsError> {
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some(Self {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
                current: Arc::new(ArcSwap::from_pointee(server_config(certificate, key)?)),
            })),
            _ => Err(TlsError::Half),
        }
    }

    /// Reads the files again; connections from now on get the new certificate. On an error the old
    /// one stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = server_config(&self.certificate, &self.key)?;
        self.current.store(Arc::new(fresh));
        Ok(())
    }

    /// Like [`Certificate::reload`], from files that may have other names now. The first half of a
    /// change: all that can go wrong.
    pub fn prepare(certificate: &Path, key: &Path) -> Result<Prepared, TlsError> {
        server_config(certificate, key).map(|config| Prepared(Arc::new(config)))
    }

    /// The second half: connections from now on get this one.
    pub fn adopt(&self, prepared: &Prepared) {
        self.current.store(Arc::clone(&prepared.0));
    }

    /// What a new connection uses.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

fn server_config(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let chain = certificates(certificate)?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Pem {
        what: "a private key",
        path: key.to_owned(),
        source,
    })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .map_err(|source| TlsError::Pair {
            path: certificate.to_owned(),
            source,
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem {
        what: "a certificate",
        path: path.to_owned(),
        source,
    };
    let found = CertificateDer::pem_file_iter(path)
        .map_err(pem)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem)?;
    if found.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(found)
}
