//! Totals that the engine thread writes and the control plane reads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

pub use ztna_packet::counter::Counter;

use crate::boundary::limits::IdentityClass;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Totals and gauges of one engine.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
            /// Datagrams dropped, by the identity class of their sender and by reason.
            pub drops: ClassDrops,
        }

        impl Counters {
            /// Every value by its name; drops are apart.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Microseconds since the engine started (gauge).
    uptime_us,
    /// Admitted connections alive (gauge).
    connections,
    /// Handshakes under way (gauge).
    half_open,
    /// Connection attempts let into a handshake.
    accepted,
    /// Connections admitted: handshake complete.
    admitted,
    /// Handshakes completed.
    handshake_ok,
    /// Handshakes that failed.
    handshake_failed,
    /// Handshakes refused because the client's certificates exceed the bounds of number, size or
    /// cost.
    handshake_refused_chain,
    /// Handshakes not completed in time.
    handshake_timeout,
    /// Attempts refused because their source exceeded its rate.
    handshake_refused_rate,
    /// Attempts refused because the server is full, draining or has too many half-open ones.
    handshake_refused_full,
    /// Attempts ignored because the control plane is behind.
    handshake_ignored_backpressure,
    /// Attempts ignored because their source has its share of the handshakes under way.
    handshake_ignored_source,
    /// Joins under way (gauge).
    joins,
    /// Attempts to join let into a handshake.
    join_accepted,
    /// Requests of joins passed to the control plane.
    join_requests,
    /// Joins whose clients have got their reply.
    join_replies,
    /// Attempts to join refused because their source, or all together, exceeded their rate.
    join_refused_rate,
    /// Attempts to join refused because all places are taken.
    join_refused_full,
    /// Attempts to join refused because too many joins of their source have failed.
    join_refused_blocked,
    /// Joins ended because the control plane is behind.
    join_refused_backpressure,
    /// Attempts to join ignored because their source has its share of the places.
    join_ignored_source,
    /// Joins whose handshake failed.
    join_handshake_failed,
    /// Joins whose client left without its reply.
    join_abandoned,
    /// Joins whose client broke the protocol, such as by a request that is too large.
    join_malformed,
    /// Joins not completed in time.
    join_timeouts,
    /// Retry packets sent (RFC 9000 section 8.1.2).
    retry_sent,
    /// Attempts that came back with a good Retry token.
    retry_validated,
    /// Retry tokens that could not be opened or have let in a handshake before.
    retry_invalid,
    /// Connections ended after admission.
    closed,
    /// Packets relayed from agents to connectors.
    relayed_to_connector_packets,
    /// Their bytes, wrapper not counted.
    relayed_to_connector_bytes,
    /// Packets relayed from connectors to agents.
    relayed_to_agent_packets,
    /// Their bytes.
    relayed_to_agent_bytes,
    /// ICMP answers sent for packets that could not be delivered.
    icmp_sent,
    /// Packets whose inner address was translated.
    translated,
    /// Inner addresses leased or resting (gauge).
    leases,
    /// Events waiting for the control plane (gauge).
    outbox_depth,
    /// The most events that ever waited.
    outbox_high_water,
    /// UDP datagrams received.
    udp_rx_datagrams,
    /// Their bytes.
    udp_rx_bytes,
    /// UDP datagrams sent.
    udp_tx_datagrams,
    /// Their bytes.
    udp_tx_bytes,
    /// Sends that the kernel refused; QUIC treats them as loss.
    udp_send_errors,
    /// Sends that found their socket full and wait for room.
    udp_send_waits,
    /// UDP datagrams given up because their socket had no room for too long.
    udp_dropped_socket_full,
    /// Receives that the kernel refused.
    udp_recv_errors,
    /// UDP datagrams from source port 0, which cannot be answered.
    udp_dropped_source_port_zero,
    /// Packets of another QUIC version: too small, or beyond the rate at which versions are
    /// negotiated.
    udp_dropped_version,
    /// Packets without a long header, too small to be of a connection: hole-punch probes and noise.
    udp_dropped_too_small,
    /// Packets of handshakes for which too many others waited, of all or of their source.
    udp_dropped_handshake,
    /// Connections closed because the peer took packets and acknowledged none.
    closed_unacknowledged,
    /// Connections, or signaling of connections, ended by a defect in the engine.
    connection_panics,
    /// Changes of a peer's address.
    address_changes,
    /// Turns of the housekeeping loop: it stands still when the engine thread does.
    ticks,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// The reason of a dropped datagram; a closed set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// A stable word for logs and metric labels.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// No bytes at all.
    Empty => "empty",
    /// A ztna-v1 message that is too short or whose length field is wrong.
    BadMessage => "bad_message",
    /// A message that only a server sends.
    UnexpectedMessage => "unexpected_message",
    /// A hole-punch probe (0x5A) that strayed here.
    HolePunch => "hole_punch",
    /// Not an IP packet, or one whose length fields do not fit.
    Malformed => "malformed",
    /// No host may use this inner source.
    BadSource => "bad_source",
    /// The sender has no registration.
    Unregistered => "unregistered",
    /// The sender is not registered for the service it named.
    NotRegisteredForService => "not_registered_for_service",
    /// The service has no live connector.
    NoConnector => "no_connector",
    /// No agent holds the inner destination.
    NoAgent => "no_agent",
    /// The agent is not one of the sender's services, or the service address is another service's.
    NotAllowed => "not_allowed",
    /// The answer to a packet that went past the relay, which more than one agent may have sent.
    DirectAmbiguous => "direct_ambiguous",
    /// The agent uses more inner addresses than it may, or the pool is used up.
    NoLease => "no_lease",
    /// Another agent uses the same flow and addresses are not translated. Or it is a fragment whose
    /// datagram's first one has not passed, or the flow table is full.
    FlowConflict => "flow_conflict",
    /// Larger than the target can take.
    TooLarge => "too_large",
    /// The target's send queue is full.
    SendQueueFull => "send_queue_full",
    /// The target closed or takes no DATAGRAMs.
    TargetGone => "target_gone",
    /// The sender's receive queue overflowed before the datagram was read.
    ReceiveQueueFull => "receive_queue_full",
    /// More registration messages than a connection may send.
    ControlFlood => "control_flood",
    /// The control plane did not take events fast enough.
    OutboxFull => "outbox_full",
    /// Beyond the rate that the sender or the target is granted.
    RateLimited => "rate_limited",
}

/// A counter for each [`DropReason`].
#[derive(Debug)]
pub struct Drops([Counter; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts `n` datagrams dropped for `reason`.
    #[inline]
    pub fn add(&self, reason: DropReason, n: u64) {
        self.0[reason as usize].add(n);
    }

    /// Every reason with its total.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        DropReason::ALL.iter().map(|r| (r.as_str(), self.0[*r as usize].get())).collect()
    }
}

/// [`Drops`] for each [`IdentityClass`].
#[derive(Debug, Default)]
pub struct ClassDrops([Drops; IdentityClass::ALL.len()]);

impl ClassDrops {
    /// Counts `n` datagrams of a sender of `class` dropped for `reason`.
    #[inline]
    pub fn add(&self, class: IdentityClass, reason: DropReason, n: u64) {
        self.0[class as usize].add(reason, n);
    }

    /// Every reason with its total.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let sum = |r: &DropReason| self.0.iter().map(|drops| drops.0[*r as usize].get()).sum();
        DropReason::ALL.iter().map(|r| (r.as_str(), sum(r))).collect()
    }

    /// Every reason and class with its total.
    pub fn by_class(&self) -> Vec<((&'static str, &'static str), u64)> {
        let each = |class: IdentityClass| {
            let drops = self.0[class as usize].snapshot();
            drops.into_iter().map(move |(reason, n)| ((reason, class.as_str()), n))
        };
        IdentityClass::ALL.into_iter().flat_map(each).collect()
    }
}

/// Totals of one service.
#[derive(Debug, Default)]
pub struct ServiceCounters {
    /// Live connectors (gauge).
    pub connectors: Counter,
    /// Live connectors that answer (gauge).
    pub healthy: Counter,
    /// Packets delivered to its connectors.
    pub to_connector_packets: Counter,
    /// Their bytes.
    pub to_connector_bytes: Counter,
    /// Packets delivered to its agents.
    pub to_agent_packets: Counter,
    /// Their bytes.
    pub to_agent_bytes: Counter,
    /// Packets of this service dropped, by reason.
    pub drops: Drops,
}

/// The live services' counters by name, shared with the control plane.
///
/// Locked when a service appears or goes and when it is read, never for a packet.
pub type ServiceBoard = Mutex<BTreeMap<Bytes, Arc<ServiceCounters>>>;
