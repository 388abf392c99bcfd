//! A range of inner addresses: the reserved ones of identities, in the order in which they are
//! tried for one, and behind them the ones that are shared in turn.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{packet::source_ok, relay::service_address::is_service_address};

/// Addresses tried before a pool counts as exhausted. Pools of up to this size are tried in full;
/// in a larger one that is 95 % taken the chance to miss a free address is one in 500,000.
const MAX_PROBES: u128 = 256;

/// A prefix that addresses are leased from, IPv4 /8 to /30 or IPv6 /32 to /120.
#[derive(Clone, Debug)]
pub struct Pool {
    network: u128,
    host_bits: u32,
    /// The host parts whose first so many bits are all ones are shared.
    shared_bits: u32,
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
            // A sixteenth of an IPv4 pool; half of one so small that too few would be left.
            shared_bits: match host_bits {
                ..8 => 1,
                8..32 => 4,
                32.. => 16,
            },
            v6: network.is_ipv6(),
            reserved: reserved.to_vec(),
        };
        if source_ok(pool.address(1)).is_err() || source_ok(pool.address(pool.last() - 1)).is_err()
        {
            return Err(format!(
                "inner address pool {network}/{prefix}: these addresses cannot be used as a source"
            ));
        }
        Ok(pool)
    }

    /// Whether `address` lies in the pool and may ever be leased.
    ///
    /// Not the pool's first and last address (the network and its broadcast address in IPv4, the
    /// routers' anycast address in IPv6), not a reserved one, not where service addresses lie.
    pub fn may_lease(&self, address: IpAddr) -> bool {
        let Some(host) = self.host(address) else {
            return false;
        };
        let tunnel = host == 0 || host == self.last();
        !tunnel
            && !self.reserved.contains(&address)
            && !is_service_address(address)
            && source_ok(address).is_ok()
    }

    /// Whether an address of the pool is one of the shared ones, which are never reserved.
    pub fn is_shared(&self, address: IpAddr) -> bool {
        self.host(address).is_some_and(|host| self.shares(host))
    }

    /// The number of shared addresses.
    pub fn shared(&self) -> u128 {
        1 << (self.host_bits - self.shared_bits)
    }

    /// The `index`th of the shared addresses, in an order that `seed` gives; every one comes up once
    /// in [`shared`](Self::shared) turns. `None`: it may not be leased.
    pub fn turn(&self, seed: u128, index: u128) -> Option<IpAddr> {
        let step = seed >> 64 | 1;
        let low = seed.wrapping_add(step.wrapping_mul(index)) & (self.shared() - 1);
        let host = self.last() & !(self.shared() - 1) | low;
        Some(self.address(host)).filter(|address| self.may_lease(*address))
    }

    /// The first choice of a reserved address for this hash.
    pub fn first(&self, hash: [u8; 32]) -> Option<IpAddr> {
        self.probes(hash).next()
    }

    /// The reserved addresses to try for this hash, best first.
    ///
    /// The `i`th has the host part `(start + i * step) mod 2^host_bits`, where `start` is the first
    /// half of the hash as a big-endian number and `step` the second half made odd, so that every
    /// host part comes up once. Addresses that are shared or may not be leased are left out.
    pub fn probes(&self, hash: [u8; 32]) -> impl Iterator<Item = IpAddr> + '_ {
        let [mut start, mut step] = [[0; 16]; 2];
        start.copy_from_slice(&hash[..16]);
        step.copy_from_slice(&hash[16..]);
        let (start, step) = (u128::from_be_bytes(start), u128::from_be_bytes(step) | 1);
        (0..MAX_PROBES.min(1 << self.host_bits))
            .map(move |index| start.wrapping_add(step.wrapping_mul(index)) & self.last())
            .filter(|host| !self.shares(*host))
            .map(|host| self.address(host))
            .filter(|address| self.may_lease(*address))
    }

    /// The host part of an address of the pool.
    fn host(&self, address: IpAddr) -> Option<u128> {
        let (value, v6) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), false),
            IpAddr::V6(address) => (address.to_bits(), true),
        };
        let host = value ^ self.network;
        (v6 == self.v6 && host <= self.last()).then_some(host)
    }

    fn shares(&self, host: u128) -> bool {
        host >> (self.host_bits - self.shared_bits) == (1 << self.shared_bits) - 1
    }

    fn last(&self) -> u128 {
        (1 << self.host_bits) - 1
    }

    fn address(&self, host: u128) -> IpAddr {
        let value = self.network | host;
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
        hash[12..16].copy_from_slice(&[0x12, 0xF7, 0x34, 0x56]);
        let pool = pool("100.64.0.0", 10).unwrap();
        let first: Vec<_> = pool.probes(hash).take(2).collect();
        assert_eq!(
            first,
            ["100.119.52.86".parse::<IpAddr>().unwrap(), "100.119.52.87".parse().unwrap()]
        );
    }

    #[test]
    fn a_small_pool_is_tried_in_full_and_without_its_edges() {
        let pool =
            Pool::new("10.9.8.0".parse().unwrap(), 29, &["10.9.8.3".parse().unwrap()]).unwrap();
        let host = |host| IpAddr::V4(Ipv4Addr::new(10, 9, 8, host));
        let mut own: Vec<_> = pool.probes([0xAB; 32]).collect();
        own.sort();
        assert_eq!(own, [1, 2].map(host));
        let mut shared: Vec<_> = (0..4).filter_map(|n| pool.turn(7 << 64 | 3, n)).collect();
        shared.sort();
        assert_eq!(shared, [4, 5, 6].map(host));
        assert!(shared.iter().all(|address| pool.is_shared(*address)));
    }

    #[test]
    fn the_last_part_of_a_pool_is_shared() {
        for (network, prefix, last_own, first_shared) in [
            ("100.64.0.0", 10, "100.123.255.255", "100.124.0.0"),
            ("10.1.2.0", 24, "10.1.2.239", "10.1.2.240"),
            ("10.1.2.0", 30, "10.1.2.1", "10.1.2.2"),
            ("fd64::", 64, "fd64::fffe:ffff:ffff:ffff", "fd64::ffff:0:0:0"),
        ] {
            let pool = pool(network, prefix).unwrap();
            assert!(!pool.is_shared(last_own.parse().unwrap()), "{network}");
            assert!(pool.is_shared(first_shared.parse().unwrap()), "{network}");
        }
    }

    #[test]
    fn nothing_outside_a_pool_and_no_service_address_is_leased() {
        let wide = pool("198.0.0.0", 8).unwrap();
        for (address, leased) in [
            ("198.17.0.1", true),
            ("198.18.0.1", false),
            ("198.19.255.254", false),
            ("199.0.0.1", false),
            ("198.0.0.0", false),
            ("198.255.255.255", false),
            ("fd64::1", false),
        ] {
            assert_eq!(wide.may_lease(address.parse().unwrap()), leased, "{address}");
        }
        let wide = pool("fd64:7a74:6e61::", 48).unwrap();
        assert!(!wide.may_lease("fd64:7a74:6e61:5::1".parse().unwrap()));
        assert!(wide.may_lease("fd64:7a74:6e61:4::1".parse().unwrap()));
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
