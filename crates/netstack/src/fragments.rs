//! Puts fragmented packets together again (RFC 791 section 3.2, RFC 8200 section 4.5), within bounds.
//!
//! A datagram whose fragments overlap or contradict each other is dropped with all its fragments
//! (RFC 5722), so that two readers cannot see two different packets.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ztna_packet::{checksum, packet::PacketInfo};

use crate::{
    counters::{Counters, TunnelDrop},
    packet_builder::FRAGMENT,
};

/// Time for all fragments of a datagram, which leave their sender together.
const LIFE: Duration = Duration::from_secs(10);
/// Fragments of one datagram: more than the smallest MTU needs (see `MIN_MTU`).
const MAX_PIECES: usize = 128;
/// Incomplete datagrams at once.
const MAX_PARTIALS: usize = 512;
/// Incomplete datagrams at once of one source.
const MAX_PARTIALS_PER_SOURCE: usize = 32;
/// Bytes held at once, bookkeeping included.
const MAX_BYTES: usize = 4 << 20;
/// Bytes held at once for one source: eight of the largest datagrams.
const MAX_BYTES_PER_SOURCE: usize = 512 << 10;
/// Bookkeeping of a fragment, in bytes.
const OVERHEAD: usize = 64;
/// The offset of IPv6's fragment header: behind the fixed header, as every system writes it.
const V6_HEADER: usize = 40;
const V6_FRAGMENT_HEADER: usize = 8;

/// The incomplete datagrams of one stack.
#[derive(Debug, Default)]
pub(crate) struct Reassembler {
    partials: HashMap<Key, Partial>,
    sources: HashMap<IpAddr, Held>,
    bytes: usize,
}

/// The key of a fragment's datagram, without protocol in IPv6 (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    identification: u32,
}

/// The datagrams and bytes held for one source.
#[derive(Debug, Default)]
struct Held {
    partials: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Partial {
    begun: Instant,
    touched: Instant,
    /// In the order of their offsets; they never overlap.
    pieces: Vec<Piece>,
    /// The header of the first fragment.
    header: Vec<u8>,
    /// Length of the whole, once the last fragment is here.
    end: Option<usize>,
    /// Its fragments contradict each other: further ones are dropped as well.
    broken: bool,
    /// Bytes it is counted for.
    bytes: usize,
}

#[derive(Debug)]
struct Piece {
    at: usize,
    data: Vec<u8>,
}

impl Piece {
    fn end(&self) -> usize {
        self.at + self.data.len()
    }
}

/// One fragment as it arrived.
struct Arrived<'a> {
    key: Key,
    at: usize,
    more: bool,
    /// The header before the data in the whole packet.
    header: &'a [u8],
    /// The number of the header that follows it in place of the fragment header, in IPv6.
    next: Option<u8>,
    data: &'a [u8],
}

impl Reassembler {
    /// Takes in a fragment with its parsed `info`; returns the packet that it completes.
    pub(crate) fn insert(
        &mut self,
        packet: &[u8],
        info: &PacketInfo,
        now: Instant,
        counters: &Counters,
    ) -> Result<Option<Vec<u8>>, TunnelDrop> {
        let arrived = Arrived::read(packet, info).ok_or(TunnelDrop::Fragment)?;
        let key = arrived.key;
        if self.partials.get(&key).is_some_and(|partial| partial.over(now)) {
            counters.dropped(TunnelDrop::FragmentTimeout, self.forget(&key));
        }
        let new = usize::from(!self.partials.contains_key(&key));
        self.make_room(key.source, new, OVERHEAD * (new + 1) + arrived.data.len(), counters);
        if new == 1 {
            self.begin(key, now);
        }
        // It may have been given up itself to make room.
        let partial = self.partials.get_mut(&key).ok_or(TunnelDrop::FragmentLimit)?;
        partial.touched = now;
        let before = partial.bytes;
        let added = partial.add(&arrived);
        let (after, complete) = (partial.bytes, partial.is_complete());
        self.count(key.source, before, after);
        added.map_err(|pieces| {
            counters.dropped(TunnelDrop::Fragment, pieces);
            TunnelDrop::Fragment
        })?;
        if !complete {
            return Ok(None);
        }
        let whole = self.take(&key).and_then(Partial::join);
        whole.map(Some).ok_or(TunnelDrop::Fragment)
    }

    /// Gives up datagrams that have waited too long.
    pub(crate) fn expire(&mut self, now: Instant, counters: &Counters) {
        let over: Vec<Key> = (self.partials.iter())
            .filter(|(_, partial)| partial.over(now))
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            counters.dropped(TunnelDrop::FragmentTimeout, self.forget(&key));
        }
    }

    /// Bytes held, bookkeeping included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn begin(&mut self, key: Key, now: Instant) {
        self.sources.entry(key.source).or_default().partials += 1;
        self.partials.insert(key, Partial::new(now));
        self.count(key.source, 0, OVERHEAD);
    }

    fn count(&mut self, source: IpAddr, before: usize, after: usize) {
        self.bytes = self.bytes - before + after;
        if let Some(held) = self.sources.get_mut(&source) {
            held.bytes = held.bytes - before + after;
        }
    }

    fn take(&mut self, key: &Key) -> Option<Partial> {
        let partial = self.partials.remove(key)?;
        self.count(key.source, partial.bytes, 0);
        if let Some(held) = self.sources.get_mut(&key.source) {
            held.partials -= 1;
            if held.partials == 0 {
                self.sources.remove(&key.source);
            }
        }
        Some(partial)
    }

    /// Gives up a datagram; returns the number of its fragments.
    fn forget(&mut self, key: &Key) -> u64 {
        self.take(key).map_or(0, |partial| partial.pieces.len() as u64)
    }

    /// Gives up the datagrams that have waited longest for their next fragment: of this source
    /// until it has room, then of all. So datagrams under way outlast a flood of others.
    fn make_room(&mut self, source: IpAddr, partials: usize, bytes: usize, counters: &Counters) {
        while self.sources.get(&source).is_some_and(|held| {
            held.partials + partials > MAX_PARTIALS_PER_SOURCE
                || held.bytes + bytes > MAX_BYTES_PER_SOURCE
        }) {
            self.forget_idlest(|key| key.source == source, counters);
        }
        while self.partials.len() + partials > MAX_PARTIALS || self.bytes + bytes > MAX_BYTES {
            self.forget_idlest(|_| true, counters);
        }
    }

    fn forget_idlest(&mut self, of: impl Fn(&Key) -> bool, counters: &Counters) {
        let some = self.partials.iter().filter(|(key, _)| of(key));
        let idlest = some.min_by_key(|(_, partial)| partial.touched).map(|(key, _)| *key);
        if let Some(idlest) = idlest {
            counters.dropped(TunnelDrop::FragmentLimit, self.forget(&idlest));
        }
    }
}

impl Partial {
    fn new(begun: Instant) -> Self {
        Self {
            begun,
            touched: begun,
            pieces: Vec::new(),
            header: Vec::new(),
            end: None,
            broken: false,
            bytes: OVERHEAD,
        }
    }

    fn over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun) >= LIFE
    }

    /// Adds a fragment. A contradicting one breaks the datagram, and all its fragments are given
    /// up.
    fn add(&mut self, arrived: &Arrived<'_>) -> Result<(), u64> {
        let end = arrived.at + arrived.data.len();
        let index = self.pieces.partition_point(|piece| piece.at < arrived.at);
        let next = self.pieces.get(index);
        let again = next.is_some_and(|piece| piece.at == arrived.at && piece.data == arrived.data);
        if again && arrived.more == (self.end != Some(end)) {
            return Ok(());
        }
        let previous = index.checked_sub(1).and_then(|index| self.pieces.get(index));
        let fits = !self.broken
            && self.pieces.len() < MAX_PIECES
            && previous.is_none_or(|piece| piece.end() <= arrived.at)
            && next.is_none_or(|piece| end <= piece.at)
            && match self.end {
                Some(known) => arrived.more && end < known,
                None => arrived.more || next.is_none(),
            };
        if !fits {
            let pieces = self.pieces.len() as u64;
            *self = Self { broken: true, ..Self::new(self.begun) };
            return Err(pieces);
        }
        if !arrived.more {
            self.end = Some(end);
        }
        if arrived.at == 0 {
            self.header = arrived.header.to_vec();
            if let Some(next) = arrived.next {
                self.header[6] = next;
            }
        }
        self.pieces.insert(index, Piece { at: arrived.at, data: arrived.data.to_vec() });
        self.bytes += OVERHEAD + arrived.data.len();
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.end.is_some_and(|end| end == self.pieces.iter().map(|piece| piece.data.len()).sum())
    }

    /// The whole packet, unless it is larger than a packet may be.
    fn join(self) -> Option<Vec<u8>> {
        let mut packet = self.header;
        self.pieces.iter().for_each(|piece| packet.extend_from_slice(&piece.data));
        if packet.first()? >> 4 == 6 {
            let payload = u16::try_from(packet.len() - V6_HEADER).ok()?;
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
            return Some(packet);
        }
        let total = u16::try_from(packet.len()).ok()?;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        // The offset and all flags, then the checksum over that.
        packet[6..8].fill(0);
        packet[10..12].fill(0);
        let header = usize::from(packet[0] & 0x0F) * 4;
        let sum = checksum::finish(checksum::sum(&packet[..header]));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        Some(packet)
    }
}

impl<'a> Arrived<'a> {
    /// Reads a fragment; `None` if it cannot be part of an acceptable packet.
    fn read(packet: &'a [u8], info: &PacketInfo) -> Option<Self> {
        let (word, next, protocol, identification, header, data);
        if info.is_v6() {
            let fragment: &[u8; V6_FRAGMENT_HEADER] = packet.get(V6_HEADER..)?.first_chunk()?;
            if packet[6] != FRAGMENT {
                return None;
            }
            let [following, _, high, low, a, b, c, d] = *fragment;
            word = u16::from_be_bytes([high, low]);
            identification = u32::from_be_bytes([a, b, c, d]);
            (next, protocol) = (Some(following), 0);
            header = &packet[..V6_HEADER];
            data = packet.get(V6_HEADER + V6_FRAGMENT_HEADER..info.total_len)?;
        } else {
            let [_, _, _, _, a, b, high, low] = *packet.first_chunk()?;
            let flags = u16::from_be_bytes([high, low]);
            // As IPv6 has it: the offset first, "more" last.
            word = flags << 3 | flags >> 13 & 1;
            identification = u32::from(u16::from_be_bytes([a, b]));
            (next, protocol) = (None, info.protocol);
            header = packet.get(..info.transport)?;
            data = info.transport_bytes(packet);
        }
        let more = word & 1 != 0;
        // All but the last have a length that an offset can express.
        if data.is_empty() || more && !data.len().is_multiple_of(8) {
            return None;
        }
        let key =
            Key { source: info.source, destination: info.destination, protocol, identification };
        Some(Self { key, at: usize::from(word & !7), more, header, next, data })
    }
}
