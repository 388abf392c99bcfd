//! Retry tokens (RFC 9000 section 8.1): sealed with AES-256-GCM under a key that outlives the
//! process, and good for one handshake only.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aws_lc_rs::{aead, hkdf};
use noq_proto::crypto::{CryptoError, HandshakeTokenKey};

use crate::counters::Counters;

/// Nonces kept for each of the two generations; with more, the older generation is let go early.
const SEEN_MAX: usize = 65_536;

/// Seals and opens Retry tokens.
///
/// Every token has a key of its own, derived from the master key and the token's 128-bit nonce, so
/// that a random nonce can never repeat an AES-GCM one. A token opened twice within its lifetime is
/// treated as no token at all: the sender is asked to prove its address again.
pub(crate) struct TokenKey {
    master: hkdf::Prk,
    lifetime: Duration,
    seen: Mutex<Seen>,
    counters: Arc<Counters>,
}

struct Seen {
    current: HashSet<u128>,
    previous: HashSet<u128>,
    turned: Instant,
}

impl TokenKey {
    pub(crate) fn new(secret: &[u8], lifetime: Duration, counters: Arc<Counters>) -> Self {
        Self {
            master: hkdf::Salt::new(hkdf::HKDF_SHA256, b"ztna retry token").extract(secret),
            lifetime,
            seen: Mutex::new(Seen {
                current: HashSet::new(),
                previous: HashSet::new(),
                turned: Instant::now(),
            }),
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

    fn first_use(&self, nonce: u128, now: Instant) -> bool {
        let Ok(mut seen) = self.seen.lock() else {
            return false;
        };
        if now.duration_since(seen.turned) > self.lifetime || seen.current.len() >= SEEN_MAX {
            seen.previous = std::mem::take(&mut seen.current);
            seen.turned = now;
        }
        !seen.previous.contains(&nonce) && seen.current.insert(nonce)
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
        match opened {
            Ok(plain) if self.first_use(nonce, Instant::now()) => Ok(plain),
            _ => {
                self.counters.retry_invalid.add(1);
                Err(CryptoError)
            }
        }
    }
}

fn zero_nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &[u8]) -> TokenKey {
        TokenKey::new(secret, Duration::from_secs(15), Arc::default())
    }

    #[test]
    fn a_token_opens_once_under_the_same_secret_only() {
        let (ours, theirs) = (key(b"one"), key(b"two"));
        let mut sealed = b"address".to_vec();
        ours.seal(7, &mut sealed).unwrap();
        assert!(theirs.open(7, &mut sealed.clone()).is_err());
        assert!(ours.open(8, &mut sealed.clone()).is_err());
        assert_eq!(ours.open(7, &mut sealed.clone()).unwrap(), b"address");
        assert!(ours.open(7, &mut sealed.clone()).is_err(), "replayed");
        assert_eq!(key(b"one").open(7, &mut sealed).unwrap(), b"address", "after a restart");
        assert_eq!(ours.counters.retry_invalid.get(), 2);
    }

    #[test]
    fn seen_nonces_are_bounded() {
        let ours = key(b"one");
        let now = Instant::now();
        for nonce in 0..(3 * SEEN_MAX as u128) {
            assert!(ours.first_use(nonce, now));
        }
        let seen = ours.seen.lock().unwrap();
        assert!(seen.current.len() + seen.previous.len() <= 2 * SEEN_MAX);
    }
}
