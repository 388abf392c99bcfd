//! The kind of a client's DATAGRAM, by its first byte.
//!
//! ```text
//! 10 | 11  L  service id (L bytes) ...      registration, for the control plane
//! 2F       L  service id (L bytes)  packet  an IP packet for a named service
//! 01, 5A                                    never a server's business
//! anything else                             a bare IP packet, for the default service
//! ```
//!
//! Whether a packet really is one (its version, its lengths) is decided in one place, by
//! [`PacketInfo::parse`](crate::packet::PacketInfo::parse); so 0x12 and 0x13 sent by a client are
//! packets here and malformed there.

/// Registers an agent.
pub const REGISTER_AGENT: u8 = 0x10;
/// Registers a connector.
pub const REGISTER_CONNECTOR: u8 = 0x11;
/// Wraps an IP packet for a named service.
pub const SERVICE_ROUTED: u8 = 0x2F;
/// Reports an observed address; servers send it, clients must not.
pub const OBSERVED_ADDRESS: u8 = 0x01;
/// Starts a hole-punching probe, which clients send to every candidate address.
pub const HOLE_PUNCH: u8 = 0x5A;

/// The length of an IPv4 header without options: nothing shorter can be an IP packet.
pub const MIN_PACKET: usize = 20;

/// The kind of a DATAGRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class<'a> {
    /// A registration, complete by its length byte; its text is not checked yet.
    Control,
    /// An IP packet for one service.
    ServiceRouted {
        /// The service id, 0 to 255 bytes, not checked for UTF-8.
        service: &'a [u8],
        /// The offset of the packet in the datagram.
        packet_offset: usize,
    },
    /// An IP packet for the sender's default service.
    Packet,
    /// Nothing to act on; the connection stays.
    Ignored(Ignored),
}

/// The reason to ignore a DATAGRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It has no byte at all.
    Empty,
    /// It ends before its own fixed part: 2 bytes of a registration, 3 of a service-routed packet.
    TooShort,
    /// Its service id reaches beyond its end.
    BadLength,
    /// It is a hole-punching probe.
    HolePunch,
    /// It reports an observed address, as only servers may.
    AddressReport,
    /// The packet in it is shorter than any IP header.
    TooSmallForIp,
}

/// Tells the kind of a DATAGRAM that came from a client.
pub fn classify(datagram: &[u8]) -> Class<'_> {
    let Some(&kind) = datagram.first() else {
        return Class::Ignored(Ignored::Empty);
    };
    match kind {
        REGISTER_AGENT | REGISTER_CONNECTOR => match service_id(datagram, 2) {
            Ok(_) => Class::Control,
            Err(reason) => Class::Ignored(reason),
        },
        SERVICE_ROUTED => match service_id(datagram, 3) {
            Ok(service) => {
                let packet_offset = 2 + service.len();
                if datagram.len() - packet_offset < MIN_PACKET {
                    return Class::Ignored(Ignored::TooSmallForIp);
                }
                Class::ServiceRouted { service, packet_offset }
            }
            Err(reason) => Class::Ignored(reason),
        },
        OBSERVED_ADDRESS => Class::Ignored(Ignored::AddressReport),
        HOLE_PUNCH => Class::Ignored(Ignored::HolePunch),
        _ if datagram.len() < MIN_PACKET => Class::Ignored(Ignored::TooSmallForIp),
        _ => Class::Packet,
    }
}

fn service_id(datagram: &[u8], minimum: usize) -> Result<&[u8], Ignored> {
    match datagram {
        [_, length, rest @ ..] if datagram.len() >= minimum => {
            rest.get(..usize::from(*length)).ok_or(Ignored::BadLength)
        }
        _ => Err(Ignored::TooShort),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(datagram: &[u8]) -> Option<Ignored> {
        match classify(datagram) {
            Class::Ignored(reason) => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn registrations_need_their_whole_service_id() {
        for kind in [0x10, 0x11] {
            assert_eq!(classify(&[kind, 0]), Class::Control, "an empty id is acknowledged");
            assert_eq!(
                classify(&[kind, 2, b'h', b'j', 0xFF]),
                Class::Control,
                "trailing bytes are allowed"
            );
            assert_eq!(ignored(&[kind]), Some(Ignored::TooShort));
            assert_eq!(ignored(&[kind, 3, b'h', b'j']), Some(Ignored::BadLength));
        }
    }

    #[test]
    fn the_longest_service_id_fits() {
        let mut datagram = vec![0x2F, 255];
        datagram.extend([b's'; 255]);
        datagram.extend([0x45; 20]);
        assert_eq!(
            classify(&datagram),
            Class::ServiceRouted { service: &[b's'; 255], packet_offset: 257 }
        );
        datagram.truncate(257);
        assert_eq!(ignored(&datagram), Some(Ignored::TooSmallForIp));
        datagram.truncate(256);
        assert_eq!(ignored(&datagram), Some(Ignored::BadLength));
    }

    #[test]
    fn service_routed_needs_three_bytes_and_a_packet() {
        assert_eq!(ignored(&[0x2F]), Some(Ignored::TooShort));
        assert_eq!(ignored(&[0x2F, 0]), Some(Ignored::TooShort));
        assert_eq!(ignored(&[0x2F, 0, 0x45]), Some(Ignored::TooSmallForIp));
        assert_eq!(ignored(&[0x2F, 2, b'a']), Some(Ignored::BadLength));
        let mut datagram = vec![0x2F, 0];
        datagram.extend([0x45; 20]);
        assert_eq!(classify(&datagram), Class::ServiceRouted { service: b"", packet_offset: 2 });
    }

    #[test]
    fn what_only_servers_or_peers_send_is_ignored() {
        assert_eq!(ignored(&[]), Some(Ignored::Empty));
        assert_eq!(ignored(&[0x01; 40]), Some(Ignored::AddressReport));
        assert_eq!(ignored(&[0x5A; 40]), Some(Ignored::HolePunch));
        assert_eq!(ignored(&[0x5A]), Some(Ignored::HolePunch));
    }

    #[test]
    fn everything_else_of_sufficient_length_is_a_packet() {
        for kind in (0..=255).filter(|kind| ![0x01, 0x10, 0x11, 0x2F, 0x5A].contains(kind)) {
            assert_eq!(classify(&[kind; 20]), Class::Packet);
            assert_eq!(ignored(&[kind; 19]), Some(Ignored::TooSmallForIp));
        }
    }
}
