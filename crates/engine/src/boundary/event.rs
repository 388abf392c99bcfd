//! Events of the engine for the control plane.
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

/// One occurrence that the control plane has to know of.
#[allow(missing_docs, reason = "most fields are their names")]
#[derive(Debug, Clone)]
pub enum Event {
    /// A handshake is complete and the connection has been admitted.
    Connected {
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
        failure: Failure,
    },
    /// A client asks to join; it is answered by [`JoinReply`](crate::Command::JoinReply).
    JoinRequest {
        request: u64,
        /// The address it asks from.
        remote: SocketAddr,
        /// The certificate of which it proved the key, DER; nothing else about it is verified.
        certificate: Option<Vec<u8>>,
        /// At most [`MAX_JOIN`](crate::MAX_JOIN) bytes, not yet parsed.
        data: Vec<u8>,
    },
    /// The answer to [`Ask`](crate::Command::Ask).
    Answered {
        request: u64,
        /// The chain that the server has shown, DER, its own certificate first.
        certificates: Vec<Vec<u8>>,
        /// At most [`MAX_JOIN`](crate::MAX_JOIN) bytes.
        data: Vec<u8>,
    },
    /// [`Connect`](crate::Command::Connect) did not lead to a connection, or
    /// [`Ask`](crate::Command::Ask) to an answer.
    ConnectFailed { request: u64, failure: Failure },
    /// The peer's source address changed: NAT rebinding or migration (RFC 9000 section 9).
    AddressChanged { conn: ConnId, remote: SocketAddr },
    /// The peer reported our address as it sees it, in an OBSERVED_ADDRESS frame
    /// (draft-ietf-quic-address-discovery).
    ObservedAddress { conn: ConnId, address: SocketAddr },
    /// An agent with a proven identity has come, for which these inner addresses are reserved for
    /// good.
    ReservedAddresses {
        /// SHA-256 of its public key.
        identity: [u8; 32],
        /// One of each family, or of one of them.
        addresses: Vec<IpAddr>,
    },
    /// A registration DATAGRAM (first byte 0x10 or 0x11) arrived at a server.
    Control {
        conn: ConnId,
        /// The whole datagram, not yet parsed.
        data: Bytes,
    },
    /// A signaling frame arrived at a server.
    Signal {
        conn: ConnId,
        /// Not yet decoded.
        payload: Bytes,
    },
    /// The stream that a client signals on has ended; it may open another.
    SignalEnded { conn: ConnId, end: StreamEnd },
    /// A frame for a client was dropped whole, since too much waits for it already.
    SignalDropped { conn: ConnId },
    /// The answer to [`LookUpRoute`](crate::Command::LookUpRoute).
    RouteFound {
        request: u64,
        /// The connector of the agent's packets; `None` where they would reach none.
        connector: Option<ConnId>,
        /// The reason for which the two cannot be introduced to each other, as a stable word.
        conflict: Option<&'static str>,
    },
    /// DATAGRAMs arrived at a client connection, oldest first.
    Datagrams { conn: ConnId, data: Vec<Bytes> },
    /// The answer to [`Inspect`](crate::Command::Inspect).
    Inspected { conn: ConnId, state: Box<Inspection> },
    /// The connection is gone; its id is never used again.
    Closed {
        conn: ConnId,
        /// The side that ended it, and how.
        cause: CloseCause,
        /// The code of the CONNECTION_CLOSE frame; 0 without one.
        code: u64,
        /// The reason in that frame, made printable.
        reason: String,
        /// Life time in microseconds since admission.
        duration_us: u64,
        /// Its totals since then.
        totals: Totals,
    },
    /// The largest DATAGRAM payload of a client's connection is known or has changed; at most one
    /// a second for each connection.
    DatagramLimit {
        conn: ConnId,
        /// The largest payload that can be sent, in bytes; 0 if the peer takes none.
        max_datagram: usize,
    },
    /// A tunnel is open.
    TunnelOpened {
        tunnel: TunnelId,
        /// The bound local addresses, in the order of the forwards.
        addresses: Vec<SocketAddr>,
    },
    /// A tunnel could not be opened, or its device or sockets failed; it is closed.
    TunnelFailed { tunnel: TunnelId, reason: String },
    /// The state of a part of a tunnel: when it is first known, on each change, and for a lasting
    /// failure from time to time.
    TunnelNotice { tunnel: TunnelId, notice: Box<Notice> },
    /// The engine cannot go on; no event follows.
    Failed { reason: String },
}

/// The state of a part of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The part.
    pub subject: Subject,
    /// The service it belongs to.
    pub service: Bytes,
    /// The address of a backend or a port.
    pub address: Option<SocketAddr>,
    /// The fault, as the end of a sentence that begins with the subject; `None` without one.
    pub error: Option<String>,
}

/// The subject of a [`Notice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The connector of an agent's service.
    Connector,
    /// A connection from an agent's port that was refused behind the connector.
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

/// The end of a signaling stream, by its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The peer has finished it.
    Finished,
    /// The peer has reset it.
    Reset,
    /// A frame was announced that is larger than any may be.
    FrameTooLarge,
    /// A frame was not complete in time.
    FrameTimeout,
    /// Unfinished frames of all connections held too much, and this one's the most.
    BacklogFull,
    /// The control plane has asked for it.
    Condemned,
    /// A defect in the engine ended it; the connection goes on without signaling.
    Panic,
}

impl StreamEnd {
    /// A stable word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Reset => "reset",
            Self::FrameTooLarge => "frame_too_large",
            Self::FrameTimeout => "frame_timeout",
            Self::BacklogFull => "backlog_full",
            Self::Condemned => "condemned",
            Self::Panic => "panic",
        }
    }
}

/// The end of a connection, by its cause.
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
    /// The peer was silent for the idle timeout.
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

/// Totals of one connection in its life.
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
    /// The largest DATAGRAM payload that can be sent now, in bytes; 0 if the peer takes none.
    pub max_datagram: usize,
    /// Congestion window in bytes.
    pub cwnd: u64,
    /// QUIC packets sent.
    pub sent_packets: u64,
    /// QUIC packets declared lost.
    pub lost_packets: u64,
    /// Packets received, retransmissions and all.
    pub received_packets: u64,
    /// Its totals so far.
    pub totals: Totals,
}

/// The reason of a failed handshake, in stable words; the control plane makes the sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure.
    pub cause: FailureCause,
    /// The code of the peer's CONNECTION_CLOSE frame; 0 without one.
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
    /// The peer was silent.
    Silent,
    /// The peer ended the handshake, with a code.
    Peer,
    /// The peer's certificate chains to no trusted CA.
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
