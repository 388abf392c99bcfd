//! Why a handshake failed, in words that stay the same: what is said of it is the control plane's.

use noq::ConnectionError;
use rustls::CertificateError;

use crate::shard::printable;

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub cause: FailureCause,
    /// The code of the CONNECTION_CLOSE frame the peer sent; 0 where there was none.
    pub code: u64,
    /// The words of TLS, of QUIC or of the peer, made printable.
    pub reason: String,
    /// With [`FailureCause::WrongName`] the names of the certificate.
    pub names: Vec<String>,
}

/// A closed set of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The host answers that the port is closed (ICMP "port unreachable").
    PortClosed,
    /// Nothing was heard in time.
    Silent,
    /// The peer ended the handshake, with a code.
    Peer,
    /// The peer's certificate leads to no CA that is trusted.
    UnknownIssuer,
    /// The peer's certificate is for other names.
    WrongName,
    /// The peer's certificate has expired.
    Expired,
    /// The peer's certificate begins later.
    NotYetValid,
    /// The peer's certificate is for another purpose.
    WrongPurpose,
    /// The peer shows the certificate of a CA as its own.
    AuthorityAsPeer,
    /// The peer's certificate cannot be used for another reason.
    BadCertificate,
    /// The peer shows no certificate.
    NoCertificate,
    /// A fault of this side or of the protocol.
    Other,
}

impl FailureCause {
    /// A stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PortClosed => "port_closed",
            Self::Silent => "silent",
            Self::Peer => "peer",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongName => "wrong_name",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongPurpose => "wrong_purpose",
            Self::AuthorityAsPeer => "authority_as_peer",
            Self::BadCertificate => "bad_certificate",
            Self::NoCertificate => "no_certificate",
            Self::Other => "other",
        }
    }
}

impl Failure {
    pub(crate) fn new(cause: FailureCause, reason: impl Into<String>) -> Self {
        Self { cause, code: 0, reason: reason.into(), names: Vec::new() }
    }

    /// A fault of this side.
    pub(crate) fn local(error: impl ToString) -> Self {
        Self::new(FailureCause::Other, error.to_string())
    }

    pub(crate) fn of(error: &ConnectionError) -> Self {
        let mut failure = Self::local(error);
        match error {
            ConnectionError::ConnectionClosed(close) => {
                failure.cause = FailureCause::Peer;
                failure.code = close.error_code.into();
                failure.reason = printable(&close.reason);
            }
            ConnectionError::ApplicationClosed(close) => {
                failure.cause = FailureCause::Peer;
                failure.code = close.error_code.into_inner();
                failure.reason = printable(&close.reason);
            }
            ConnectionError::TimedOut => failure.cause = FailureCause::Silent,
            ConnectionError::TransportError(error) => {
                let tls = error.crypto.as_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
                if let Some(tls) = tls {
                    failure.reason = tls.to_string();
                    (failure.cause, failure.names) = of_tls(tls);
                }
            }
            _ => {}
        }
        failure
    }
}

fn of_tls(error: &rustls::Error) -> (FailureCause, Vec<String>) {
    use CertificateError as Fault;
    let mut names = Vec::new();
    let cause = match error {
        rustls::Error::NoCertificatesPresented => FailureCause::NoCertificate,
        rustls::Error::InvalidCertificate(fault) => match fault {
            Fault::UnknownIssuer | Fault::BadSignature => FailureCause::UnknownIssuer,
            Fault::NotValidForName => FailureCause::WrongName,
            Fault::NotValidForNameContext { presented, .. } => {
                names = presented.iter().map(|name| plain(name)).collect();
                FailureCause::WrongName
            }
            Fault::Expired | Fault::ExpiredContext { .. } => FailureCause::Expired,
            Fault::NotValidYet | Fault::NotValidYetContext { .. } => FailureCause::NotYetValid,
            Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. } => {
                FailureCause::WrongPurpose
            }
            Fault::Other(other)
                if other.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity) =>
            {
                FailureCause::AuthorityAsPeer
            }
            _ => FailureCause::BadCertificate,
        },
        _ => FailureCause::Other,
    };
    (cause, names)
}

/// A name as rustls gives it, `DnsName("relay.example")` or `IpAddress(192.0.2.1)`, by itself.
fn plain(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    printable(inner.unwrap_or(name).trim_matches('"').as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_by_itself() {
        for (given, expected) in [
            ("DnsName(\"relay.example\")", "relay.example"),
            ("IpAddress(192.0.2.1)", "192.0.2.1"),
            ("relay.example", "relay.example"),
            ("DnsName(\"a\nb\")", "a\u{FFFD}b"),
        ] {
            assert_eq!(plain(given), expected);
        }
    }
}
