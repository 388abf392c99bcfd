//! An agent that moves to another connection: the older one's packets go on as if nothing had happened.

mod oracle;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use oracle::udp::{answer, udp};
use ztna_engine::{
    ConnId, RelayConfig, Target,
    forward::{Forwarder, Verdict},
    nat::{self, Nat, NatConfig, Owner},
    packet::PacketInfo,
    routes::Routes,
};

const IDENTITY: Owner = Owner::Identity([7; 32]);
const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 53));

fn id(n: u32) -> ConnId {
    ConnId::new(n, 1)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nat() -> Nat {
    Nat::new(NatConfig {
        pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 10),
        pool_v6: ("fd64::".parse().unwrap(), 120),
        per_agent: 4,
        grace: Duration::from_secs(300),
        reserved: vec![],
        known: Arc::default(),
        known_in_part: false,
    })
    .unwrap()
}

#[test]
fn what_is_under_way_on_the_older_connection_comes_from_the_same_addresses() {
    let (mut nat, now) = (nat(), Instant::now());
    nat.attach(ConnId(1), IDENTITY, 1, now);
    let reserved = nat.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    nat.attach(ConnId(2), IDENTITY, 1, now);
    let late = now + nat::HAND_OVER - Duration::from_millis(1);
    for conn in [ConnId(1), ConnId(2)] {
        assert_eq!(nat.outbound(conn, ip("10.0.0.1"), late), Ok(reserved));
    }
    let first_of_it = nat.outbound(ConnId(1), ip("10.0.0.2"), late).unwrap();
    assert_eq!(nat.inbound(first_of_it), Some((ConnId(2), ip("10.0.0.2"))));
    assert_ne!(nat.outbound(ConnId(1), ip("10.0.0.1"), now + nat::HAND_OVER), Ok(reserved));
    nat.detach(ConnId(1), late);
    assert_eq!(nat.inbound(reserved), Some((ConnId(2), ip("10.0.0.1"))));
}

#[test]
fn what_an_older_connection_alone_may_have_goes_there_until_the_newer_may_have_it() {
    let now = Instant::now();
    let mut forwarder = Forwarder::new(
        &RelayConfig { translate: true, ..RelayConfig::default() },
        Routes::new(Arc::default()),
    )
    .unwrap();
    for (service, connector) in [("web", 8), ("dns", 9)] {
        let target = Target { conn: id(connector), rank: 0, key: u64::from(connector) };
        forwarder.routes.set_service(&service.into(), vec![target]);
    }
    let names = [Bytes::from("web"), Bytes::from("dns")];
    forwarder.set_agent(id(1), &names, Some([1; 32]), 1, now);
    let source = IpAddr::from([10, 9, 8, 7]);
    let sent = udp(source, BACKEND, 1);
    let Verdict::Deliver(sent) = forwarder.forward(id(1), &sent.into(), now) else {
        panic!("not relayed")
    };
    let seen = PacketInfo::parse(&sent.packet).unwrap().source;
    let to = |forwarder: &mut Forwarder, connector, now| {
        let answer = answer(BACKEND, seen, 1);
        match forwarder.forward(id(connector), &answer, now) {
            Verdict::Deliver(back) => Some(back.to),
            _ => None,
        }
    };
    forwarder.set_agent(id(2), &names[..1], Some([1; 32]), 1, now);
    assert_eq!(to(&mut forwarder, 8, now), Some(id(2)));
    assert_eq!(to(&mut forwarder, 9, now), Some(id(1)));
    assert_eq!(to(&mut forwarder, 9, now + nat::HAND_OVER), None);
    forwarder.set_agent(id(2), &names, Some([1; 32]), 1, now);
    assert_eq!(to(&mut forwarder, 9, now), Some(id(2)));
}
