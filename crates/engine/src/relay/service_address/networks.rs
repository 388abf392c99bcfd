//! The networks of service addresses.

use std::net::IpAddr;

/// 198.18.0.0/15: reserved for tests between networks (RFC 2544), so no application has one.
pub(super) const NETWORK_V4: u32 = u32::from_be_bytes([198, 18, 0, 0]);
pub(super) const HOST_BITS_V4: u32 = 17;
/// fd64:7a74:6e61:5::/64, a part of the unique local addresses of ztna-v1.
pub(super) const NETWORK_V6: u64 = 0xFD64_7A74_6E61_0005;

/// Whether an address lies in a network of service addresses.
#[inline]
pub fn is_service_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => (address.to_bits() ^ NETWORK_V4) >> HOST_BITS_V4 == 0,
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64 == NETWORK_V6,
    }
}
