//! Headers of the PROXY protocol, version 2 (HAProxy's proxy-protocol.txt, section 2.2).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::net::TcpStream;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2 and the command LOCAL, of an address family and a length of 0.
pub(super) const LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
/// Version 2 and the command PROXY.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header of a TCP flow, without TLVs: 28 bytes for IPv4, 52 for IPv6.
pub(super) fn header(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            addresses.extend_from_slice(&source.octets());
            addresses.extend_from_slice(&destination.octets());
            TCP_OVER_IPV4
        }
        (source, destination) => {
            for address in [source, destination] {
                let address = match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(address) => address,
                };
                addresses.extend_from_slice(&address.octets());
            }
            TCP_OVER_IPV6
        }
    };
    addresses.extend_from_slice(&source.port().to_be_bytes());
    addresses.extend_from_slice(&destination.port().to_be_bytes());
    let mut header = Vec::with_capacity(16 + addresses.len());
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[PROXY, family]);
    header.extend_from_slice(&(addresses.len() as u16).to_be_bytes());
    header.extend_from_slice(&addresses);
    header
}

/// Writes all of a header.
pub(super) async fn send(stream: &TcpStream, header: &[u8]) -> io::Result<()> {
    let mut rest = header;
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signature as the specification prints it.
    const PRINTED: [u8; 12] =
        [0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A];

    #[test]
    fn a_flow_over_ipv4_has_28_bytes() {
        let header = header("100.64.0.1:56324".parse().unwrap(), "198.18.9.9:443".parse().unwrap());
        let expected = [
            &PRINTED[..],
            &[0x21, 0x11, 0, 12],
            &[100, 64, 0, 1, 198, 18, 9, 9],
            &[0xDC, 0x04, 0x01, 0xBB],
        ];
        assert_eq!(header, expected.concat());
    }

    #[test]
    fn a_flow_over_ipv6_has_52_bytes() {
        let header = header("[fd64::1]:56324".parse().unwrap(), "[fd64::2]:443".parse().unwrap());
        let mut source = [0; 16];
        (source[0], source[1], source[15]) = (0xFD, 0x64, 1);
        let mut destination = source;
        destination[15] = 2;
        let expected =
            [&PRINTED[..], &[0x21, 0x21, 0, 36], &source, &destination, &[0xDC, 0x04, 0x01, 0xBB]];
        assert_eq!(header, expected.concat());
    }

    #[test]
    fn a_check_of_our_own_is_local() {
        assert_eq!(LOCAL.to_vec(), [&PRINTED[..], &[0x20, 0, 0, 0]].concat());
    }
}
