//! The cluster's own certificate authority, and mutual TLS (RFC 8446) between nodes.
//!
//! Every member holds the authority, so that any of them admits new nodes. A node's own key lives in memory only: it
//! makes itself a key and a certificate at each start, and again when two thirds of the certificate's life are over.
//! A certificate is for the DNS name `node-<id>.henge`; both sides of a connection check the other's.

use base::ids::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_rustls::TlsConnector;

use crate::failure::{Context, Failure};
use crate::private_file;

/// How long a node's certificate is good for.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// SHA-256 of a certificate's DER.
pub type Fingerprint = [u8; 32];

/// The cluster's certificate authority: an ECDSA P-256 key and its certificate. Secret: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// What a node shows to others, and whom it believes.
pub struct NodeTls {
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
}

impl Authority {
    pub fn make() -> Result<Authority, Failure> {
        let impossible = || "the cluster's certificate authority cannot be made".to_owned();
        let key = KeyPair::generate().context(impossible)?;
        let certificate = authority_params().self_signed(&key).context(impossible)?;
        Ok(Authority { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// From `DIR/tls`; `None` when there is none.
    pub fn load(data: &Path) -> Result<Option<Authority>, Failure> {
        let directory = directory_in(data);
        let read = |name: &str| {
            let path = directory.join(name);
            private_file::read(&path).context(|| format!("{} cannot be read", path.display()))
        };
        let (Some(certificate_pem), Some(key_pem)) = (read(CERTIFICATE_FILE)?, read(KEY_FILE)?) else {
            return Ok(None);
        };
        let authority = Authority { certificate_pem, key_pem };
        authority.check().context(|| {
            format!("{} holds no usable certificate authority; copy it from another node", directory.display())
        })?;
        Ok(Some(authority))
    }

    /// Into `DIR/tls`, durably, for the owner only. The certificate comes last: where it is, all is.
    pub fn store(&self, data: &Path) -> Result<(), Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let directory = directory_in(data);
        let cannot = || format!("{} cannot be written", directory.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).context(cannot)?;
        private_file::replace(&directory.join(KEY_FILE), self.key_pem.as_bytes()).context(cannot)?;
        private_file::replace(&directory.join(CERTIFICATE_FILE), self.certificate_pem.as_bytes()).context(cannot)?;
        std::fs::File::open(data).and_then(|directory| directory.sync_all()).context(cannot)
    }

    /// Whether both parts can be read and belong together.
    pub fn check(&self) -> Result<(), Failure> {
        self.issue(NodeId(0), Duration::from_secs(1), Duration::ZERO)?;
        let key = KeyPair::from_pem(&self.key_pem).context(|| "the authority's key cannot be read".into())?;
        let (certificate, public) = (self.certificate()?, key.public_key_raw().to_vec());
        match certificate.windows(public.len()).any(|part| part == public) {
            true => Ok(()),
            false => Err(Failure("the authority's key and certificate do not belong together".into())),
        }
    }

    pub fn fingerprint(&self) -> Result<Fingerprint, Failure> {
        Ok(fingerprint(&self.certificate()?))
    }

    fn certificate(&self) -> Result<CertificateDer<'static>, Failure> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .context(|| "the certificate of the cluster's authority cannot be read".into())
    }

    /// A fresh key and certificate for `node`. `now`: since 1970-01-01.
    pub fn issue(&self, node: NodeId, life: Duration, now: Duration) -> Result<NodeTls, Failure> {
        let impossible = || "a certificate for this node cannot be made".to_owned();
        let authority_key = KeyPair::from_pem(&self.key_pem).context(impossible)?;
        let issuer = Issuer::new(authority_params(), authority_key);
        let key = KeyPair::generate().context(impossible)?;
        let certificate = node_params(node, now + life).context(impossible)?;
        let certificate = certificate.signed_by(&key, &issuer).context(impossible)?;

        let root = self.certificate()?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).context(impossible)?;
        let roots = Arc::new(roots);
        let chain = vec![certificate.der().clone(), root];
        let key_der = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let callers = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            // Only to ask for admission; see `accept`.
            .allow_unauthenticated()
            .build()
            .context(impossible)?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context(impossible)?
            .with_client_cert_verifier(callers)
            .with_single_cert(chain.clone(), key_der())
            .context(impossible)?;
        // Connections are few and long: nothing to resume.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context(impossible)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key_der())
            .context(impossible)?;
        client.resumption = Resumption::disabled();
        Ok(NodeTls { client: Arc::new(client), server: Arc::new(server) })
    }
}

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";

pub fn directory_in(data: &Path) -> std::path::PathBuf {
    data.join("tls")
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(certificate).into()
}

/// The name that the certificate of `node` is for.
pub fn server_name(node: NodeId) -> ServerName<'static> {
    ServerName::try_from(name_of(node)).expect("letters, digits, '-' and '.' make a DNS name")
}

fn name_of(node: NodeId) -> String {
    format!("node-{node}.henge")
}

/// Whether `certificate`, which was verified, is that of `node`.
pub fn is_of_node(certificate: &CertificateDer<'_>, node: NodeId) -> bool {
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, &server_name(node)).is_ok())
}

/// For one who is no member yet: believes whoever has a certificate of the authority with this fingerprint. The flag
/// tells afterwards whether the other side's authority was another.
pub fn connector_by_fingerprint(expected: Fingerprint) -> (TlsConnector, Arc<AtomicBool>) {
    let mismatch = Arc::new(AtomicBool::new(false));
    let verifier = ByFingerprint { expected, mismatch: Arc::clone(&mismatch), provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has cipher suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    (TlsConnector::from(Arc::new(config)), mismatch)
}

#[derive(Debug)]
struct ByFingerprint {
    expected: Fingerprint,
    mismatch: Arc<AtomicBool>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = intermediates.iter().find(|one| fingerprint(one) == self.expected) else {
            self.mismatch.store(true, Ordering::Relaxed);
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let member = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&member, &roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The same for every start: an issuer is known by its name and key.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("henge cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    params
}

/// `until`: since 1970-01-01. It begins long ago: a node whose clock is slow is a node.
fn node_params(node: NodeId, until: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![name_of(node)])?;
    params.distinguished_name = named(&format!("henge node {node}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + until;
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::ScratchDir;

    #[test]
    fn kept_for_the_owner_only_and_refused_when_it_does_not_fit_together() {
        use std::os::unix::fs::PermissionsExt;
        let directory = ScratchDir::new("authority");
        assert!(Authority::load(directory.path()).unwrap().is_none());
        let made = Authority::make().unwrap();
        made.store(directory.path()).unwrap();
        assert!(Authority::load(directory.path()).unwrap() == Some(made.clone()));
        for name in [KEY_FILE, CERTIFICATE_FILE] {
            let mode = std::fs::metadata(directory_in(directory.path()).join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_ne!(made.fingerprint().unwrap(), Authority::make().unwrap().fingerprint().unwrap());
        let broken = Authority { key_pem: "nothing".into(), ..made };
        broken.store(directory.path()).unwrap();
        assert!(Authority::load(directory.path()).err().unwrap().0.contains("copy it from another node"));
    }
}
