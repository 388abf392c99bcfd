//! Answers to inner echo packets, as a connector with an echo application behind it gives them.

const HEADER: usize = 20;
const ICMP: u8 = 1;
const UDP: u8 = 17;

/// The answer to an IPv4 ICMP echo request or UDP packet without options or fragmentation; `None` for
/// everything else.
pub fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    let whole = packet.len() >= HEADER + 8 && packet[0] == 0x45;
    let fragment = whole && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    if !whole || fragment {
        return None;
    }
    let mut reply = packet.to_vec();
    // Swapping addresses or ports leaves the one's complement sums as they are.
    let (source, destination) = reply[12..HEADER].split_at_mut(4);
    source.swap_with_slice(destination);
    match packet[9] {
        ICMP if packet[HEADER] == 8 => {
            reply[HEADER] = 0;
            let sum = u32::from(u16::from_be_bytes([packet[22], packet[23]])) + 0x0800;
            let folded = (sum & 0xffff) as u16 + (sum >> 16) as u16;
            reply[22..24].copy_from_slice(&folded.to_be_bytes());
        }
        UDP => {
            let (source, destination) = reply[HEADER..HEADER + 4].split_at_mut(2);
            source.swap_with_slice(destination);
        }
        _ => return None,
    }
    Some(reply)
}
