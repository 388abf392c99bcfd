//! The addresses of a service inside the tunnel.
//!
//! A connector gets bare IP packets and tells its services apart by their destination. Both ends
//! derive it from the service's name; the relay does as well, and lets no peer use the address of a
//! service without a grant.

mod networks;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_lc_rs::digest::{SHA256, digest};

pub use networks::is_service_address;
use networks::{HOST_BITS_V4, NETWORK_V4, NETWORK_V6};

/// The IPv4 and the IPv6 address of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceAddresses {
    /// In 198.18.0.0/15. Two names share one with a chance of 1 in 131,070.
    pub v4: Ipv4Addr,
    /// In fd64:7a74:6e61:5::/64.
    pub v6: Ipv6Addr,
}

impl ServiceAddresses {
    /// The addresses of the service of this name; the same everywhere.
    pub fn of(service: &[u8]) -> Self {
        let digest = digest(&SHA256, service);
        let number = |at: usize| {
            let bytes = digest.as_ref()[at..at + 8].try_into().expect("SHA-256 has 32 bytes");
            u64::from_be_bytes(bytes)
        };
        // Neither the address of the network nor its broadcast address.
        let host = number(0) % ((1 << HOST_BITS_V4) - 2) + 1;
        let interface = number(8).max(1);
        Self {
            v4: Ipv4Addr::from_bits(NETWORK_V4 | host as u32),
            v6: Ipv6Addr::from_bits(u128::from(NETWORK_V6) << 64 | u128::from(interface)),
        }
    }

    /// Whether this is one of the two.
    pub fn contains(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.v4) || address == IpAddr::V6(self.v6)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn they_never_change() {
        // Another result cuts agents off from every connector of an older version.
        let web = ServiceAddresses::of(b"web");
        assert_eq!(web.v4, Ipv4Addr::new(198, 18, 209, 62));
        assert_eq!(web.v6.to_string(), "fd64:7a74:6e61:5:39b:3d1e:1392:9295");
        assert!(web.contains(web.v4.into()) && web.contains(web.v6.into()));
        assert!(!web.contains(ServiceAddresses::of(b"db").v4.into()));
    }

    #[test]
    fn their_networks_have_borders() {
        for (address, inside) in [
            ("198.17.255.255", false),
            ("198.18.0.0", true),
            ("198.19.255.255", true),
            ("198.20.0.0", false),
            ("fd64:7a74:6e61:4:ffff:ffff:ffff:ffff", false),
            ("fd64:7a74:6e61:5::", true),
            ("fd64:7a74:6e61:6::", false),
        ] {
            assert_eq!(is_service_address(address.parse().unwrap()), inside, "{address}");
        }
    }

    proptest! {
        #[test]
        fn they_lie_in_their_networks(name in ".{1,60}") {
            let ServiceAddresses { v4, v6 } = ServiceAddresses::of(name.as_bytes());
            prop_assert!(is_service_address(v4.into()) && is_service_address(v6.into()));
            prop_assert!(v4.to_bits() & 0x1_FFFF != 0 && v4.to_bits() & 0x1_FFFF != 0x1_FFFF);
            prop_assert!(v6.to_bits() as u64 != 0);
        }
    }
}
