//! Settings: certificates and what a listener is told.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use pyo3::prelude::*;
use ztna_engine::{
    RelayConfig,
    tls::{self, ClientAuth, ServerTrust},
};

use crate::{EngineError, refused};

/// The ALPN of ztna-v1.
pub(crate) const ALPN: &[u8] = b"ztna-v1";

/// Certificate, key and client trust of a listener, parsed and checked. Raises ``EngineError``.
#[pyclass(frozen, module = "intermediate_server._engine")]
pub(crate) struct ServerTls(pub(crate) Arc<tls::ServerTls>);

#[pymethods]
impl ServerTls {
    #[new]
    #[pyo3(signature = (*, certificate_pem, key_pem, client_ca_pem=None, client_auth="required"))]
    fn new(
        certificate_pem: &[u8],
        key_pem: &[u8],
        client_ca_pem: Option<&[u8]>,
        client_auth: &str,
    ) -> PyResult<Self> {
        let auth = match client_auth {
            "required" => ClientAuth::Required,
            "optional" => ClientAuth::Optional,
            "off" => ClientAuth::Off,
            other => {
                let text = format!("client_auth is required, optional or off, not {other:?}");
                return Err(EngineError::new_err(text));
            }
        };
        tls::ServerTls::new(certificate_pem, key_pem, client_ca_pem, auth)
            .map(|tls| Self(Arc::new(tls)))
            .map_err(refused)
    }

    /// What is good enough to run and better changed, one sentence each.
    fn warnings(&self) -> Vec<String> {
        self.0.warnings().to_vec()
    }
}

/// Trust and, where given, the certificate of a client. Raises ``EngineError``.
#[pyclass(frozen, module = "intermediate_server._engine")]
pub(crate) struct ClientTls(pub(crate) Arc<tls::ClientTls>);

#[pymethods]
impl ClientTls {
    #[new]
    #[pyo3(signature = (
        *, ca_pem=None, certificate_pem=None, key_pem=None, verify=true, verify_name=true
    ))]
    fn new(
        ca_pem: Option<&[u8]>,
        certificate_pem: Option<&[u8]>,
        key_pem: Option<&[u8]>,
        verify: bool,
        verify_name: bool,
    ) -> PyResult<Self> {
        let identity = match (certificate_pem, key_pem) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                let text = "a client certificate needs its key and a key its certificate";
                return Err(EngineError::new_err(text));
            }
        };
        let trust = match (verify, verify_name) {
            (false, _) => ServerTrust::Anyone,
            (true, false) => ServerTrust::Chain,
            (true, true) => ServerTrust::ChainAndName,
        };
        tls::ClientTls::new(ca_pem, identity, trust).map(|tls| Self(Arc::new(tls))).map_err(refused)
    }
}

/// Where a server listens and what it allows. Times in milliseconds, sizes in bytes.
#[pyclass(frozen, module = "intermediate_server._engine")]
pub(crate) struct ListenConfig(pub(crate) ztna_engine::ListenConfig);

#[pymethods]
impl ListenConfig {
    #[new]
    #[pyo3(signature = (
        *, bind, tls, token_key, reset_key, alpn=vec![ALPN.to_vec()], retry=true,
        retry_token_lifetime_ms=15_000, idle_timeout_ms=30_000, handshake_timeout_ms=10_000,
        max_connections=20_000, max_half_open=1_024, handshakes_per_source=100,
        handshake_burst_per_source=400, control_per_connection=64, cid_lifetime_ms=300_000,
        initial_mtu=1_350, send_queue_bytes=262_144, receive_queue_bytes=1_048_576,
        socket_buffer_bytes=4_194_304, inner_addresses="auto", inner_pool_v4="100.64.0.0/10",
        inner_pool_v6="fd64:7a74:6e61::/64", inner_per_agent=4, lease_grace_ms=300_000,
        known_addresses=vec![], known_in_part=false,
        icmp_source_v4="192.0.0.8", icmp_source_v6="fd64:7a74:6e61:ffff::1", icmp_per_second=100,
        stall_timeout_ms=3_000,
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        bind: Vec<(String, u16)>,
        tls: &ServerTls,
        token_key: Vec<u8>,
        reset_key: Vec<u8>,
        alpn: Vec<Vec<u8>>,
        retry: bool,
        retry_token_lifetime_ms: u64,
        idle_timeout_ms: u64,
        handshake_timeout_ms: u64,
        max_connections: usize,
        max_half_open: usize,
        handshakes_per_source: u32,
        handshake_burst_per_source: u32,
        control_per_connection: u32,
        cid_lifetime_ms: u64,
        initial_mtu: u16,
        send_queue_bytes: usize,
        receive_queue_bytes: usize,
        socket_buffer_bytes: usize,
        inner_addresses: &str,
        inner_pool_v4: &str,
        inner_pool_v6: &str,
        inner_per_agent: usize,
        lease_grace_ms: u64,
        known_addresses: Vec<(Vec<u8>, Vec<u8>)>,
        known_in_part: bool,
        icmp_source_v4: &str,
        icmp_source_v6: &str,
        icmp_per_second: u32,
        stall_timeout_ms: u64,
    ) -> PyResult<Self> {
        let translate = match inner_addresses {
            "auto" => true,
            "off" => false,
            other => {
                let text = format!("inner_addresses is auto or off, not {other:?}");
                return Err(EngineError::new_err(text));
            }
        };
        let relay = RelayConfig {
            translate,
            pool_v4: prefix(inner_pool_v4)?,
            pool_v6: prefix(inner_pool_v6)?,
            addresses_per_agent: inner_per_agent,
            known_addresses: known_addresses.iter().map(known).collect::<PyResult<_>>()?,
            known_in_part,
            lease_grace: Duration::from_millis(lease_grace_ms),
            icmp_source_v4: parsed(icmp_source_v4)?,
            icmp_source_v6: parsed(icmp_source_v6)?,
            icmp_per_second,
            stall_timeout: Duration::from_millis(stall_timeout_ms),
        };
        Ok(Self(ztna_engine::ListenConfig {
            bind: bind.iter().map(address).collect::<PyResult<_>>()?,
            tls: tls.0.clone(),
            token_key,
            reset_key,
            alpn,
            retry,
            retry_token_lifetime: Duration::from_millis(retry_token_lifetime_ms),
            idle_timeout: Duration::from_millis(idle_timeout_ms),
            handshake_timeout: Duration::from_millis(handshake_timeout_ms),
            max_connections,
            max_half_open,
            handshakes_per_source,
            handshake_burst_per_source,
            control_per_connection,
            cid_lifetime: Duration::from_millis(cid_lifetime_ms),
            initial_mtu,
            send_queue: send_queue_bytes,
            receive_queue: receive_queue_bytes,
            socket_buffer: socket_buffer_bytes,
            relay,
        }))
    }
}

/// The hash of a public key and a packed address.
fn known((key, address): &(Vec<u8>, Vec<u8>)) -> PyResult<([u8; 32], IpAddr)> {
    let key = key.as_slice().try_into();
    let v4 = || Some(<[u8; 4]>::try_from(address.as_slice()).ok()?.into());
    let v6 = || Some(<[u8; 16]>::try_from(address.as_slice()).ok()?.into());
    match (key, v4().or_else(v6)) {
        (Ok(key), Some(address)) => Ok((key, address)),
        _ => {
            Err(EngineError::new_err("a known address is a key hash of 32 bytes and 4 or 16 bytes"))
        }
    }
}

/// A `(host, port)` pair as a socket address. The zone of a link-local one is a number: `fe80::1%2`
/// (RFC 4007 section 11.2).
pub(crate) fn address((host, port): &(String, u16)) -> PyResult<SocketAddr> {
    if host.contains('%') {
        return parsed::<SocketAddrV6>(&format!("[{host}]:{port}")).map(Into::into);
    }
    Ok(SocketAddr::new(parsed::<IpAddr>(host)?, *port))
}

/// A socket address as a `(host, port)` pair, IPv4-mapped given as IPv4.
pub(crate) fn pair(address: SocketAddr) -> (String, u16) {
    (address.ip().to_canonical().to_string(), address.port())
}

pub(crate) fn parsed<T: FromStr>(text: &str) -> PyResult<T> {
    text.parse().map_err(|_| EngineError::new_err(format!("{text:?} is not an IP address")))
}

pub(crate) fn prefix<T: FromStr>(text: &str) -> PyResult<(T, u8)> {
    let wrong = || EngineError::new_err(format!("{text:?} is not a prefix such as 100.64.0.0/10"));
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    Ok((parsed(address)?, length.parse().map_err(|_| wrong())?))
}
