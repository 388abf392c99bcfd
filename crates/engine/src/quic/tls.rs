//! TLS 1.3 settings for both ends, on rustls with aws-lc-rs. No 0-RTT and no session tickets.

use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use noq_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureAlgorithm, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoClientAuth, ParsedCertificate, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, UnixTime,
    pem::{PemObject, SectionKind},
};

use crate::{
    error::EngineError,
    quic::{
        client_chain::BoundedVerifier,
        client_leaf::AnyLeaf,
        pinned::{Pinned, PinnedClients},
    },
};

/// The rule for clients' certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without a certificate from the client CA the handshake fails.
    Required,
    /// A certificate is asked for and verified when given.
    Optional,
    /// No certificate is asked for.
    Off,
}

const RSA_WARNING: &str = "the server's key is RSA: a signature, made in every handshake while \
                           packets wait, costs 20 to 100 times one of EC P-256; replace the key";

/// A listener's certificate, key and client trust, parsed and checked against each other.
#[derive(Debug)]
pub struct ServerTls {
    config: rustls::ServerConfig,
    /// The settings of joins; `None` where nobody can join.
    join: Option<rustls::ServerConfig>,
    warnings: Vec<String>,
}

impl ServerTls {
    /// Reads PEM. `client_ca` is needed unless `client_auth` is [`ClientAuth::Off`]. `join_chain`
    /// are certificates, possibly none, that are shown behind the server's own to those who join;
    /// with `None` nobody can.
    ///
    /// # Errors
    /// When a PEM text holds no certificate or key, the key does not belong to the certificate, or
    /// the CA is missing.
    pub fn new(
        certificate: &[u8],
        key: &[u8],
        client_ca: Option<&[u8]>,
        client_auth: ClientAuth,
        join_chain: Option<&[u8]>,
    ) -> Result<Self, EngineError> {
        let verifier: Arc<dyn ClientCertVerifier> = if client_auth == ClientAuth::Off {
            Arc::new(NoClientAuth)
        } else {
            let ca = client_ca.ok_or_else(|| {
                EngineError("client certificates are asked for but no client CA is given".into())
            })?;
            let authorities = chain(ca)?;
            let optional = client_auth == ClientAuth::Optional;
            let verifier = BoundedVerifier::new(roots(&authorities)?, optional, &provider())?;
            Arc::new(PinnedClients { chain: Arc::new(verifier), pinned: Pinned::new(authorities) })
        };
        let certified = CertifiedKey::from_der(chain(certificate)?, private_key(key)?, &provider())
            .map_err(|e| EngineError::of("server certificate and key", e))?;
        let join = match join_chain {
            None => None,
            Some(pem) => {
                let mut shown = certified.clone();
                if !pem.trim_ascii().is_empty() {
                    shown.cert.extend(chain(pem).map_err(|e| EngineError::of("join chain", e))?);
                }
                Some(server_config(Arc::new(AnyLeaf(provider())), shown)?)
            }
        };
        let rsa = certified.key.algorithm() == SignatureAlgorithm::RSA;
        let config = server_config(verifier, certified)?;
        let warnings = rsa.then(|| RSA_WARNING.into()).into_iter().collect();
        Ok(Self { config, join, warnings })
    }

    /// Warnings about certificate and key, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(crate) fn quic(&self, alpn: &[Vec<u8>]) -> Result<QuicServerConfig, EngineError> {
        quic_server(&self.config, alpn)
    }

    /// The same for joins, if anybody can join.
    pub(crate) fn quic_join(
        &self,
        alpn: &[Vec<u8>],
    ) -> Result<Option<QuicServerConfig>, EngineError> {
        self.join.as_ref().map(|config| quic_server(config, alpn)).transpose()
    }
}

fn server_config(
    verifier: Arc<dyn ClientCertVerifier>,
    certified: CertifiedKey,
) -> Result<rustls::ServerConfig, EngineError> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| EngineError::of("TLS 1.3", e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn quic_server(
    config: &rustls::ServerConfig,
    alpn: &[Vec<u8>],
) -> Result<QuicServerConfig, EngineError> {
    let mut config = config.clone();
    config.alpn_protocols = alpn.to_vec();
    QuicServerConfig::try_from(config).map_err(|e| EngineError::of("QUIC over TLS", e))
}

/// The trust of a client in its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerTrust {
    /// The chain leads to the CA and the certificate carries the server's name.
    ChainAndName,
    /// The chain leads to the CA; the name is not compared.
    Chain,
    /// Any certificate. For tests and migration only.
    Anyone,
    /// The chain leads to that of the certificates shown which has this SHA-256, and the server's
    /// certificate carries its name. No CA is needed beforehand.
    Pinned([u8; 32]),
}

/// A client's trust and, where it has one, its certificate.
#[derive(Debug)]
pub struct ClientTls {
    config: rustls::ClientConfig,
    /// Its certificate without the rest of the chain.
    leaf: Option<Arc<SingleCertAndKey>>,
}

impl ClientTls {
    /// Reads PEM; `identity` is the client's certificate chain and key.
    ///
    /// # Errors
    /// As for [`ServerTls::new`]; also when `trust` needs a CA and none is given.
    pub fn new(
        ca: Option<&[u8]>,
        identity: Option<(&[u8], &[u8])>,
        trust: ServerTrust,
    ) -> Result<Self, EngineError> {
        let chain_verifier = match (ca, trust) {
            (_, ServerTrust::Anyone | ServerTrust::Pinned(_)) => None,
            (None, _) => {
                return Err(EngineError(
                    "no CA to verify the server with; give one or turn verification off".into(),
                ));
            }
            (Some(ca), _) => Some(ChainVerifier::new(chain(ca)?)?),
        };
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| EngineError::of("TLS 1.3", e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier {
                chain: chain_verifier,
                trust,
                provider: provider(),
            }));
        let (mut config, leaf) = match identity {
            None => (builder.with_no_client_auth(), None),
            Some((certificate, key)) => {
                let chain = chain(certificate)?;
                let certified = CertifiedKey::from_der(chain, private_key(key)?, &provider())
                    .map_err(|e| EngineError::of("client certificate and key", e))?;
                let mut leaf = certified.clone();
                leaf.cert.truncate(1);
                let certified = Arc::new(SingleCertAndKey::from(certified));
                let leaf = Arc::new(SingleCertAndKey::from(leaf));
                (builder.with_client_cert_resolver(certified), Some(leaf))
            }
        };
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { config, leaf })
    }

    pub(crate) fn quic(&self, alpn: &[Vec<u8>]) -> Result<QuicClientConfig, EngineError> {
        quic_client(self.config.clone(), alpn)
    }

    /// The same for a join, which shows the certificate alone.
    pub(crate) fn quic_join(&self, alpn: &[Vec<u8>]) -> Result<QuicClientConfig, EngineError> {
        let mut config = self.config.clone();
        if let Some(leaf) = &self.leaf {
            config.client_auth_cert_resolver = leaf.clone();
        }
        quic_client(config, alpn)
    }
}

fn quic_client(
    mut config: rustls::ClientConfig,
    alpn: &[Vec<u8>],
) -> Result<QuicClientConfig, EngineError> {
    config.alpn_protocols = alpn.to_vec();
    QuicClientConfig::try_from(config).map_err(|e| EngineError::of("QUIC over TLS", e))
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // The client's first offer is taken, and clients, ours and the ones in the field, offer
    // AES-128: a third less work for each packet than AES-256.
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, EngineError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(EngineError("the certificate file holds no PEM certificate".into())),
        Err(e) => Err(EngineError::of("the certificate file is not valid PEM", e)),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, EngineError> {
    // The foreign error may quote the text around the fault, so it is not passed on.
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        EngineError(format!(
            "the key file holds no PEM private key ({:?}, {:?} or {:?})",
            SectionKind::PrivateKey,
            SectionKind::EcPrivateKey,
            SectionKind::RsaPrivateKey
        ))
    })
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, EngineError> {
    let mut store = RootCertStore::empty();
    for (number, certificate) in (1..).zip(authorities) {
        store.add(certificate.clone()).map_err(|e| {
            let which = format!("CA certificate {number} of {}", authorities.len());
            EngineError::of(&which, e)
        })?;
    }
    Ok(store)
}

/// webpki's verifier, which takes a certificate that is itself among the CAs as well.
#[derive(Debug)]
struct ChainVerifier {
    chain: Arc<WebPkiServerVerifier>,
    pinned: Pinned,
}

impl ChainVerifier {
    fn new(authorities: Vec<CertificateDer<'static>>) -> Result<Self, EngineError> {
        let roots = Arc::new(roots(&authorities)?);
        let chain = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|e| EngineError::of("CA", e))?;
        Ok(Self { chain, pinned: Pinned::new(authorities) })
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict =
            self.chain.verify_server_cert(end_entity, intermediates, server_name, &[], now);
        match verdict {
            Err(error) if self.pinned.excuses(&error, end_entity) => {
                let certificate = ParsedCertificate::try_from(end_entity)?;
                verify_server_name(&certificate, server_name)
                    .map(|()| ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }
}

#[derive(Debug)]
struct Verifier {
    chain: Option<ChainVerifier>,
    trust: ServerTrust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let ServerTrust::Pinned(pin) = self.trust {
            let is_pinned = |der: &&CertificateDer<'_>| digest(&SHA256, der).as_ref() == pin;
            let shown = intermediates.iter().chain([end_entity]).find(is_pinned);
            let root = shown.ok_or(CertificateError::UnknownIssuer)?;
            let verifier = ChainVerifier::new(vec![root.clone().into_owned()])
                .map_err(|_| CertificateError::BadEncoding)?;
            return verifier.verify(end_entity, intermediates, server_name, now);
        }
        let Some(verifier) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        // webpki compares the name last, so an error about it means that the chain is good.
        match verifier.verify(end_entity, intermediates, server_name, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.trust == ServerTrust::Chain => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
