//! Everything that travels from the engine up to the control plane.
//!
//! For each admitted connection there is exactly one [`Event::Connected`] and later exactly one
//! [`Event::Closed`]; every other event of that connection lies between the two.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use crate::{slots::SlotId, tunnel::config::TunnelId};

/// Names one connection for its whole life.
///
/// The low 32 bits are a slot, the high 32 bits the slot's generation, so a command that arrives
/// after its connection has closed can never reach the connection that took the slot over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

impl ConnId {
    /// The id of `slot` in its `generation`.
    pub fn new(slot: u32, generation: u32) -> Self {
        SlotId::new(slot, generation).into()
    }

    /// The index into the connection table.
    pub fn slot(self) -> usize {
        SlotId::from(self).slot()
    }
}

impl From<SlotId> for ConnId {
    #[inline]
    fn from(id: SlotId) -> Self {
        Self(id.bits())
    }
}

impl From<ConnId> for SlotId {
    #[inline]
    fn from(id: ConnId) -> Self {
        Self::from_bits(id.0)
    }
}

/// One occurrence the control plane has to know of.
#[derive(Debug, Clone)]
pub enum Event {
    /// A handshake is complete and the connection has been admitted.
    Connected {
        /// The new connection.
        conn: ConnId,
        /// The `request` of the [`Connect`](crate::Command::Connect) it answers; `None` for a
        /// connection that was accepted.
        request: Option<u64>,
        /// The address the peer's packets come from; IPv4-mapped IPv6 is given as IPv4.
        remote: SocketAddr,
        /// The peer's certificate chain as proven by the handshake, DER, leaf first. Empty for an
        /// anonymous peer.
        certificates: Vec<Vec<u8>>,
        /// Time from the first accepted packet to the completed handshake, in microseconds.
        handshake_us: u64,
    },
    /// A connection attempt ended before it was admitted (server side; sampled, the counters are
    /// exact).
    HandshakeFailed {
        /// Where the attempt came from.
        remote: SocketAddr,
        /// What ended it.
        failure: Failure,
    },
    /// [`Connect`](crate::Command::Connect) did not lead to a connection.
    ConnectFailed {
        /// The `request` of the command.
        request: u64,
        /// What ended it.
        failure: Failure,
    },
    /// The peer's source address changed: NAT rebinding or migration (RFC 9000 section 9).
    AddressChanged {
        /// The connection.
        conn: ConnId,
        /// The new address.
        remote: SocketAddr,
    },
    /// The peer told us the address it sees us at, in an OBSERVED_ADDRESS frame
    /// (draft-ietf-quic-address-discovery).
    ObservedAddress {
        /// The connection.
        conn: ConnId,
        /// The address.
        address: SocketAddr,
    },
    /// An agent with a proven identity has come, whose own these inner addresses are for good.
    ReservedAddresses {
        /// SHA-256 of its public key.
        identity: [u8; 32],
        /// One of each family, or of one of them.
        addresses: Vec<IpAddr>,
    },
    /// A registration DATAGRAM (first byte 0x10 or 0x11) arrived at a server.
    Control {
        /// The sender.
        conn: ConnId,
        /// The whole datagram, not yet parsed.
        data: Bytes,
    },
    /// DATAGRAMs arrived at a client connection, oldest first.
    Datagrams {
        /// The receiving connection.
        conn: ConnId,
        /// The datagrams.
        data: Vec<Bytes>,
    },
    /// The answer to [`Inspect`](crate::Command::Inspect).
    Inspected {
        /// The connection.
        conn: ConnId,
        /// Its state at that moment.
        state: Box<Inspection>,
    },
    /// The connection is gone; its id will not be seen again.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Who ended it and how.
        cause: CloseCause,
        /// The code of the CONNECTION_CLOSE frame; 0 where there was none.
        code: u64,
        /// The reason given, made printable.
        reason: String,
        /// Life time in microseconds since admission.
        duration_us: u64,
        /// What it moved in that time.
        totals: Totals,
    },
    /// The largest DATAGRAM payload of a client's connection is known or has changed; at most one
    /// a second for each connection.
    DatagramLimit {
        /// The connection.
        conn: ConnId,
        /// The largest payload that can be sent, in bytes; 0 where the peer takes none.
        max_datagram: usize,
    },
    /// A tunnel is open.
    TunnelOpened {
        /// The tunnel.
        tunnel: TunnelId,
        /// The bound local addresses, in the order of the forwards.
        addresses: Vec<SocketAddr>,
    },
    /// A tunnel could not be opened, or what it was open on failed; it is closed.
    TunnelFailed {
        /// The tunnel.
        tunnel: TunnelId,
        /// Why.
        reason: String,
    },
    /// How something at a tunnel fares: when it is first known and on each change, a failure that
    /// lasts again from time to time.
    TunnelNotice {
        /// The tunnel.
        tunnel: TunnelId,
        /// What is known.
        notice: Box<Notice>,
    },
    /// The engine cannot go on; nothing more will follow.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How something at a tunnel fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What fares so.
    pub subject: Subject,
    /// The service it belongs to.
    pub service: Bytes,
    /// The address of a backend or a port.
    pub address: Option<SocketAddr>,
    /// What is wrong, as the end of a sentence that begins with the subject; `None` where nothing is.
    pub error: Option<String>,
}

/// What a [`Notice`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The connector of an agent's service.
    Connector,
    /// A connection from an agent's port, which was not let in behind the connector.
    Flow,
    /// An address of a connector's backend.
    Backend,
    /// A local TCP port of an agent.
    Port,
}

impl Subject {
    /// A stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connector => "connector",
            Self::Flow => "flow",
            Self::Backend => "backend",
            Self::Port => "port",
        }
    }
}

/// Who ended a connection, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// This side closed it.
    Local,
    /// The peer's application closed it.
    Application,
    /// The peer's transport reported an error.
    Peer,
    /// This side's transport found an error.
    Transport,
    /// Nothing was heard for the idle timeout.
    IdleTimeout,
    /// The peer sent a stateless reset.
    Reset,
    /// A defect in the engine ended this one connection.
    Panic,
}

impl CloseCause {
    /// A stable word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Application => "application",
            Self::Peer => "peer",
            Self::Transport => "transport",
            Self::IdleTimeout => "idle_timeout",
            Self::Reset => "reset",
            Self::Panic => "panic",
        }
    }
}

/// What one connection moved in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// DATAGRAMs received from the peer.
    pub received_datagrams: u64,
    /// Their payload bytes.
    pub received_bytes: u64,
    /// DATAGRAMs handed to the peer's send queue.
    pub sent_datagrams: u64,
    /// Their payload bytes.
    pub sent_bytes: u64,
    /// DATAGRAMs from or to the peer that were dropped.
    pub dropped: u64,
}

/// A connection's transport state at one moment.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u64,
    /// The UDP payload size in use, in bytes.
    pub mtu: u16,
    /// The largest DATAGRAM payload that can be sent now, in bytes; 0 where the peer takes none.
    pub max_datagram: usize,
    /// Congestion window in bytes.
    pub cwnd: u64,
    /// QUIC packets sent.
    pub sent_packets: u64,
    /// QUIC packets found lost.
    pub lost_packets: u64,
    /// Packets received, retransmissions and all.
    pub received_packets: u64,
    /// What it moved so far.
    pub totals: Totals,
}

/// Why a handshake failed, in words that stay the same: what is said of it is the control plane's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub cause: FailureCause,
    /// The code of the CONNECTION_CLOSE frame the peer sent; 0 where there was none.
    pub code: u64,
    /// The words of TLS, of QUIC or of the peer, made printable.
    pub reason: String,
    /// With [`FailureCause::WrongName`] the names of the certificate.
    pub names: Vec<String>,
}

/// A closed set of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The host answers that the port is closed (ICMP "port unreachable").
    PortClosed,
    /// Nothing was heard in time.
    Silent,
    /// The peer ended the handshake, with a code.
    Peer,
    /// The peer's certificate leads to no CA that is trusted.
    UnknownIssuer,
    /// The peer's certificate is for other names.
    WrongName,
    /// The peer's certificate has expired.
    Expired,
    /// The peer's certificate begins later.
    NotYetValid,
    /// The peer's certificate is for another purpose.
    WrongPurpose,
    /// The peer shows the certificate of a CA as its own.
    AuthorityAsPeer,
    /// The peer's certificate cannot be used for another reason.
    BadCertificate,
    /// The peer shows no certificate.
    NoCertificate,
    /// A fault of this side or of the protocol.
    Other,
}

impl FailureCause {
    /// A stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PortClosed => "port_closed",
            Self::Silent => "silent",
            Self::Peer => "peer",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongName => "wrong_name",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongPurpose => "wrong_purpose",
            Self::AuthorityAsPeer => "authority_as_peer",
            Self::BadCertificate => "bad_certificate",
            Self::NoCertificate => "no_certificate",
            Self::Other => "other",
        }
    }
}
