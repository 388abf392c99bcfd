//! IPv4/UDP packets that a relay cannot tell from real ones, and the marks in them that the generator counts by.

use std::net::Ipv4Addr;

/// Bytes of the IPv4 and UDP headers.
const HEADERS: usize = 28;
/// Offset of the mark: 4 bytes agent, 4 bytes number, 8 bytes time, 1 byte phase.
const MARK: usize = HEADERS;
/// Smallest packet that holds a mark.
pub const SMALLEST: usize = HEADERS + 17;
/// Destination of the agents' packets; the relay never looks at it.
const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);

/// The mark that the generator writes into a packet and reads at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Number of the agent that sent it; the inner source may have been translated.
    pub agent: u32,
    /// Number of the packet within its agent and phase.
    pub number: u32,
    /// The moment of sending, in nanoseconds of the generator's clock.
    pub sent: u64,
    /// 0 for warm-up, 1 for the measured window.
    pub phase: u8,
}

/// The inner address of an agent: distinct, and one of the pool that it keeps, as agents in the field do.
pub fn inner_source(agent: u32) -> Ipv4Addr {
    let [_, _, high, low] = agent.to_be_bytes();
    Ipv4Addr::new(100, 77, high, low)
}

fn sum(mut total: u32, bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    for pair in pairs {
        total += u32::from(u16::from_be_bytes(*pair));
    }
    if let [last] = rest {
        total += u32::from(*last) << 8;
    }
    total
}

fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// A UDP packet of `size` bytes with right lengths and checksums (RFC 791, RFC 768).
pub fn build(size: usize, mark: Mark) -> Vec<u8> {
    debug_assert!((SMALLEST..=1500).contains(&size));
    let mut packet = vec![0_u8; size];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(size as u16).to_be_bytes());
    packet[6] = 0x40; // do not fragment
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&inner_source(mark.agent).octets());
    packet[16..20].copy_from_slice(&DESTINATION.octets());
    let header = fold(sum(0, &packet[..20]));
    packet[10..12].copy_from_slice(&header.to_be_bytes());

    packet[20..22].copy_from_slice(&40_000_u16.to_be_bytes());
    packet[22..24].copy_from_slice(&9_000_u16.to_be_bytes());
    let udp_length = (size - 20) as u16;
    packet[24..26].copy_from_slice(&udp_length.to_be_bytes());
    packet[MARK..MARK + 4].copy_from_slice(&mark.agent.to_be_bytes());
    packet[MARK + 4..MARK + 8].copy_from_slice(&mark.number.to_be_bytes());
    packet[MARK + 8..MARK + 16].copy_from_slice(&mark.sent.to_be_bytes());
    packet[MARK + 16] = mark.phase;
    let pseudo = sum(17 + u32::from(udp_length), &packet[12..20]);
    // A computed zero is written as all ones: zero means "no checksum".
    let checksum = match fold(sum(pseudo, &packet[20..])) {
        0 => 0xffff,
        other => other,
    };
    packet[26..28].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The mark of a packet of exactly `size` bytes that this generator made; None for anything else.
pub fn read(packet: &[u8], size: usize) -> Option<Mark> {
    if packet.len() != size || packet[0] != 0x45 || packet[9] != 17 {
        return None;
    }
    let word = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    Some(Mark {
        agent: word(MARK)?,
        number: word(MARK + 4)?,
        sent: u64::from(word(MARK + 8)?) << 32 | u64::from(word(MARK + 12)?),
        phase: *packet.get(MARK + 16)?,
    })
}

/// True when both checksums of a packet are right, also after a translation of its addresses.
pub fn verify(packet: &[u8]) -> bool {
    packet.len() >= HEADERS
        && fold(sum(0, &packet[..20])) == 0
        && fold(sum(sum(17 + (packet.len() as u32 - 20), &packet[12..20]), &packet[20..])) == 0
}

/// Turn a request into its answer: addresses and ports change places, so the checksums stay right.
pub fn answer(packet: &[u8]) -> Vec<u8> {
    let mut reply = packet.to_vec();
    reply[12..16].copy_from_slice(&packet[16..20]);
    reply[16..20].copy_from_slice(&packet[12..16]);
    reply[20..22].copy_from_slice(&packet[22..24]);
    reply[22..24].copy_from_slice(&packet[20..22]);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: Mark = Mark { agent: 258, number: 7, sent: 0x0102_0304_0506_0708, phase: 1 };

    #[test]
    fn a_packet_has_right_checksums_and_keeps_its_mark() {
        for size in [SMALLEST, SMALLEST + 1, 1100, 1300] {
            let packet = build(size, MADE);
            assert!(verify(&packet), "size {size}");
            assert_eq!(read(&packet, size), Some(MADE));
        }
    }

    #[test]
    fn an_answer_has_right_checksums_and_goes_back_to_the_source() {
        let request = build(1100, MADE);
        let reply = answer(&request);
        assert!(verify(&reply));
        assert_eq!(&reply[16..20], inner_source(258).octets());
    }

    #[test]
    fn one_changed_byte_is_seen() {
        let mut packet = build(200, MADE);
        packet[150] ^= 1;
        assert!(!verify(&packet));
        assert_eq!(read(&packet[..199], 200), None);
    }
}
