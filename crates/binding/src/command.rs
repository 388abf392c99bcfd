//! Commands: built in Python, read here.

use bytes::Bytes;
use pyo3::prelude::*;
use ztna_engine::{
    ConnId, IdentityClass, MAX_JOIN, Rates,
    tunnel::{TunnelConfig, TunnelId},
};

use crate::{
    EngineError,
    config::{ConnectConfig, ServerTls, parsed},
    tunnel::{Backend, Forward, TunMap, duplicate, routing, service},
};

/// One connector of a service: lower ``rank`` is preferred, ``key`` names it for rendezvous
/// hashing.
#[pyclass(frozen, eq, get_all, from_py_object, module = "intermediate_server._engine")]
#[derive(Clone, PartialEq)]
pub(crate) struct Target {
    conn: u64,
    rank: u32,
    key: u64,
}

#[pymethods]
impl Target {
    #[new]
    #[pyo3(signature = (*, conn, rank, key))]
    fn new(conn: u64, rank: u32, key: u64) -> Self {
        Self { conn, rank, key }
    }

    fn __repr__(&self) -> String {
        format!("Target(conn={}, rank={}, key={})", self.conn, self.rank, self.key)
    }
}

/// An instruction to the engine; one for a connection that is gone does nothing.
#[pyclass(frozen, module = "intermediate_server._engine")]
pub(crate) enum Command {
    /// Replace the connectors of a service; no targets removes it.
    SetService { service: Vec<u8>, targets: Vec<Target> },
    /// Replace what an agent may reach, in order of registration; ``identity`` is SHA-256 of its
    /// public key.
    #[pyo3(constructor = (conn, services, identity=None))]
    SetAgent { conn: u64, services: Vec<Vec<u8>>, identity: Option<Vec<u8>> },
    /// Set what a connection may use, together with all others of its limiter; a rate of 0 is
    /// unlimited.
    #[pyo3(constructor = (
        conn, limiter, identity_class, bytes_per_second=0, packets_per_second=0,
    ))]
    SetLimits {
        conn: u64,
        limiter: u64,
        identity_class: String,
        bytes_per_second: u64,
        packets_per_second: u64,
    },
    /// Send one DATAGRAM.
    SendDatagram { conn: u64, data: Vec<u8> },
    /// Send DATAGRAMs, oldest first.
    SendDatagrams { conn: u64, data: Vec<Vec<u8>> },
    /// Send one signaling frame whole, on the stream that an agent has opened or the one chosen for a
    /// connector; dropped whole with ``Event.SignalDropped`` where too much waits.
    SendSignal { conn: u64, payload: Vec<u8>, to_agent: bool },
    /// End the stream that a client signals on, with code 0x5A; its connection goes on.
    EndSignaling { conn: u64 },
    /// Ask for the connector of an agent's packets, answered by ``Event.RouteFound``.
    LookUpRoute { request: u64, agent: u64, service: Vec<u8> },
    /// Note that an agent sends packets to a connector past this server: the answers come by it.
    Introduce { agent: u64, connector: u64 },
    /// Take an ``Introduce`` back.
    Separate { agent: u64, connector: u64 },
    /// Close a connection with an application code (RFC 9000 section 10.2).
    Close { conn: u64, code: u64, reason: String },
    /// Use other certificates for handshakes from now on.
    SetServerTls { tls: Py<ServerTls> },
    /// Take new connections or refuse them.
    SetAccepting { accepting: bool },
    /// Open a client connection, answered by ``Event.Connected`` or ``Event.ConnectFailed``.
    Connect { request: u64, config: Py<ConnectConfig> },
    /// Reply to an ``Event.JoinRequest``; a ``refused`` one counts against its source.
    #[pyo3(constructor = (request, data, refused=false))]
    JoinReply { request: u64, data: Vec<u8>, refused: bool },
    /// Ask a server to join, answered by ``Event.Answered`` or ``Event.ConnectFailed``.
    Ask { request: u64, config: Py<ConnectConfig>, data: Vec<u8> },
    /// Give a ``Connect`` or an ``Ask`` up that has not been answered.
    CancelConnect { request: u64 },
    /// Move a client connection to a new local port (RFC 9000 section 9).
    Rebind { conn: u64 },
    /// Ask for a connection's transport state, answered by ``Event.Inspected``.
    Inspect { conn: u64 },
    /// Open a tunnel of local sockets, answered by ``Event.TunnelOpened`` or ``Event.TunnelFailed``.
    OpenForwards { tunnel: u64, forwards: Vec<Forward>, source_v4: String, source_v6: String },
    /// Open a tunnel of backends, or replace those of an open one; answered as ``OpenForwards``.
    #[pyo3(constructor = (tunnel, services, try_once=false))]
    OpenBackends { tunnel: u64, services: Vec<Backend>, try_once: bool },
    /// Open a tunnel on a TUN device, which is duplicated; answered as ``OpenForwards``.
    #[pyo3(constructor = (
        tunnel, fd, maps=vec![], default_service=None, own=None, agents=None, source=None,
    ))]
    OpenTun {
        tunnel: u64,
        fd: i32,
        maps: Vec<TunMap>,
        default_service: Option<Vec<u8>>,
        own: Option<Vec<String>>,
        agents: Option<Vec<String>>,
        source: Option<String>,
    },
    /// Replace the services acknowledged on a tunnel's present connection.
    SetTunnelServices { tunnel: u64, services: Vec<Vec<u8>> },
    /// Let a client connection carry a tunnel.
    #[pyo3(constructor = (tunnel, conn, sends=true))]
    AttachTunnel { tunnel: u64, conn: u64, sends: bool },
    /// Close a tunnel and everything that flows through it.
    CloseTunnel { tunnel: u64 },
}

impl Command {
    /// The engine's form of it.
    pub(crate) fn read(&self) -> PyResult<ztna_engine::Command> {
        use ztna_engine::Command as Down;
        let conn = |conn: &u64| ConnId(*conn);
        Ok(match self {
            Self::SetService { service, targets } => {
                if service.len() > 255 {
                    return Err(EngineError::new_err("a service id has at most 255 bytes"));
                }
                let target = |t: &Target| ztna_engine::Target {
                    conn: ConnId(t.conn),
                    rank: t.rank,
                    key: t.key,
                };
                Down::SetService {
                    service: copy(service),
                    targets: targets.iter().map(target).collect(),
                }
            }
            Self::SetAgent { conn: c, services, identity } => Down::SetAgent {
                conn: conn(c),
                services: services.iter().map(copy).collect(),
                identity: identity
                    .as_deref()
                    .map(|key| key.try_into())
                    .transpose()
                    .map_err(|_| EngineError::new_err("an identity has 32 bytes"))?,
            },
            Self::SetLimits {
                conn: c,
                limiter,
                identity_class,
                bytes_per_second,
                packets_per_second,
            } => Down::SetLimits {
                conn: conn(c),
                limiter: *limiter,
                class: IdentityClass::ALL
                    .into_iter()
                    .find(|class| class.as_str() == identity_class)
                    .ok_or_else(|| {
                        EngineError::new_err("identity_class is certificate or anonymous")
                    })?,
                rates: Rates {
                    bytes_per_second: *bytes_per_second,
                    packets_per_second: *packets_per_second,
                },
            },
            Self::SendDatagram { conn: c, data } => {
                Down::SendDatagram { conn: conn(c), data: copy(data) }
            }
            Self::SendDatagrams { conn: c, data } => {
                Down::SendDatagrams { conn: conn(c), data: data.iter().map(copy).collect() }
            }
            Self::SendSignal { conn: c, payload, to_agent } => {
                Down::SendSignal { conn: conn(c), payload: copy(payload), to_agent: *to_agent }
            }
            Self::EndSignaling { conn: c } => Down::EndSignaling { conn: conn(c) },
            Self::LookUpRoute { request, agent, service } => {
                Down::LookUpRoute { request: *request, agent: conn(agent), service: copy(service) }
            }
            Self::Introduce { agent, connector } => {
                Down::Introduce { agent: conn(agent), connector: conn(connector) }
            }
            Self::Separate { agent, connector } => {
                Down::Separate { agent: conn(agent), connector: conn(connector) }
            }
            Self::Close { conn: c, code, reason } => {
                Down::Close { conn: conn(c), code: *code, reason: copy(reason) }
            }
            Self::SetServerTls { tls } => Down::SetServerTls { tls: tls.get().0.clone() },
            Self::SetAccepting { accepting } => Down::SetAccepting { accepting: *accepting },
            Self::Connect { request, config } => {
                Down::Connect { request: *request, config: Box::new(config.get().0.clone()) }
            }
            Self::JoinReply { request, data, refused } => {
                Down::JoinReply { request: *request, data: join(data)?, refused: *refused }
            }
            Self::Ask { request, config, data } => Down::Ask {
                request: *request,
                config: Box::new(config.get().0.clone()),
                data: join(data)?,
            },
            Self::CancelConnect { request } => Down::CancelConnect { request: *request },
            Self::Rebind { conn: c } => Down::Rebind { conn: conn(c) },
            Self::Inspect { conn: c } => Down::Inspect { conn: conn(c) },
            Self::OpenForwards { tunnel, forwards, source_v4, source_v6 } => Down::OpenTunnel {
                tunnel: TunnelId(*tunnel),
                config: TunnelConfig::Forwards {
                    forwards: forwards.iter().map(Forward::read).collect::<PyResult<_>>()?,
                    source_v4: parsed(source_v4)?,
                    source_v6: parsed(source_v6)?,
                },
            },
            Self::OpenBackends { tunnel, services, try_once } => Down::OpenTunnel {
                tunnel: TunnelId(*tunnel),
                config: TunnelConfig::Backends {
                    services: services.iter().map(Backend::read).collect::<PyResult<_>>()?,
                    try_once: *try_once,
                },
            },
            Self::OpenTun { tunnel, fd, maps, default_service, own, agents, source } => {
                Down::OpenTunnel {
                    tunnel: TunnelId(*tunnel),
                    config: TunnelConfig::Tun {
                        routing: routing(
                            maps,
                            default_service.as_ref(),
                            own.as_deref(),
                            agents.as_deref(),
                            source.as_deref(),
                        )?,
                        device: duplicate(*fd)?,
                    },
                }
            }
            Self::SetTunnelServices { tunnel, services } => Down::SetTunnelServices {
                tunnel: TunnelId(*tunnel),
                services: services.iter().map(|id| service(id)).collect::<PyResult<_>>()?,
            },
            Self::AttachTunnel { tunnel, conn: c, sends } => {
                Down::AttachTunnel { tunnel: TunnelId(*tunnel), conn: conn(c), sends: *sends }
            }
            Self::CloseTunnel { tunnel } => Down::CloseTunnel { tunnel: TunnelId(*tunnel) },
        })
    }
}

/// A request or an answer of a join.
fn join(data: &[u8]) -> PyResult<Bytes> {
    if data.len() > MAX_JOIN {
        let text = format!("a message of a join has at most {MAX_JOIN} bytes, not {}", data.len());
        return Err(EngineError::new_err(text));
    }
    Ok(copy(data))
}

fn copy(data: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(data.as_ref())
}
