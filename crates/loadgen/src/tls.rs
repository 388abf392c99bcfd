//! TLS as the clients in the field speak it: TLS 1.3, ALPN `ztna-v1`, X25519 and AES-128 first, no resumption.

use std::{path::Path, sync::Arc};

use noq::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use crate::{Failure, options::Common};

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    Arc::new(provider)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    read().map_err(|error| {
        format!("cannot read certificates from {}: {error}", path.display()).into()
    })
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| format!("cannot read a key from {}: {error}", path.display()).into())
}

/// Accepts any server, so that a handshake measurement spends the generator's core on more handshakes.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The client settings of every identity; one anonymous entry without `--cert`.
pub fn clients(common: &Common) -> Result<Vec<Arc<QuicClientConfig>>, Failure> {
    let provider = provider();
    let mut roots = RootCertStore::empty();
    if let Some(path) = &common.ca {
        for certificate in chain(path)? {
            roots.add(certificate)?;
        }
    } else if !common.insecure {
        return Err("give --ca FILE, or --insecure to accept any server".into());
    }
    let roots = Arc::new(roots);
    let names: Vec<Option<(String, String)>> = match (&common.cert, &common.key) {
        (Some(cert), Some(key)) => (0..common.identities)
            .map(|number| number.to_string())
            .map(|number| Some((cert.replace("{}", &number), key.replace("{}", &number))))
            .collect(),
        _ => vec![None],
    };
    names
        .iter()
        .map(|files| {
            let builder = ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?;
            let builder = if common.insecure {
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(AnyServer(provider.clone())))
            } else {
                builder.with_root_certificates(roots.clone())
            };
            let mut config = match files {
                Some((certificate, private)) => builder.with_client_auth_cert(
                    chain(Path::new(certificate))?,
                    key(Path::new(private))?,
                )?,
                None => builder.with_no_client_auth(),
            };
            config.alpn_protocols = vec![b"ztna-v1".to_vec()];
            config.resumption = Resumption::disabled();
            Ok(Arc::new(QuicClientConfig::try_from(config)?))
        })
        .collect()
}

/// The settings of the echo endpoint that stands in for relay and connector in the direct baseline.
pub fn echo_server(certificate: &Path, private: &Path) -> Result<Arc<QuicServerConfig>, Failure> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain(certificate)?, key(private)?)?;
    config.alpn_protocols = vec![b"ztna-v1".to_vec()];
    Ok(Arc::new(QuicServerConfig::try_from(config)?))
}
