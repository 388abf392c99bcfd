//! The reasons of failed handshakes and ended connections, from the errors of QUIC and TLS.

use noq::ConnectionError;
use rustls::CertificateError;

use crate::boundary::event::{CloseCause, Failure, FailureCause};

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

/// The end of a connection: its cause, the code and the reason.
pub(crate) fn describe(error: &ConnectionError) -> (CloseCause, u64, String) {
    match error {
        ConnectionError::LocallyClosed => (CloseCause::Local, 0, String::new()),
        ConnectionError::ApplicationClosed(close) => {
            (CloseCause::Application, close.error_code.into_inner(), printable(&close.reason))
        }
        ConnectionError::ConnectionClosed(close) => {
            (CloseCause::Peer, close.error_code.into(), printable(&close.reason))
        }
        ConnectionError::TransportError(e) => {
            (CloseCause::Transport, e.code.into(), printable(e.reason.as_bytes()))
        }
        ConnectionError::TimedOut => (CloseCause::IdleTimeout, 0, String::new()),
        ConnectionError::Reset => (CloseCause::Reset, 0, String::new()),
        other => (CloseCause::Transport, 0, other.to_string()),
    }
}

/// A peer's words made safe for a log: one line of at most 256 characters.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .take(256)
        .map(|c| if c.is_control() { '\u{FFFD}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_are_one_printable_line() {
        assert_eq!(printable(b"a\nb\x1b[31m\xff"), "a\u{FFFD}b\u{FFFD}[31m\u{FFFD}");
        assert_eq!(printable(&[b'x'; 999]).len(), 256);
    }

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
