//! The configuration of tunnels, read from Python's form.

use std::{
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd},
};

use bytes::Bytes;
use pyo3::prelude::*;
use ztna_engine::{pool::Pool, service_address::ServiceAddresses, tunnel};

use crate::{
    EngineError,
    config::{address, parsed, prefix},
};

/// A local socket whose traffic goes to a service.
#[pyclass(frozen, eq, get_all, from_py_object, module = "intermediate_server._engine")]
#[derive(Clone, PartialEq)]
pub(crate) struct Forward {
    protocol: String,
    bind: (String, u16),
    service: Vec<u8>,
    destination: (String, u16),
}

#[pymethods]
impl Forward {
    #[new]
    #[pyo3(signature = (*, protocol, bind, service, destination))]
    fn new(
        protocol: String,
        bind: (String, u16),
        service: Vec<u8>,
        destination: (String, u16),
    ) -> Self {
        Self { protocol, bind, service, destination }
    }
}

impl Forward {
    pub(crate) fn read(&self) -> PyResult<tunnel::Forward> {
        Ok(tunnel::Forward {
            transport: transport(&self.protocol)?,
            bind: address(&self.bind)?,
            service: service(&self.service)?,
            destination: address(&self.destination)?,
        })
    }
}

/// An application that a connector serves: no other address is ever reached.
#[pyclass(frozen, eq, from_py_object, module = "intermediate_server._engine")]
#[derive(Clone, PartialEq)]
pub(crate) struct Backend {
    #[pyo3(get)]
    service: Vec<u8>,
    #[pyo3(get)]
    protocol: String,
    #[pyo3(get)]
    addresses: Vec<(String, u16)>,
    #[pyo3(get)]
    service_addresses: Vec<String>,
    #[pyo3(get)]
    proxy_protocol: bool,
}

#[pymethods]
impl Backend {
    #[new]
    #[pyo3(signature = (*, service, protocol, addresses, service_addresses, proxy_protocol=false))]
    fn new(
        service: Vec<u8>,
        protocol: String,
        addresses: Vec<(String, u16)>,
        service_addresses: Vec<String>,
        proxy_protocol: bool,
    ) -> Self {
        Self { service, protocol, addresses, service_addresses, proxy_protocol }
    }
}

impl Backend {
    pub(crate) fn read(&self) -> PyResult<tunnel::Backend> {
        Ok(tunnel::Backend {
            service: service(&self.service)?,
            transport: transport(&self.protocol)?,
            addresses: self.addresses.iter().map(address).collect::<PyResult<_>>()?,
            service_addresses: self
                .service_addresses
                .iter()
                .map(|v| parsed(v))
                .collect::<PyResult<_>>()?,
            proxy_protocol: self.proxy_protocol,
        })
    }
}

/// A service address of a TUN interface.
#[pyclass(frozen, eq, get_all, from_py_object, module = "intermediate_server._engine")]
#[derive(Clone, PartialEq)]
pub(crate) struct TunMap {
    address: String,
    service: Vec<u8>,
    destination: String,
}

#[pymethods]
impl TunMap {
    #[new]
    #[pyo3(signature = (*, address, service, destination))]
    fn new(address: String, service: Vec<u8>, destination: String) -> Self {
        Self { address, service, destination }
    }
}

impl TunMap {
    fn read(&self) -> PyResult<tunnel::TunMap> {
        let map = tunnel::TunMap {
            address: parsed(&self.address)?,
            service: service(&self.service)?,
            destination: parsed::<IpAddr>(&self.destination)?,
        };
        if map.address.is_ipv4() != map.destination.is_ipv4() {
            let text =
                format!("{} and {} are not of one address family", map.address, map.destination);
            return Err(EngineError::new_err(text));
        }
        Ok(map)
    }
}

/// The pools of a relay that has no others.
const POOLS: [&str; 2] = ["100.64.0.0/10", "fd64:7a74:6e61::/64"];

/// The routes of a TUN tunnel, by its arguments.
pub(crate) fn routing(
    maps: &[TunMap],
    default_service: Option<&Vec<u8>>,
    own: Option<&[String]>,
    agents: Option<&[String]>,
    source: Option<&str>,
) -> PyResult<tunnel::TunRouting> {
    if let Some(own) = own {
        if !maps.is_empty() || default_service.is_some() {
            let text =
                "a TUN tunnel with addresses of its own has neither maps nor a default service";
            return Err(EngineError::new_err(text));
        }
        let own = own.iter().map(|address| parsed(address)).collect::<PyResult<_>>()?;
        let network =
            |text: &str| prefix(text).map(|(address, length)| tunnel::Network(address, length));
        let agents = match agents {
            Some(agents) => agents.iter().map(|text| network(text)).collect::<PyResult<_>>()?,
            None => POOLS.into_iter().map(network).collect::<PyResult<_>>()?,
        };
        return Ok(tunnel::TunRouting::Own { own, agents });
    }
    Ok(tunnel::TunRouting::Services {
        source: source.map(parsed).transpose()?,
        maps: maps.iter().map(TunMap::read).collect::<PyResult<_>>()?,
        default_service: default_service.map(|id| service(id)).transpose()?,
    })
}

/// A duplicate of `fd`, so that the caller may close its own.
#[allow(unsafe_code)]
pub(crate) fn duplicate(fd: i32) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(EngineError::new_err(format!("{fd} is not a file descriptor")));
    }
    // SAFETY: it is borrowed for this call only, and duplicating a descriptor that is not open
    // fails with EBADF. Python hands descriptors out as numbers: there is no safe way to take one.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map_err(|e| EngineError::new_err(format!("descriptor {fd}: {e}")))
}

pub(crate) fn service(id: &[u8]) -> PyResult<Bytes> {
    if id.len() > 255 {
        return Err(EngineError::new_err("a service id has at most 255 bytes"));
    }
    Ok(Bytes::copy_from_slice(id))
}

fn transport(protocol: &str) -> PyResult<tunnel::Transport> {
    match protocol {
        "tcp" => Ok(tunnel::Transport::Tcp),
        "udp" => Ok(tunnel::Transport::Udp),
        other => Err(EngineError::new_err(format!("protocol is tcp or udp, not {other:?}"))),
    }
}

/// The addresses of a service: the inner destinations of its packets.
#[pyfunction]
pub(crate) fn service_addresses(service: &[u8]) -> (String, String) {
    let ServiceAddresses { v4, v6 } = ServiceAddresses::of(service);
    (v4.to_string(), v6.to_string())
}

/// The inner addresses that a relay with these pools leases to a public key while no other holds
/// them.
#[pyfunction]
#[pyo3(signature = (key_hash, pool_v4="100.64.0.0/10", pool_v6="fd64:7a74:6e61::/64"))]
pub(crate) fn inner_address(
    key_hash: &[u8],
    pool_v4: &str,
    pool_v6: &str,
) -> PyResult<(String, String)> {
    let hash: [u8; 32] =
        key_hash.try_into().map_err(|_| EngineError::new_err("a key hash has 32 bytes"))?;
    let first = |(network, length): (IpAddr, u8)| {
        Pool::new(network, length, &[])
            .and_then(|pool| pool.first(hash).ok_or_else(|| format!("{network} has no address")))
            .map(|address| address.to_string())
            .map_err(EngineError::new_err)
    };
    Ok((first(prefix(pool_v4)?)?, first(prefix(pool_v6)?)?))
}
