//! The flow of a packet, for relays that leave inner addresses as they are (`inner-addresses =
//! off`) and so find the way back by the packets that went out.

use std::net::IpAddr;

use crate::packet::{Fragment, PacketInfo, address_v4, address_v6, extension_chain, protocol};

/// One flow, seen from the agent for packets of both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The transport.
    pub protocol: u8,
    /// The agent's inner address, and its port or ICMP identifier; 0 where there is neither, as in a
    /// later fragment.
    pub agent: (IpAddr, u16),
    /// The other end's address and port; the port is 0 for ICMP.
    pub remote: (IpAddr, u16),
}

/// The source and destination of a packet and its ports.
struct Ends {
    protocol: u8,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    icmp: bool,
}

impl FlowKey {
    /// The flow of a packet that comes from an agent.
    pub fn from_agent(packet: &[u8], info: &PacketInfo) -> Self {
        match quoted(packet, info) {
            // The quoted packet went the other way.
            Some(quoted) => {
                Self::new(quoted.protocol, quoted.destination, quoted.source, quoted.icmp)
            }
            None => {
                let ends = ends(packet, info);
                Self::new(ends.protocol, ends.source, ends.destination, ends.icmp)
            }
        }
    }

    /// The flow of a packet that goes to an agent; an ICMP error belongs to the flow of the packet it
    /// quotes.
    pub fn to_agent(packet: &[u8], info: &PacketInfo) -> Self {
        match quoted(packet, info) {
            Some(quoted) => {
                Self::new(quoted.protocol, quoted.source, quoted.destination, quoted.icmp)
            }
            None => {
                let ends = ends(packet, info);
                Self::new(ends.protocol, ends.destination, ends.source, ends.icmp)
            }
        }
    }

    fn new(protocol: u8, agent: (IpAddr, u16), mut remote: (IpAddr, u16), icmp: bool) -> Self {
        if icmp {
            remote.1 = 0;
        }
        Self { protocol, agent, remote }
    }
}

fn ends(packet: &[u8], info: &PacketInfo) -> Ends {
    let bytes = match info.fragment {
        Fragment::Later => &[][..],
        _ => info.transport_bytes(packet),
    };
    Ends::new(info.protocol, info.source, info.destination, bytes)
}

impl Ends {
    fn new(protocol: u8, source: IpAddr, destination: IpAddr, transport: &[u8]) -> Self {
        let word = |at: usize| {
            transport
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .map_or(0, |bytes| u16::from_be_bytes(*bytes))
        };
        let icmp = matches!(
            (protocol, source.is_ipv6()),
            (protocol::ICMP, false) | (protocol::ICMPV6, true)
        );
        let (from, to) = match protocol {
            _ if icmp => match (transport.first(), source.is_ipv6()) {
                // Echo and timestamp, request and reply, carry one identifier for both ends.
                (Some(0 | 8 | 13 | 14), false) | (Some(128 | 129), true) => (word(4), word(4)),
                _ => (0, 0),
            },
            protocol::TCP
            | protocol::UDP
            | protocol::DCCP
            | protocol::SCTP
            | protocol::UDP_LITE => (word(0), word(2)),
            _ => (0, 0),
        };
        Self { protocol, source: (source, from), destination: (destination, to), icmp }
    }
}

/// The ends of the packet that an ICMP error quotes, as far as the quote goes.
fn quoted(packet: &[u8], info: &PacketInfo) -> Option<Ends> {
    if !info.is_icmp_error(packet) {
        return None;
    }
    let quote = info.transport_bytes(packet).get(8..)?;
    match (info.is_v6(), quote.first()? >> 4) {
        (false, 4) => {
            let header: &[u8; 20] = quote.first_chunk()?;
            let later = u16::from_be_bytes([header[6], header[7]]) & 0x1FFF != 0;
            let at = if later { quote.len() } else { usize::from(header[0] & 0x0F) * 4 };
            let transport = quote.get(at..).unwrap_or_default();
            Some(Ends::new(
                header[9],
                address_v4(quote, 12)?.into(),
                address_v4(quote, 16)?.into(),
                transport,
            ))
        }
        (true, 6) => {
            let (source, destination) = (address_v6(quote, 8)?, address_v6(quote, 24)?);
            let chain = extension_chain(quote, quote[6]).ok()?;
            let transport = match chain.fragment() {
                Fragment::Later => &[][..],
                _ => quote.get(chain.transport..).unwrap_or_default(),
            };
            Some(Ends::new(chain.protocol, source.into(), destination.into(), transport))
        }
        _ => None,
    }
}
