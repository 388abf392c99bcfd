//! UDP of inner packets to an application, and its answers back, as a connector in the field does it:
//! the answer's inner source is the application's own address, whatever address the agent wrote to.

use std::{
    io::{Error, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4},
};

use mio::{Interest, Registry, Token, net::UdpSocket};

const HEADER: usize = 20;
const UDP: u8 = 17;

/// The application and a socket to it for each inner source.
pub struct Backend {
    address: SocketAddrV4,
    first: usize,
    flows: Vec<(SocketAddrV4, UdpSocket)>,
}

impl Backend {
    /// Sockets are registered by tokens from `first` on.
    pub fn new(address: SocketAddrV4, first: usize) -> Self {
        Self { address, first, flows: Vec::new() }
    }

    /// Sends the payload on if this is an IPv4 UDP packet without options or fragmentation.
    pub fn forward(&mut self, packet: &[u8], registry: &Registry) -> Result<(), Error> {
        let whole = packet.len() >= HEADER + 8 && packet[0] == 0x45 && packet[9] == UDP;
        if !whole || u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
            return Ok(());
        }
        let host = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
        let agent = SocketAddrV4::new(host, u16::from_be_bytes([packet[20], packet[21]]));
        let at = match self.flows.iter().position(|(known, _)| *known == agent) {
            Some(at) => at,
            None => {
                let mut socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0).into())?;
                socket.connect(self.address.into())?;
                let token = Token(self.first + self.flows.len());
                registry.register(&mut socket, token, Interest::READABLE)?;
                self.flows.push((agent, socket));
                self.flows.len() - 1
            }
        };
        self.flows[at].1.send(&packet[HEADER + 8..])?;
        Ok(())
    }

    /// Inner packets with what the application has answered.
    pub fn answers(&mut self, buffer: &mut [u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut packets = Vec::new();
        for (agent, socket) in &self.flows {
            loop {
                match socket.recv(buffer) {
                    Ok(length) => packets.push(udp(self.address, *agent, &buffer[..length])),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(packets)
    }
}

fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((HEADER as u16 + length).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let sum = checksum(&packet, 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = checksum(&packet[12..20], u32::from(UDP) + u32::from(length));
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let sum = match checksum(&packet[HEADER..], u32::from(!pseudo)) {
        0 => 0xffff,
        sum => sum,
    };
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The internet checksum (RFC 1071) of `bytes` and what was summed up before.
fn checksum(bytes: &[u8], before: u32) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = before + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}
