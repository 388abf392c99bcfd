//! A range of inner addresses and the order in which its addresses are tried for somebody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::source_ok;

/// Addresses tried before a pool counts as exhausted. Pools of up to this size are tried in full;
/// in a larger one that is 95 % taken the chance to miss a free address is one in 500,000.
const MAX_PROBES: u128 = 256;

/// A prefix that addresses are leased from, IPv4 /8 to /30 or IPv6 /32 to /120.
#[derive(Clone, Debug)]
pub struct Pool {
    network: u128,
    host_bits: u32,
    v6: bool,
    reserved: Vec<IpAddr>,
}

impl Pool {
    /// A pool without the `reserved` addresses; bits of `network` beyond `prefix` are ignored. The
    /// error says what to change.
    pub fn new(network: IpAddr, prefix: u8, reserved: &[IpAddr]) -> Result<Self, String> {
        let (bits, allowed, value) = match network {
            IpAddr::V4(network) => (32, 8..=30, u128::from(network.to_bits())),
            IpAddr::V6(network) => (128, 32..=120, network.to_bits()),
        };
        if !allowed.contains(&prefix) {
            let (low, high) = allowed.into_inner();
            return Err(format!(
                "inner address pool {network}/{prefix}: the prefix must be /{low} to /{high}"
            ));
        }
        let host_bits = bits - u32::from(prefix);
        let pool = Self {
            network: value >> host_bits << host_bits,
            host_bits,
            v6: network.is_ipv6(),
            reserved: reserved.to_vec(),
        };
        let hosts = 1u128 << host_bits;
        if source_ok(pool.address(1)).is_err() || source_ok(pool.address(hosts - 2)).is_err() {
            return Err(format!(
                "inner address pool {network}/{prefix}: these addresses cannot be used as a source"
            ));
        }
        Ok(pool)
    }

    /// Whether `address` may ever be leased, inside this pool or out of it.
    ///
    /// Not the pool's first and last address (the network and its broadcast address in IPv4, the
    /// routers' anycast address in IPv6), not a reserved one.
    pub fn may_lease(&self, address: IpAddr) -> bool {
        let (value, v6) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), false),
            IpAddr::V6(address) => (address.to_bits(), true),
        };
        let last = (1u128 << self.host_bits) - 1;
        let edge = v6 == self.v6 && (value == self.network || value == self.network | last);
        !edge && !self.reserved.contains(&address) && source_ok(address).is_ok()
    }

    /// The address leased to somebody with this hash while nobody else holds it.
    pub fn first(&self, hash: [u8; 32]) -> Option<IpAddr> {
        self.probes(hash).next()
    }

    /// The addresses to try for somebody with this hash, best first.
    ///
    /// The `i`th has the host part `(start + i * step) mod 2^host_bits`, where `start` is the first
    /// half of the hash as a big-endian number and `step` the second half made odd, so that every
    /// host part comes up once. Addresses that may not be leased are left out.
    pub fn probes(&self, hash: [u8; 32]) -> impl Iterator<Item = IpAddr> + '_ {
        let [mut start, mut step] = [[0; 16]; 2];
        start.copy_from_slice(&hash[..16]);
        step.copy_from_slice(&hash[16..]);
        let (start, step) = (u128::from_be_bytes(start), u128::from_be_bytes(step) | 1);
        (0..MAX_PROBES.min(1 << self.host_bits))
            .map(move |index| self.address(start.wrapping_add(step.wrapping_mul(index))))
            .filter(|address| self.may_lease(*address))
    }

    fn address(&self, host: u128) -> IpAddr {
        let value = self.network | (host & ((1 << self.host_bits) - 1));
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from_bits(value))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(value as u32))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str, prefix: u8) -> Result<Pool, String> {
        Pool::new(text.parse().unwrap(), prefix, &[])
    }

    #[test]
    fn the_first_probe_is_the_hash_modulo_the_pool() {
        let mut hash = [0; 32];
        hash[12..16].copy_from_slice(&[0x12, 0xFF, 0x34, 0x56]);
        let pool = pool("100.64.0.0", 10).unwrap();
        let first: Vec<_> = pool.probes(hash).take(2).collect();
        assert_eq!(
            first,
            ["100.127.52.86".parse::<IpAddr>().unwrap(), "100.127.52.87".parse().unwrap()]
        );
    }

    #[test]
    fn a_small_pool_is_tried_in_full_and_without_its_edges() {
        let pool =
            Pool::new("10.9.8.0".parse().unwrap(), 29, &["10.9.8.3".parse().unwrap()]).unwrap();
        let mut all: Vec<_> = pool.probes([0xAB; 32]).collect();
        all.sort();
        let expected: Vec<IpAddr> =
            [1, 2, 4, 5, 6].iter().map(|host| IpAddr::V4(Ipv4Addr::new(10, 9, 8, *host))).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn prefixes_that_make_no_sense_are_refused() {
        for (network, prefix) in [
            ("10.0.0.0", 7),
            ("10.0.0.0", 31),
            ("10.0.0.0", 255),
            ("127.0.0.0", 8),
            ("224.0.0.0", 8),
            ("fd00::", 31),
            ("fd00::", 121),
            ("fe80::", 64),
            ("::ffff:0:0", 96),
        ] {
            assert!(pool(network, prefix).is_err(), "{network}/{prefix}");
        }
        assert!(pool("10.0.0.0", 8).is_ok());
        assert!(pool("fd64:7a74:6e61::", 64).is_ok());
    }
}
