//! Events: built here, read in Python.

use std::net::IpAddr;

use pyo3::{
    prelude::*,
    types::{PyBytes, PyList},
};
use ztna_engine::Event as Up;

use crate::config::pair;

/// Totals of one connection.
#[pyclass(frozen, eq, get_all, module = "intermediate_server._engine")]
#[derive(Clone, PartialEq)]
pub(crate) struct Totals {
    received_datagrams: u64,
    received_bytes: u64,
    sent_datagrams: u64,
    sent_bytes: u64,
    dropped: u64,
}

#[pymethods]
impl Totals {
    #[new]
    #[pyo3(signature = (*, received_datagrams = 0, received_bytes = 0, sent_datagrams = 0, sent_bytes = 0, dropped = 0))]
    fn new(
        received_datagrams: u64,
        received_bytes: u64,
        sent_datagrams: u64,
        sent_bytes: u64,
        dropped: u64,
    ) -> Self {
        Self { received_datagrams, received_bytes, sent_datagrams, sent_bytes, dropped }
    }
}

/// An event of the engine. Each connection has exactly one ``Connected`` and later exactly one
/// ``Closed``.
#[pyclass(frozen, module = "intermediate_server._engine")]
pub(crate) enum Event {
    /// A handshake is complete and the connection has been admitted.
    Connected {
        conn: u64,
        request: Option<u64>,
        remote: (String, u16),
        certificates: Vec<Vec<u8>>,
        handshake_us: u64,
    },
    /// A connection attempt ended before it was admitted; sampled, the counters are exact.
    #[pyo3(constructor = (remote, reason, cause="other".to_owned(), code=0))]
    HandshakeFailed { remote: (String, u16), reason: String, cause: String, code: u64 },
    /// A client asks to join; the key of its ``certificate`` is proven, and nothing else about it.
    JoinRequest {
        request: u64,
        remote: (String, u16),
        certificate: Option<Py<PyBytes>>,
        data: Py<PyBytes>,
    },
    /// The answer to ``Command.Ask``, and the chain that the server has shown.
    Answered { request: u64, certificates: Vec<Vec<u8>>, data: Py<PyBytes> },
    /// ``Command.Connect`` did not lead to a connection, or ``Command.Ask`` to an answer.
    #[pyo3(constructor = (request, reason, cause="other".to_owned(), code=0, names=vec![]))]
    ConnectFailed { request: u64, reason: String, cause: String, code: u64, names: Vec<String> },
    /// The peer's source address changed (RFC 9000 section 9).
    AddressChanged { conn: u64, remote: (String, u16) },
    /// The peer reported our address as it sees it, in an OBSERVED_ADDRESS frame.
    ObservedAddress { conn: u64, address: (String, u16) },
    /// An agent with a proven identity has come, for which these inner addresses are reserved for
    /// good.
    ReservedAddresses { identity: Py<PyBytes>, addresses: Vec<String> },
    /// A registration DATAGRAM (0x10 or 0x11) at a server, not yet parsed.
    Control { conn: u64, data: Py<PyBytes> },
    /// The payload of a signaling frame at a server, not yet decoded.
    Signal { conn: u64, payload: Py<PyBytes> },
    /// The stream that a client signals on has ended: ``finished``, ``reset``, ``frame_too_large``,
    /// ``frame_timeout``, ``backlog_full`` or ``condemned``, and it may open another; or ``panic``.
    SignalEnded { conn: u64, reason: String },
    /// A frame for a client was dropped whole, since too much waits for it already.
    SignalDropped { conn: u64 },
    /// The answer to ``Command.LookUpRoute``. ``conflict`` is why the two cannot be introduced:
    /// ``translated``, ``ambiguous`` or ``learned``.
    RouteFound { request: u64, connector: Option<u64>, conflict: Option<String> },
    /// DATAGRAMs at a client connection, oldest first.
    Datagrams { conn: u64, data: Py<PyList> },
    /// The answer to ``Command.Inspect``.
    Inspected {
        conn: u64,
        rtt_us: u64,
        mtu: u16,
        max_datagram: usize,
        cwnd: u64,
        sent_packets: u64,
        lost_packets: u64,
        received_packets: u64,
        totals: Py<Totals>,
    },
    /// The connection is gone.
    Closed {
        conn: u64,
        cause: String,
        code: u64,
        reason: String,
        duration_us: u64,
        totals: Py<Totals>,
    },
    /// The largest DATAGRAM payload of a client's connection, when known and on each change.
    DatagramLimit { conn: u64, max_datagram: usize },
    /// A tunnel is open; the bound addresses are in the order of its forwards.
    TunnelOpened { tunnel: u64, addresses: Vec<(String, u16)> },
    /// A tunnel could not be opened, or its device or sockets failed; it is closed.
    TunnelFailed { tunnel: u64, reason: String },
    /// The state of a ``subject`` of a tunnel's service: ``connector``, ``flow``, ``backend`` or
    /// ``port``.
    TunnelNotice {
        tunnel: u64,
        subject: String,
        service: Py<PyBytes>,
        address: Option<(String, u16)>,
        error: Option<String>,
    },
    /// The engine cannot go on; nothing more follows.
    Failed { reason: String },
}

impl Event {
    /// Python's form of an engine event.
    pub(crate) fn of(py: Python<'_>, event: Up) -> PyResult<Self> {
        Ok(match event {
            Up::Connected { conn, request, remote, certificates, handshake_us } => {
                Self::Connected {
                    conn: conn.0,
                    request,
                    remote: pair(remote),
                    certificates,
                    handshake_us,
                }
            }
            Up::HandshakeFailed { remote, failure } => Self::HandshakeFailed {
                remote: pair(remote),
                reason: failure.reason,
                cause: failure.cause.as_str().into(),
                code: failure.code,
            },
            Up::JoinRequest { request, remote, certificate, data } => Self::JoinRequest {
                request,
                remote: pair(remote),
                certificate: certificate.map(|der| PyBytes::new(py, &der).unbind()),
                data: PyBytes::new(py, &data).unbind(),
            },
            Up::Answered { request, certificates, data } => {
                Self::Answered { request, certificates, data: PyBytes::new(py, &data).unbind() }
            }
            Up::ConnectFailed { request, failure } => Self::ConnectFailed {
                request,
                reason: failure.reason,
                cause: failure.cause.as_str().into(),
                code: failure.code,
                names: failure.names,
            },
            Up::AddressChanged { conn, remote } => {
                Self::AddressChanged { conn: conn.0, remote: pair(remote) }
            }
            Up::ObservedAddress { conn, address } => {
                Self::ObservedAddress { conn: conn.0, address: pair(address) }
            }
            Up::ReservedAddresses { identity, addresses } => Self::ReservedAddresses {
                identity: PyBytes::new(py, &identity).unbind(),
                addresses: addresses.iter().map(IpAddr::to_string).collect(),
            },
            Up::Control { conn, data } => {
                Self::Control { conn: conn.0, data: PyBytes::new(py, &data).unbind() }
            }
            Up::Signal { conn, payload } => {
                Self::Signal { conn: conn.0, payload: PyBytes::new(py, &payload).unbind() }
            }
            Up::SignalEnded { conn, end } => {
                Self::SignalEnded { conn: conn.0, reason: end.as_str().into() }
            }
            Up::SignalDropped { conn } => Self::SignalDropped { conn: conn.0 },
            Up::RouteFound { request, connector, conflict } => Self::RouteFound {
                request,
                connector: connector.map(|conn| conn.0),
                conflict: conflict.map(Into::into),
            },
            Up::Datagrams { conn, data } => {
                let data = data.iter().map(|d| PyBytes::new(py, d));
                let data = PyList::new(py, data.collect::<Vec<_>>())?.unbind();
                Self::Datagrams { conn: conn.0, data }
            }
            Up::Inspected { conn, state } => Self::Inspected {
                conn: conn.0,
                rtt_us: state.rtt_us,
                mtu: state.mtu,
                max_datagram: state.max_datagram,
                cwnd: state.cwnd,
                sent_packets: state.sent_packets,
                lost_packets: state.lost_packets,
                received_packets: state.received_packets,
                totals: Py::new(py, Totals::from(state.totals))?,
            },
            Up::Closed { conn, cause, code, reason, duration_us, totals } => Self::Closed {
                conn: conn.0,
                cause: cause.as_str().into(),
                code,
                reason,
                duration_us,
                totals: Py::new(py, Totals::from(totals))?,
            },
            Up::DatagramLimit { conn, max_datagram } => {
                Self::DatagramLimit { conn: conn.0, max_datagram }
            }
            Up::TunnelOpened { tunnel, addresses } => Self::TunnelOpened {
                tunnel: tunnel.0,
                addresses: addresses.into_iter().map(pair).collect(),
            },
            Up::TunnelFailed { tunnel, reason } => Self::TunnelFailed { tunnel: tunnel.0, reason },
            Up::TunnelNotice { tunnel, notice } => Self::TunnelNotice {
                tunnel: tunnel.0,
                subject: notice.subject.as_str().into(),
                service: PyBytes::new(py, &notice.service).unbind(),
                address: notice.address.map(pair),
                error: notice.error,
            },
            Up::Failed { reason } => Self::Failed { reason },
        })
    }
}

impl From<ztna_engine::Totals> for Totals {
    fn from(totals: ztna_engine::Totals) -> Self {
        Self {
            received_datagrams: totals.received_datagrams,
            received_bytes: totals.received_bytes,
            sent_datagrams: totals.sent_datagrams,
            sent_bytes: totals.sent_bytes,
            dropped: totals.dropped,
        }
    }
}
