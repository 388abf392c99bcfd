//! The routes of packets from an agent's TUN interface.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytes::Bytes;

use crate::config::TunMap;

/// Default sources of relays' ICMP errors.
const ICMP_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const ICMP_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xFD64, 0x7A74, 0x6E61, 0xFFFF, 0, 0, 0, 1);

/// The service addresses of a TUN interface.
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

/// The route of one packet.
#[derive(Debug)]
pub struct Outbound<'a> {
    /// The service.
    pub service: &'a Bytes,
    /// The wrapper of its packets.
    pub wrapper: &'a Bytes,
    /// The packet's new destination.
    pub destination: Option<IpAddr>,
}

impl Route {
    fn new(service: Bytes) -> Self {
        Self { wrapper: crate::wrapper(&service).into(), service }
    }
}

impl TunRoutes {
    /// Routes by these maps; packets to any other address go to `default_service`. Of several maps
    /// with one address the last counts; of several with one destination the first gives the way
    /// back.
    pub fn new(maps: Vec<TunMap>, default_service: Option<Bytes>) -> Self {
        let mut routes = Self { default: default_service.map(Route::new), ..Self::default() };
        for map in maps {
            routes.back.entry(map.destination).or_insert(map.address);
            routes.maps.insert(map.address, (map.destination, Route::new(map.service)));
        }
        routes
    }

    /// The route of a packet to this destination from the interface.
    pub fn route(&self, destination: IpAddr) -> Option<Outbound<'_>> {
        let (replaced, route) = match self.maps.get(&destination) {
            Some((replaced, route)) => (Some(*replaced).filter(|r| *r != destination), route),
            None => (None, self.default.as_ref()?),
        };
        Some(Outbound { service: &route.service, wrapper: &route.wrapper, destination: replaced })
    }

    /// Whether packets of services may come from this address. With a default service any may come,
    /// since its addresses are unknown here.
    pub fn accepts(&self, source: IpAddr) -> bool {
        self.default.is_some() || self.back.contains_key(&source)
    }

    /// The service of packets with this destination, as the relay knows it.
    pub fn service(&self, destination: IpAddr) -> Option<&Bytes> {
        let (_, route) = self.maps.get(self.back.get(&destination)?)?;
        Some(&route.service)
    }

    /// The interface's address for this one, if another one is mapped to it.
    pub fn inbound(&self, source: IpAddr) -> Option<IpAddr> {
        self.back.get(&source).copied().filter(|address| *address != source)
    }

    /// The source to show for a packet from `source`; `about` is the address of which it reports an
    /// error.
    ///
    /// An error about a service, or from a relay's dummy address, gets the address it is about as
    /// source: the interface has a route for it, as strict reverse-path filters demand (RFC 3704
    /// section 2.2).
    pub fn seen_from(&self, source: IpAddr, about: Option<IpAddr>) -> IpAddr {
        let service = |address| self.back.contains_key(&address);
        let sender = match about {
            Some(about) if !service(source) && (service(about) || dummy(source)) => about,
            _ => source,
        };
        self.inbound(sender).unwrap_or(sender)
    }
}

/// Whether this is one of the addresses that relays send errors from by default (RFC 7600).
fn dummy(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => source == ICMP_SOURCE_V4,
        IpAddr::V6(source) => source == ICMP_SOURCE_V6,
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
        assert_eq!(routes.service(address("198.18.0.1")).unwrap(), "web");
        assert!(routes.service(address("10.100.0.2")).is_none());
        assert_eq!(routes.inbound(address("198.18.0.9")), None);
        let seen = |from: &str, about: Option<&str>| {
            routes.seen_from(address(from), about.map(address)).to_string()
        };
        assert_eq!(seen("198.18.0.1", None), "10.100.0.2");
        assert_eq!(seen("198.18.0.9", Some("198.18.0.9")), "198.18.0.9");
        assert_eq!(seen("192.0.0.8", Some("198.18.0.1")), "10.100.0.2", "as it was written");
        assert_eq!(seen("10.0.0.1", Some("198.18.0.9")), "198.18.0.9", "a router behind it");
        assert!(routes.accepts(address("198.18.0.9")));
        assert!(!routes.accepts(address("10.100.0.2")), "only seen on the inside");
    }

    #[test]
    fn a_default_service_takes_all_other_addresses() {
        let routes = TunRoutes::new(Vec::new(), Some(Bytes::from_static(b"all")));
        assert_eq!(routes.route(address("fd00::1")).unwrap().service, "all");
        assert!(routes.accepts(address("192.0.2.1")));
        let about = Some(address("192.0.2.1"));
        assert_eq!(routes.seen_from(address("192.0.0.8"), about), address("192.0.2.1"));
        let hop = address("198.51.100.1");
        assert_eq!(
            routes.seen_from(hop, about),
            hop,
            "traceroute sees the hops of the default service"
        );
    }
}
