//! Which of a connector's services a packet is for.

use std::net::SocketAddr;

use crate::config::{Backend, Transport};

/// The services of a connector.
#[derive(Clone, Debug, Default)]
pub struct Services(pub Vec<Backend>);

impl Services {
    /// The service of a packet to `destination`.
    ///
    /// The one whose virtual address it is; else the only one there is; else the only one that
    /// speaks this transport, by the port of its backend where several do. `None`: there is no
    /// saying.
    pub fn select(&self, transport: Transport, destination: SocketAddr) -> Option<&Backend> {
        let speaks = |backend: &&Backend| backend.transport == transport;
        let all = &self.0;
        if let Some(named) = all.iter().find(|b| b.virtuals.contains(&destination.ip())) {
            // One id may stand for a TCP and a UDP backend.
            return all.iter().filter(speaks).find(|b| b.service == named.service);
        }
        only(all.iter()).filter(speaks).or_else(|| only(all.iter().filter(speaks))).or_else(|| {
            let port = destination.port();
            let serves = |b: &&Backend| b.addresses.iter().any(|a| a.port() == port);
            only(all.iter().filter(speaks).filter(serves))
        })
    }

    /// Whether an echo request to this address is for one of the services.
    pub fn echoes(&self, destination: std::net::IpAddr) -> bool {
        self.0.len() == 1 || self.0.iter().any(|b| b.virtuals.contains(&destination))
    }
}

fn only<'a>(mut found: impl Iterator<Item = &'a Backend>) -> Option<&'a Backend> {
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn backend(id: &'static str, transport: Transport, port: u16, own: &[&str]) -> Backend {
        Backend {
            service: Bytes::from_static(id.as_bytes()),
            transport,
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
            virtuals: own.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn chosen(services: &[Backend], transport: Transport, to: &str) -> Option<Bytes> {
        let services = Services(services.to_vec());
        services.select(transport, to.parse().unwrap()).map(|b| b.service.clone())
    }

    #[test]
    fn a_virtual_address_names_the_service() {
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
        assert_eq!(chosen(&all, Transport::Tcp, "10.0.0.1:5432").unwrap(), "db", "by its port");
        assert_eq!(chosen(&all, Transport::Tcp, "10.0.0.1:22"), None);
        assert_eq!(chosen(&all, Transport::Udp, "10.0.0.1:99").unwrap(), "dns", "the only one");
    }

    #[test]
    fn the_only_service_takes_every_address_but_no_other_transport() {
        let all = [backend("web", Transport::Tcp, 80, &["198.18.0.1"])];
        assert_eq!(chosen(&all, Transport::Tcp, "10.9.8.7:6").unwrap(), "web");
        assert_eq!(chosen(&all, Transport::Udp, "10.9.8.7:6"), None);
    }
}
