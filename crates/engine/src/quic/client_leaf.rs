//! The certificates that clients show when they join: any one, of which TLS proves the key.
//!
//! The control plane knows the certificates that it has issued by their SHA-256, so none is traced
//! back to a CA here, and one that has expired can still ask for the next.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::quic::client_chain::{self, usable};

/// Bytes of a certificate.
const MAX_CERTIFICATE: usize = 4 * 1024;

/// The reason of certificates refused unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Chain,
    TooLarge(usize),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain => write!(f, "the client sent certificates beside its own"),
            Self::TooLarge(size) => write!(
                f,
                "the client sent a certificate of {size} bytes; at most {MAX_CERTIFICATE} are read"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Takes clients without a certificate, and with one whatever it says.
#[derive(Debug)]
pub(crate) struct AnyLeaf(pub(crate) Arc<CryptoProvider>);

impl ClientCertVerifier for AnyLeaf {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !intermediates.is_empty() {
            return Err(Refusal::Chain.into());
        }
        if end_entity.len() > MAX_CERTIFICATE {
            return Err(Refusal::TooLarge(end_entity.len()).into());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if !usable(&parsed.subject_public_key_info()) {
            return Err(client_chain::Refusal::Key.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::crypto::aws_lc_rs;

    use super::*;

    fn judged(leaf: Vec<u8>, others: usize) -> Option<Refusal> {
        let verifier = AnyLeaf(Arc::new(aws_lc_rs::default_provider()));
        let others = vec![CertificateDer::from(vec![0; 10]); others];
        let now = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        match verifier.verify_client_cert(&leaf.into(), &others, now) {
            Err(Error::InvalidCertificate(CertificateError::Other(OtherError(e)))) => {
                e.downcast_ref().copied()
            }
            _ => None,
        }
    }

    #[test]
    fn what_is_more_than_a_leaf_is_not_parsed() {
        assert_eq!(judged(vec![0; MAX_CERTIFICATE], 1), Some(Refusal::Chain));
        assert_eq!(judged(vec![0; MAX_CERTIFICATE + 1], 0), Some(Refusal::TooLarge(4097)));
        assert_eq!(judged(vec![0; MAX_CERTIFICATE], 0), None, "parsed, and found to be nothing");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_for_a_certificate(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
            judged(bytes.clone(), 0);
            judged([&[0x30, 0x81, bytes.len() as u8][..], &bytes].concat(), 0);
        }
    }
}
