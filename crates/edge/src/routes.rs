//! Where the packets of an agent's TUN interface go.

use std::{collections::HashMap, net::IpAddr};

use bytes::Bytes;

use crate::config::TunMap;

/// The virtual addresses of a TUN interface.
#[derive(Debug, Default)]
pub struct TunRoutes {
    maps: HashMap<IpAddr, (IpAddr, Route)>,
    back: HashMap<IpAddr, IpAddr>,
    default: Option<Route>,
}

#[derive(Clone, Debug)]
struct Route {
    service: Bytes,
    wrapper: Bytes,
}

/// Where one packet goes.
#[derive(Debug)]
pub struct Outbound<'a> {
    /// The service.
    pub service: &'a Bytes,
    /// What its packets are wrapped in.
    pub wrapper: &'a Bytes,
    /// The destination it gets in place of its own.
    pub destination: Option<IpAddr>,
}

impl Route {
    fn new(service: Bytes) -> Self {
        Self { wrapper: crate::wrapper(&service).into(), service }
    }
}

impl TunRoutes {
    /// Routes by these maps; packets to any other address go to `default_service`. Of maps with the
    /// same address the last counts, of those with the same destination the first finds back.
    pub fn new(maps: Vec<TunMap>, default_service: Option<Bytes>) -> Self {
        let mut routes = Self { default: default_service.map(Route::new), ..Self::default() };
        for map in maps {
            routes.back.entry(map.destination).or_insert(map.address);
            routes.maps.insert(map.address, (map.destination, Route::new(map.service)));
        }
        routes
    }

    /// The way of a packet that the interface has for this destination.
    pub fn route(&self, destination: IpAddr) -> Option<Outbound<'_>> {
        let (replaced, route) = match self.maps.get(&destination) {
            Some((replaced, route)) => (Some(*replaced).filter(|r| *r != destination), route),
            None => (None, self.default.as_ref()?),
        };
        Some(Outbound { service: &route.service, wrapper: &route.wrapper, destination: replaced })
    }

    /// Whether packets of services may come from this address. With a default service that is any:
    /// which addresses it has is not known here.
    pub fn accepts(&self, source: IpAddr) -> bool {
        self.default.is_some() || self.back.contains_key(&source)
    }

    /// The address that a packet to the interface must be seen to come from, where it differs.
    pub fn inbound(&self, source: IpAddr) -> Option<IpAddr> {
        self.back.get(&source).copied().filter(|address| *address != source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_leads_to_its_service_and_back() {
        let map = |own: &str, service: &'static str, to: &str| TunMap {
            address: address(own),
            service: Bytes::from_static(service.as_bytes()),
            destination: address(to),
        };
        let maps = vec![
            map("10.100.0.2", "web", "198.18.0.1"),
            map("10.100.0.3", "web", "198.18.0.1"),
            map("198.18.0.9", "db", "198.18.0.9"),
        ];
        let routes = TunRoutes::new(maps, None);
        let way = routes.route(address("10.100.0.3")).unwrap();
        assert_eq!((&way.service[..], way.destination), (&b"web"[..], Some(address("198.18.0.1"))));
        assert_eq!(&way.wrapper[..], b"\x2F\x03web");
        assert_eq!(routes.route(address("198.18.0.9")).unwrap().destination, None);
        assert!(routes.route(address("10.100.0.4")).is_none());
        assert_eq!(routes.inbound(address("198.18.0.1")), Some(address("10.100.0.2")));
        assert_eq!(routes.inbound(address("198.18.0.9")), None);
        assert!(routes.accepts(address("198.18.0.9")));
        assert!(!routes.accepts(address("10.100.0.2")), "only seen on the inside");
    }

    #[test]
    fn a_default_service_takes_all_other_addresses() {
        let routes = TunRoutes::new(Vec::new(), Some(Bytes::from_static(b"all")));
        assert_eq!(routes.route(address("fd00::1")).unwrap().service, "all");
        assert!(routes.accepts(address("192.0.2.1")));
    }
}
