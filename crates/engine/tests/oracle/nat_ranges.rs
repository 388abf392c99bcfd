//! The addresses of a pool, listed from end to end.

use std::net::IpAddr;

/// A pool of at most 256 addresses.
pub struct Range {
    network: u128,
    size: u128,
    v6: bool,
    reserved: Vec<IpAddr>,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Range {
    pub fn new(network: IpAddr, prefix: u8, reserved: &[IpAddr]) -> Self {
        let v6 = network.is_ipv6();
        let size = 1u128 << (if v6 { 128 } else { 32 } - u32::from(prefix));
        assert!(size <= 256, "searched from end to end");
        Self { network: number(network) / size * size, size, v6, reserved: reserved.to_vec() }
    }

    fn at(&self, host: u128) -> IpAddr {
        match self.v6 {
            true => IpAddr::V6((self.network + host).into()),
            false => IpAddr::V4(((self.network + host) as u32).into()),
        }
    }

    /// The host numbers that may be leased: without the first, the last and the reserved.
    fn hosts(&self) -> impl Iterator<Item = u128> + '_ {
        (1..self.size - 1).filter(|host| !self.reserved.contains(&self.at(*host)))
    }

    /// The last half of a tiny pool, the last sixteenth of another.
    fn first_shared(&self) -> u128 {
        if self.size < 256 { self.size / 2 } else { self.size / 16 * 15 }
    }

    pub fn shared(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.hosts().filter(|host| *host >= self.first_shared()).map(|host| self.at(host))
    }

    pub fn holds(&self, address: IpAddr) -> bool {
        let mut reserved = self.hosts().filter(|host| *host < self.first_shared());
        reserved.any(|host| self.at(host) == address)
    }

    /// The reserved addresses for a key in their order.
    pub fn reserved(&self, key: [u8; 32]) -> impl Iterator<Item = IpAddr> + '_ {
        let half = |half: &[u8]| half.iter().fold(0u128, |sum, byte| sum << 8 | u128::from(*byte));
        let (start, step) = (half(&key[..16]) % self.size, (half(&key[16..]) % self.size) | 1);
        (0..self.size)
            .map(move |index| self.at((start + index * step) % self.size))
            .filter(|address| self.holds(*address))
    }
}
