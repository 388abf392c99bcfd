//! Settings: certificates and the options of a listener.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    str::FromStr,
    sync::Arc,
};

use pyo3::{prelude::*, types::PyDict};
use ztna_engine::tls::{self, ClientAuth, ServerTrust};

use crate::{EngineError, refused, settings, tunnel::duplicate};

/// Certificate, key and client trust of a listener, parsed and checked. Raises ``EngineError``.
#[pyclass(frozen, module = "intermediate_server._engine")]
pub(crate) struct ServerTls(pub(crate) Arc<tls::ServerTls>);

#[pymethods]
impl ServerTls {
    #[new]
    #[pyo3(signature = (
        *, certificate_pem, key_pem, client_ca_pem=None, client_auth="required", join_chain_pem=None
    ))]
    fn new(
        certificate_pem: &[u8],
        key_pem: &[u8],
        client_ca_pem: Option<&[u8]>,
        client_auth: &str,
        join_chain_pem: Option<&[u8]>,
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
        tls::ServerTls::new(certificate_pem, key_pem, client_ca_pem, auth, join_chain_pem)
            .map(|tls| Self(Arc::new(tls)))
            .map_err(refused)
    }

    /// Warnings about certificate and key, one sentence each.
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
        *, ca_pem=None, certificate_pem=None, key_pem=None, verify=true, verify_name=true, pin=None
    ))]
    fn new(
        ca_pem: Option<&[u8]>,
        certificate_pem: Option<&[u8]>,
        key_pem: Option<&[u8]>,
        verify: bool,
        verify_name: bool,
        pin: Option<&[u8]>,
    ) -> PyResult<Self> {
        let identity = match (certificate_pem, key_pem) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                let text = "a client certificate needs its key and a key its certificate";
                return Err(EngineError::new_err(text));
            }
        };
        let trust = match (pin, verify, verify_name) {
            (None, false, _) => ServerTrust::Anyone,
            (None, true, false) => ServerTrust::Chain,
            (None, true, true) => ServerTrust::ChainAndName,
            (Some(pin), true, true) if ca_pem.is_none() => {
                let pin = pin.try_into();
                ServerTrust::Pinned(pin.map_err(|_| EngineError::new_err("a pin has 32 bytes"))?)
            }
            _ => {
                let text = "a pin stands for the CA, and the name is verified beside it";
                return Err(EngineError::new_err(text));
            }
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
        *, bind, tls, token_key, reset_key, sockets=vec![], known_addresses=vec![], **settings
    ))]
    fn new(
        bind: Vec<(String, u16)>,
        tls: &ServerTls,
        token_key: Vec<u8>,
        reset_key: Vec<u8>,
        sockets: Vec<i32>,
        known_addresses: Vec<(Vec<u8>, Vec<u8>)>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let bind = bind.iter().map(address).collect::<PyResult<_>>()?;
        let mut config = ztna_engine::ListenConfig::new(bind, tls.0.clone(), token_key, reset_key);
        config.sockets =
            sockets.iter().map(|fd| duplicate(*fd).map(Arc::new)).collect::<PyResult<_>>()?;
        config.relay.known_addresses =
            known_addresses.iter().map(known).collect::<PyResult<_>>()?;
        settings::set(&mut config, ztna_engine::ListenConfig::SETTINGS, settings)?;
        Ok(Self(config))
    }

    /// The names of what can be set.
    #[staticmethod]
    fn names() -> Vec<&'static str> {
        ztna_engine::ListenConfig::SETTINGS.iter().map(|(name, _)| *name).collect()
    }

    /// The values to set, by name.
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        settings::shown(py, &self.0, ztna_engine::ListenConfig::SETTINGS)
    }
}

/// Bounds of a client's queue: a few datagrams, and what no path needs more of.
const MIN_QUEUE: usize = 16 * 1024;
const MAX_QUEUE: usize = 16 * 1024 * 1024;

/// Where and how a client connects. Times in milliseconds, sizes in bytes.
#[pyclass(frozen, module = "intermediate_server._engine")]
pub(crate) struct ConnectConfig(pub(crate) ztna_engine::ConnectConfig);

#[pymethods]
impl ConnectConfig {
    #[new]
    #[pyo3(signature = (*, remote, server_name, tls, bind=None, alpn=None, **settings))]
    fn new(
        remote: (String, u16),
        server_name: String,
        tls: &ClientTls,
        bind: Option<(String, u16)>,
        alpn: Option<Vec<Vec<u8>>>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let remote = address(&remote)?;
        let mut config = ztna_engine::ConnectConfig::new(remote, server_name, tls.0.clone());
        if let Some(bind) = bind {
            config.bind = address(&bind)?;
        }
        if let Some(alpn) = alpn {
            config.alpn = alpn;
        }
        settings::set(&mut config, ztna_engine::ConnectConfig::SETTINGS, settings)?;
        config.send_queue = config.send_queue.clamp(MIN_QUEUE, MAX_QUEUE);
        Ok(Self(config))
    }

    /// The values to set, by name.
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        settings::shown(py, &self.0, ztna_engine::ConnectConfig::SETTINGS)
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
