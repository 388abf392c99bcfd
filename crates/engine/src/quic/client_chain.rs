//! Bounds what a client's certificate chain may cost: it is verified on the thread that relays
//! packets, before its sender has proven anything.
//!
//! webpki tries every order in which certificates could have signed each other and allows 100
//! signature checks for it: nine certificates of one name cost a fifth of a second. So a chain that
//! is longer or larger than real ones is refused before it is parsed, and the search for a path
//! ends after a few signature checks.

use std::{
    cell::Cell,
    fmt,
    sync::{Arc, LazyLock},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
    UnixTime, alg_id,
};

use crate::error::EngineError;

/// Certificates a client may send beside its own.
const MAX_INTERMEDIATES: usize = 4;
/// Bytes of one certificate.
const MAX_CERTIFICATE: usize = 8 * 1024;
/// Bytes of all certificates together.
const MAX_CHAIN: usize = 16 * 1024;
/// Bytes of a public key with its algorithm (SubjectPublicKeyInfo): RSA of 4096 bits with an
/// exponent of up to 33 bits, which is all that the library takes, has 552.
const MAX_KEY: usize = 552;
/// Signature checks in the search for a path. The longest chain takes five; the rest is for several
/// certificates of one name, while a CA changes its key.
const MAX_SIGNATURE_CHECKS: u32 = 12;
/// Bytes of the names of all client CAs from which on handshakes leave them out (RFC 8446 section
/// 4.2.4 leaves it open).
const MAX_HINTS: usize = 4 * 1024;

/// The reason of a chain refused without verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooMany(usize),
    CertificateTooLarge(usize),
    ChainTooLarge(usize),
    Key,
    SignatureChecks,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany(sent) => write!(
                f,
                "the client sent {sent} certificates beside its own; at most {MAX_INTERMEDIATES} \
                 are verified, so give it its intermediate CAs only"
            ),
            Self::CertificateTooLarge(size) => write!(
                f,
                "the client sent a certificate of {size} bytes; at most {MAX_CERTIFICATE} are \
                 verified"
            ),
            Self::ChainTooLarge(size) => write!(
                f,
                "the client's certificates have {size} bytes; at most {MAX_CHAIN} are verified"
            ),
            Self::Key => write!(
                f,
                "the client sent a certificate of another key than EC P-256, EC P-384, Ed25519 or \
                 RSA up to 4096 bits"
            ),
            Self::SignatureChecks => write!(
                f,
                "the client's certificates lead to no client CA within {MAX_SIGNATURE_CHECKS} \
                 signature checks; remove those that its own certificate does not need"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

impl Refusal {
    /// The refusal that a handshake failed for, if it was one.
    pub(crate) fn of(error: &noq::ConnectionError) -> Option<Self> {
        let noq::ConnectionError::TransportError(error) = error else {
            return None;
        };
        match error.crypto.as_deref()?.downcast_ref()? {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(refusal))) => {
                refusal.downcast_ref().copied()
            }
            _ => None,
        }
    }
}

/// webpki's verifier behind the bounds of this module.
#[derive(Debug)]
pub(crate) struct BoundedVerifier(Arc<dyn ClientCertVerifier>);

impl BoundedVerifier {
    /// `optional` lets clients without a certificate in.
    ///
    /// # Errors
    /// When `roots` is empty.
    pub(crate) fn new(
        roots: RootCertStore,
        optional: bool,
        provider: &CryptoProvider,
    ) -> Result<Self, EngineError> {
        let mut counting = provider.clone();
        counting.signature_verification_algorithms.all = COUNTING_REFS.as_slice();
        let hints: usize = roots.subjects().iter().map(|name| name.as_ref().len()).sum();
        let mut builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(counting));
        if optional {
            builder = builder.allow_unauthenticated();
        }
        if hints > MAX_HINTS {
            builder = builder.clear_root_hint_subjects();
        }
        builder.build().map(Self).map_err(|e| EngineError::of("client CA", e))
    }
}

impl ClientCertVerifier for BoundedVerifier {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        bounded(end_entity, intermediates)?;
        SIGNATURE_CHECKS.set(0);
        let verdict = self.0.verify_client_cert(end_entity, intermediates, now);
        if verdict.is_err() && SIGNATURE_CHECKS.get() > MAX_SIGNATURE_CHECKS {
            return Err(Refusal::SignatureChecks.into());
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Refuses a chain that is larger than real ones before it is parsed, then one with a key that is
/// too costly to use.
fn bounded(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), rustls::Error> {
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(Refusal::TooMany(intermediates.len()).into());
    }
    let chain = || intermediates.iter().chain([end_entity]);
    if let Some(size) = chain().map(|der| der.len()).find(|size| *size > MAX_CERTIFICATE) {
        return Err(Refusal::CertificateTooLarge(size).into());
    }
    let size = chain().map(|der| der.len()).sum();
    if size > MAX_CHAIN {
        return Err(Refusal::ChainTooLarge(size).into());
    }
    for certificate in chain() {
        let parsed = ParsedCertificate::try_from(certificate)?;
        if !usable(&parsed.subject_public_key_info()) {
            return Err(Refusal::Key.into());
        }
    }
    Ok(())
}

/// Whether a public key, a SubjectPublicKeyInfo (RFC 5280 section 4.1), is of a kind that is used.
pub(crate) fn usable(key: &[u8]) -> bool {
    const KINDS: [AlgorithmIdentifier; 4] =
        [alg_id::ECDSA_P256, alg_id::ECDSA_P384, alg_id::ED25519, alg_id::RSA_ENCRYPTION];
    let kind = sequence(key).and_then(sequence);
    key.len() <= MAX_KEY && KINDS.iter().any(|known| Some(known.as_ref()) == kind)
}

/// The contents of the DER SEQUENCE that `der` begins with.
fn sequence(der: &[u8]) -> Option<&[u8]> {
    let (contents, len) = match der {
        [0x30, len @ 0..=0x7F, rest @ ..] => (rest, usize::from(*len)),
        [0x30, 0x81, len, rest @ ..] => (rest, usize::from(*len)),
        [0x30, 0x82, high, low, rest @ ..] => {
            (rest, usize::from(u16::from_be_bytes([*high, *low])))
        }
        _ => return None,
    };
    contents.get(..len)
}

thread_local! {
    /// Signature checks of the verification under way, which never leaves its thread.
    static SIGNATURE_CHECKS: Cell<u32> = const { Cell::new(0) };
}

static COUNTING: LazyLock<Vec<Counting>> = LazyLock::new(|| {
    let known = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    known.iter().map(|algorithm| Counting(*algorithm)).collect()
});

static COUNTING_REFS: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> =
    LazyLock::new(|| COUNTING.iter().map(|each| each as _).collect());

/// A signature algorithm that fails once a verification has used up its checks.
#[derive(Debug)]
struct Counting(&'static dyn SignatureVerificationAlgorithm);

impl SignatureVerificationAlgorithm for Counting {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let checks = SIGNATURE_CHECKS.get() + 1;
        SIGNATURE_CHECKS.set(checks);
        if checks > MAX_SIGNATURE_CHECKS {
            return Err(InvalidSignature);
        }
        self.0.verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls_pki_types::{Der, TrustAnchor};

    use super::*;

    fn reason(refused: Result<(), rustls::Error>) -> Option<Refusal> {
        match refused {
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(e)))) => {
                e.downcast_ref().copied()
            }
            _ => None,
        }
    }

    #[test]
    fn what_is_longer_or_larger_than_chains_are_is_not_parsed() {
        let der = |size| CertificateDer::from(vec![0; size]);
        let judged = |leaf, others: &[usize]| {
            let others: Vec<_> = others.iter().map(|size| der(*size)).collect();
            reason(bounded(&der(leaf), &others))
        };
        assert_eq!(
            judged(8192, &[2048; 4]),
            None,
            "at the limits: parsed, and found to be nothing"
        );
        assert_eq!(judged(1, &[1; 5]), Some(Refusal::TooMany(5)));
        assert_eq!(judged(8193, &[]), Some(Refusal::CertificateTooLarge(8193)));
        assert_eq!(judged(1, &[8193]), Some(Refusal::CertificateTooLarge(8193)));
        assert_eq!(judged(8192, &[4096, 4097]), Some(Refusal::ChainTooLarge(16_385)));
    }

    /// A key of `kind` whose DER has `size` bytes, above 255.
    fn key(kind: AlgorithmIdentifier, size: usize) -> Vec<u8> {
        let [high, low] = u16::try_from(size - 4).unwrap().to_be_bytes();
        let mut key = vec![0x30, 0x82, high, low, 0x30, kind.len() as u8];
        key.extend_from_slice(kind.as_ref());
        key.resize(size, 0);
        key
    }

    #[test]
    fn keys_that_are_dear_to_use_are_not_used() {
        for kind in [alg_id::ECDSA_P256, alg_id::ECDSA_P384, alg_id::ED25519] {
            assert!(usable(&key(kind, 300)));
        }
        assert!(usable(&key(alg_id::RSA_ENCRYPTION, 552)), "4096 bits");
        assert!(!usable(&key(alg_id::RSA_ENCRYPTION, 553)));
        assert!(!usable(&key(alg_id::ECDSA_P521, 300)) && !usable(&key(alg_id::ML_DSA_87, 300)));
        assert!(!usable(&key(alg_id::ECDSA_P256, 300)[..299]), "cut short");
    }

    #[test]
    fn the_names_of_very_many_client_cas_are_not_sent_in_every_handshake() {
        let hints = |count: usize| {
            let roots = (0..count).map(|n| TrustAnchor {
                subject: Der::from(n.to_be_bytes().to_vec()),
                subject_public_key_info: Der::from(vec![0]),
                name_constraints: None,
            });
            let store = RootCertStore { roots: roots.collect() };
            let verifier = BoundedVerifier::new(store, false, &aws_lc_rs::default_provider());
            verifier.unwrap().root_hint_subjects().len()
        };
        assert_eq!((hints(100), hints(1000)), (100, 0));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_for_a_key(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            usable(&bytes);
            usable(&[&[0x30, 0x82][..], &bytes].concat());
        }
    }
}
