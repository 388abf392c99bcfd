//! The network device of smoltcp: one packet in, a number of packets out.

use std::time::{Duration, Instant as Clock};

use smoltcp::{
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
};

use crate::packet_builder::PacketBuilder;

/// The speed of smoltcp's clock as a multiple of ours. smoltcp waits at least a fixed second before
/// it retransmits (RFC 6298 section 2.4): on this clock that is 200 ms, as in Linux. CUBIC grows
/// faster too, while the QUIC connection below keeps the network's measure.
const PACE: u32 = 5;

/// The moment `now` as smoltcp counts time.
pub(crate) fn instant(start: Clock, now: Clock) -> Instant {
    Instant::ZERO + stretched(now.saturating_duration_since(start))
}

/// A span of time as smoltcp counts it.
pub(crate) fn stretched(span: Duration) -> smoltcp::time::Duration {
    smoltcp::time::Duration::from(span) * PACE
}

/// A span of smoltcp's time as we count it.
pub(crate) fn shrunk(span: smoltcp::time::Duration) -> Duration {
    Duration::from(span) / PACE
}

pub(crate) struct Pipe<'a> {
    pub(crate) incoming: Option<&'a [u8]>,
    pub(crate) out: &'a mut PacketBuilder,
    pub(crate) wrapper: &'a [u8],
    pub(crate) mtu: usize,
    /// Packets that may still go out. An answer to the incoming packet goes out in any case.
    pub(crate) budget: usize,
}

pub(crate) struct Incoming<'a>(&'a [u8]);

pub(crate) struct Room<'a> {
    out: &'a mut PacketBuilder,
    wrapper: &'a [u8],
}

impl Device for Pipe<'_> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Room<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Room<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Room { out: self.out, wrapper: self.wrapper }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.budget = self.budget.checked_sub(1)?;
        Some(Room { out: self.out, wrapper: self.wrapper })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.out.write(self.wrapper, len, fill)
    }
}
