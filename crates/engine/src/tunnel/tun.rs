//! A TUN interface as a tunnel: packets from the kernel to the relay and back.

use std::{
    cell::RefCell,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};
use ztna_netstack::{Counters, PacketBuilder, TunRoutes, TunnelDrop};

use super::{
    config::{Network, TunRouting},
    notices::Notices,
    reach::Reach,
    tx_queue::TxQueue,
};
use crate::{
    bucket::Bucket,
    icmp::{self, IcmpError},
    packet::{PacketInfo, source_ok},
    translate,
};

/// Packets read at one wake-up before the connection gets its turn.
const BATCH: usize = 64;
/// Bytes taken at once for packets to come.
const CHUNK: usize = 64 * 1024;
/// A removed interface is an error and not readable.
const WATCHED: Interest = Interest::READABLE.add(Interest::ERROR);
/// ICMP answers a second to the local host.
const ANSWERS: u32 = 100;

/// A TUN interface and its way to the relay.
#[derive(Debug)]
pub(super) struct Tun {
    device: AsyncFd<OwnedFd>,
    routing: Routing,
    reach: Reach,
    tx_queue: Rc<TxQueue>,
    counters: Arc<Counters>,
    inner: RefCell<Scratch>,
}

/// The routes of packets, and the filter of packets from the relay: the kernel would take any for
/// its own, or forward it to a host behind it.
#[derive(Debug)]
enum Routing {
    Own { own: FxHashSet<IpAddr>, agents: Vec<Network> },
    Services(TunRoutes),
}

#[derive(Debug)]
struct Scratch {
    memory: BytesMut,
    packet: Vec<u8>,
    answers: Bucket,
    /// The ends of the last packet to each service.
    ends: FxHashMap<Bytes, (IpAddr, IpAddr)>,
    out: PacketBuilder,
}

/// The decision about one packet from the interface.
enum Fate {
    Sent,
    Dropped(TunnelDrop, Option<IcmpError>),
}

impl Tun {
    pub(super) fn open(
        device: OwnedFd,
        routing: TunRouting,
        tx_queue: Rc<TxQueue>,
        counters: Arc<Counters>,
        notices: Notices,
    ) -> io::Result<Self> {
        fcntl_setfl(&device, fcntl_getfl(&device)? | OFlags::NONBLOCK)?;
        let (routing, source) = match routing {
            TunRouting::Own { own, agents } => (Routing::Own { own, agents }, None),
            TunRouting::Services { source, maps, default_service } => {
                (Routing::Services(TunRoutes::new(maps, default_service)), source)
            }
        };
        let answers = Bucket::new(ANSWERS, ANSWERS);
        // Its successor is unsafe, for types that change or close their descriptor while they are
        // registered; an OwnedFd does neither.
        #[allow(deprecated)]
        let device = AsyncFd::with_interest(device, WATCHED)?;
        Ok(Self {
            device,
            routing,
            reach: Reach::new(tx_queue.clone(), notices, source),
            tx_queue,
            counters,
            inner: RefCell::new(Scratch {
                memory: BytesMut::new(),
                packet: Vec::new(),
                answers,
                ends: FxHashMap::default(),
                out: PacketBuilder::default(),
            }),
        })
    }

    pub(super) fn set_services(&self, services: &[Bytes]) {
        self.reach.acknowledge(services);
        self.announce();
    }

    /// The tunnel is on another connection.
    pub(super) fn attached(&self) {
        self.reach.attached();
        self.announce();
    }

    /// Asks services for their connectors, for as long as the tunnel is open.
    pub(super) async fn ask(&self) {
        loop {
            self.reach.wait().await;
            self.reach.ask();
        }
    }

    /// Makes the inner addresses known to the relay, for connections that wait for the other side.
    fn announce(&self) {
        if self.tx_queue.conn().is_none() {
            return;
        }
        let Scratch { ends, out, .. } = &mut *self.inner.borrow_mut();
        for (service, (from, to)) in ends.iter().filter(|(s, _)| self.reach.is_acknowledged(s)) {
            out.echo_request(&ztna_netstack::wrapper(service), *from, *to, 0);
        }
        for outgoing in out.take() {
            self.tx_queue.send(outgoing.datagram);
        }
    }

    /// Reads packets until the interface fails; returns the reason.
    pub(super) async fn run(&self) -> io::Error {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let room = Rc::new(Notify::new());
        loop {
            let mut ready = match self.device.ready(WATCHED).await {
                Ok(ready) => ready,
                Err(e) => return e,
            };
            // While detached, packets are read and answered: they would be stale later.
            let limit = self.tx_queue.datagram_limit();
            let batch = if limit.is_none() { BATCH } else { self.tx_queue.room().min(BATCH) };
            if batch == 0 {
                drop(ready);
                self.tx_queue.wait(&room);
                room.notified().await;
                continue;
            }
            for _ in 0..batch {
                match rustix::io::read(&self.device, &mut buffer) {
                    Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                    Ok(len) => self.outbound(&mut buffer[..len], limit),
                    Err(rustix::io::Errno::AGAIN) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return e.into(),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn outbound(&self, packet: &mut [u8], limit: Option<usize>) {
        let Fate::Dropped(reason, answer) = self.forward(packet, limit) else {
            return;
        };
        self.counters.dropped(reason, 1);
        let scratch = &mut *self.inner.borrow_mut();
        // It comes from where the packet was to go: strict reverse-path filters would eat any other.
        let (v4, v6) = match PacketInfo::parse(packet).map(|info| info.destination) {
            Ok(IpAddr::V4(destination)) => (destination, Ipv6Addr::UNSPECIFIED),
            Ok(IpAddr::V6(destination)) => (Ipv4Addr::UNSPECIFIED, destination),
            Err(_) => return,
        };
        if let Some(error) = answer
            && icmp::error(error, packet, v4, v6, &mut scratch.packet).is_some()
            && scratch.answers.take(Instant::now())
            && rustix::io::write(&self.device, &scratch.packet).is_ok()
        {
            self.counters.icmp_sent.add(1);
        }
    }

    fn forward(&self, packet: &mut [u8], limit: Option<usize>) -> Fate {
        let Ok(mut info) = PacketInfo::parse(packet) else {
            return Fate::Dropped(TunnelDrop::Malformed, None);
        };
        let Some(limit) = limit else {
            // A connection under way fails, an established one does not (RFC 1122 section 4.2.3.9).
            return Fate::Dropped(TunnelDrop::Detached, Some(IcmpError::HostUnreachable));
        };
        let (mut wrapper, mut service) = (&[][..], None);
        if let Routing::Services(routes) = &self.routing {
            let Some(way) = routes.route(info.destination) else {
                return Fate::Dropped(TunnelDrop::NoService, Some(IcmpError::HostUnreachable));
            };
            if !self.reach.is_acknowledged(way.service) {
                return Fate::Dropped(
                    TunnelDrop::NotAcknowledged,
                    Some(IcmpError::HostUnreachable),
                );
            }
            wrapper = way.wrapper;
            service = Some(way.service);
            if wrapper.len() + packet.len() <= limit
                && let Some(destination) = way.destination
                && !translate::rewrite_destination(packet, &mut info, destination)
            {
                return Fate::Dropped(TunnelDrop::Malformed, None);
            }
        }
        if wrapper.len() + packet.len() > limit {
            let mtu = limit.saturating_sub(wrapper.len()) as u16;
            return Fate::Dropped(TunnelDrop::TooLarge, Some(IcmpError::TooBig { mtu }));
        }
        let Scratch { memory, ends, .. } = &mut *self.inner.borrow_mut();
        if let Some(service) = service {
            let now = (info.source, info.destination);
            match ends.get_mut(service) {
                Some(last) => *last = now,
                None => drop(ends.insert(service.clone(), now)),
            }
        }
        let total = wrapper.len() + packet.len();
        if memory.capacity() < total {
            memory.reserve(CHUNK.max(total));
        }
        memory.extend_from_slice(wrapper);
        memory.extend_from_slice(packet);
        if self.tx_queue.send(memory.split_to(total).freeze()) {
            self.counters.packets_out.add(1);
            self.counters.bytes_out.add(packet.len() as u64);
        }
        Fate::Sent
    }

    /// Writes packets from the relay to the interface.
    pub(super) fn receive<'a>(&self, datagrams: impl Iterator<Item = &'a Bytes>) {
        for datagram in datagrams {
            self.counters.packets_in.add(1);
            self.counters.bytes_in.add(datagram.len() as u64);
            if self.reach.take(datagram).is_none()
                && let Err(reason) = self.inbound(datagram)
            {
                self.counters.dropped(reason, 1);
            }
        }
    }

    fn inbound(&self, datagram: &[u8]) -> Result<(), TunnelDrop> {
        let mut info = PacketInfo::parse(datagram).map_err(|_| TunnelDrop::Malformed)?;
        // Connectors answer from any address, and a kernel may believe one of its own.
        source_ok(info.source).or(Err(TunnelDrop::BadSource))?;
        // An error may come from any host on the way, but only be about certain packets.
        let quoted = translate::quoted_destination(datagram, &info);
        let (seen_from, shown) = match &self.routing {
            Routing::Own { own, agents } => {
                if !own.contains(&info.destination) {
                    return Err(TunnelDrop::NoService);
                }
                // The interface has a route for the subject of an error, and perhaps none for its
                // sender.
                let remote = quoted.unwrap_or(info.source);
                if !agents.iter().any(|network| network.contains(remote)) {
                    return Err(TunnelDrop::BadSource);
                }
                (remote, None)
            }
            Routing::Services(routes) => {
                if !routes.accepts(quoted.unwrap_or(info.source)) {
                    return Err(TunnelDrop::NoService);
                }
                if let Some(service) = quoted.and_then(|to| routes.service(to)) {
                    self.reach.doubt(service);
                }
                (routes.seen_from(info.source, quoted), quoted.and_then(|to| routes.inbound(to)))
            }
        };
        let written = if seen_from == info.source && shown.is_none() {
            rustix::io::write(&self.device, datagram)
        } else {
            let packet = &mut self.inner.borrow_mut().packet;
            packet.clear();
            packet.extend_from_slice(datagram);
            translate::rewrite_quoted_destination(packet, &info, |_| shown);
            if !translate::rewrite_source(packet, &mut info, seen_from) {
                return Err(TunnelDrop::Malformed);
            }
            rustix::io::write(&self.device, packet)
        };
        written.map(drop).map_err(|error| match error {
            // The kernel refuses anything but IP packets.
            rustix::io::Errno::INVAL => TunnelDrop::Malformed,
            _ => TunnelDrop::LocalFull,
        })
    }
}
