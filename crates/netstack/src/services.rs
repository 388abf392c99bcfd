//! The services of a connector, found by the destination of a packet.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use crate::config::{Backend, Transport};

/// The services of a connector.
#[derive(Clone, Debug, Default)]
pub struct Services(pub Vec<Backend>);

impl Services {
    /// The service of a packet to `destination`.
    ///
    /// It is found by its address; a single service also takes other destinations, from agents
    /// without service addresses. Transport and port have no say: the relay has let the agent
    /// through to one service, and by them it could choose another.
    pub fn select(&self, transport: Transport, destination: SocketAddr) -> Option<&Backend> {
        let service = self.named(destination.ip())?;
        // One id may stand for a TCP and a UDP backend.
        self.0.iter().find(|b| b.service == service && b.transport == transport)
    }

    /// Whether an echo request to this address is for one of the services.
    pub fn echoes(&self, destination: IpAddr) -> bool {
        self.named(destination).is_some()
    }

    fn named(&self, destination: IpAddr) -> Option<&Bytes> {
        let all = &self.0;
        if let Some(backend) = all.iter().find(|b| b.service_addresses.contains(&destination)) {
            return Some(&backend.service);
        }
        let first = &all.first()?.service;
        all.iter().all(|b| b.service == first).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(id: &'static str, transport: Transport, port: u16, own: &[&str]) -> Backend {
        Backend {
            service: Bytes::from_static(id.as_bytes()),
            transport,
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
            service_addresses: own.iter().map(|a| a.parse().unwrap()).collect(),
            proxy_protocol: false,
        }
    }

    fn chosen(services: &[Backend], transport: Transport, to: &str) -> Option<Bytes> {
        let services = Services(services.to_vec());
        services.select(transport, to.parse().unwrap()).map(|b| b.service.clone())
    }

    #[test]
    fn a_service_address_names_the_service() {
        let all = [
            backend("web", Transport::Tcp, 80, &["198.18.0.1"]),
            backend("db", Transport::Tcp, 5432, &["198.18.0.2", "fd00::2"]),
            backend("dns", Transport::Tcp, 53, &["198.18.0.3"]),
            backend("dns", Transport::Udp, 53, &["198.18.0.3"]),
        ];
        assert_eq!(chosen(&all, Transport::Tcp, "198.18.0.2:1").unwrap(), "db");
        assert_eq!(chosen(&all, Transport::Tcp, "[fd00::2]:1").unwrap(), "db");
        assert_eq!(chosen(&all, Transport::Udp, "198.18.0.3:53").unwrap(), "dns");
        assert_eq!(chosen(&all, Transport::Udp, "198.18.0.1:80"), None, "web speaks no UDP");
        assert_eq!(chosen(&all, Transport::Tcp, "10.0.0.1:5432"), None, "not by its port");
        assert_eq!(chosen(&all, Transport::Udp, "10.0.0.1:53"), None, "not by its transport");
        assert!(!Services(all.to_vec()).echoes("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn the_only_service_takes_every_address_but_no_other_transport() {
        let web = backend("web", Transport::Tcp, 80, &["198.18.0.1"]);
        assert_eq!(
            chosen(std::slice::from_ref(&web), Transport::Tcp, "10.9.8.7:6").unwrap(),
            "web"
        );
        assert_eq!(chosen(std::slice::from_ref(&web), Transport::Udp, "10.9.8.7:6"), None);
        let both = [web, backend("web", Transport::Udp, 443, &["198.18.0.1"])];
        assert_eq!(chosen(&both, Transport::Udp, "10.9.8.7:6").unwrap(), "web");
        assert!(Services(both.to_vec()).echoes("10.9.8.7".parse().unwrap()));
    }
}
