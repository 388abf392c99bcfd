//! Retry tokens (RFC 9000 section 8.1): sealed with AES-256-GCM under a key that outlives the
//! process, and good for one handshake only.
//!
//! A client sends its token in every first packet that it repeats, and takes no second Retry
//! (section 17.2.5.2). So a token is spent by the handshake that it lets in, and not when it is
//! shown: an ignored attempt comes again with the same one.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{aead, hkdf};
use noq_proto::{
    ConnectionId,
    crypto::{CryptoError, HandshakeTokenKey},
};

use crate::boundary::counters::Counters;

/// Tokens kept for each of the two generations; with more, the older generation is let go early.
const SPENT_MAX: usize = 65_536;

/// Seals and opens Retry tokens.
///
/// Every token has a key of its own, derived from the master key and the token's 128-bit nonce, so
/// that a random nonce can never repeat an AES-GCM one.
pub(crate) struct TokenKey {
    master: hkdf::Prk,
    counters: Arc<Counters>,
}

impl TokenKey {
    pub(crate) fn new(secret: &[u8], counters: Arc<Counters>) -> Self {
        Self {
            master: hkdf::Salt::new(hkdf::HKDF_SHA256, b"ztna retry token").extract(secret),
            counters,
        }
    }

    fn key(&self, nonce: u128) -> Result<aead::LessSafeKey, CryptoError> {
        let info = nonce.to_le_bytes();
        let mut bytes = [0; 32];
        self.master
            .expand(&[&info], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut bytes))
            .and_then(|()| aead::UnboundKey::new(&aead::AES_256_GCM, &bytes))
            .map(aead::LessSafeKey::new)
            .map_err(|_| CryptoError)
    }
}

impl HandshakeTokenKey for TokenKey {
    fn seal(&self, nonce: u128, data: &mut Vec<u8>) -> Result<(), CryptoError> {
        self.key(nonce)?
            .seal_in_place_append_tag(zero_nonce(), aead::Aad::empty(), data)
            .map_err(|_| CryptoError)
    }

    fn open<'a>(&self, nonce: u128, data: &'a mut [u8]) -> Result<&'a [u8], CryptoError> {
        let opened = self.key(nonce)?.open_in_place(zero_nonce(), aead::Aad::empty(), data);
        opened.map(|plain| &*plain).map_err(|_| {
            self.counters.retry_invalid.add(1);
            CryptoError
        })
    }
}

fn zero_nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; 12])
}

/// The tokens that have let a handshake in, for as long as they are valid.
///
/// A token is known by its address and by the connection id of the packet that it answered.
#[derive(Debug)]
pub(crate) struct SpentTokens {
    lifetime: Duration,
    current: HashSet<(ConnectionId, SocketAddr)>,
    previous: HashSet<(ConnectionId, SocketAddr)>,
    turned: Instant,
}

impl SpentTokens {
    pub(crate) fn new(lifetime: Duration) -> Self {
        let (current, previous) = Default::default();
        Self { lifetime, current, previous, turned: Instant::now() }
    }

    pub(crate) fn contains(&self, token: ConnectionId, remote: SocketAddr) -> bool {
        let spent = &(token, remote);
        self.current.contains(spent) || self.previous.contains(spent)
    }

    pub(crate) fn spend(&mut self, token: ConnectionId, remote: SocketAddr, now: Instant) {
        if now.duration_since(self.turned) > self.lifetime || self.current.len() >= SPENT_MAX {
            self.previous = std::mem::take(&mut self.current);
            self.turned = now;
        }
        self.current.insert((token, remote));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_under_the_same_secret_only() {
        let key = |secret: &[u8]| TokenKey::new(secret, Arc::default());
        let (ours, theirs) = (key(b"one"), key(b"two"));
        let mut sealed = b"address".to_vec();
        ours.seal(7, &mut sealed).unwrap();
        assert!(theirs.open(7, &mut sealed.clone()).is_err());
        assert!(ours.open(8, &mut sealed.clone()).is_err());
        assert_eq!(ours.open(7, &mut sealed.clone()).unwrap(), b"address");
        assert_eq!(key(b"one").open(7, &mut sealed).unwrap(), b"address", "after a restart");
        assert_eq!(ours.counters.retry_invalid.get(), 1);
    }

    fn token(n: u64) -> ConnectionId {
        ConnectionId::new(&n.to_be_bytes())
    }

    #[test]
    fn a_spent_token_is_remembered_while_it_is_valid() {
        let remote = "192.0.2.1:4433".parse().unwrap();
        let mut spent = SpentTokens::new(Duration::from_secs(15));
        let start = spent.turned;
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            assert!(!spent.contains(token(second), remote));
            spent.spend(token(second), remote, now);
            for earlier in second.saturating_sub(15)..=second {
                assert!(spent.contains(token(earlier), remote), "{earlier} at {second}");
            }
        }
        assert!(!spent.contains(token(59), "192.0.2.1:4434".parse().unwrap()), "another client's");
    }

    #[test]
    fn spent_tokens_are_bounded() {
        let remote = "192.0.2.1:4433".parse().unwrap();
        let mut spent = SpentTokens::new(Duration::from_secs(15));
        let now = spent.turned;
        for n in 0..(3 * SPENT_MAX as u64) {
            spent.spend(token(n), remote, now);
        }
        assert!(spent.current.len() + spent.previous.len() <= 2 * SPENT_MAX);
    }
}
