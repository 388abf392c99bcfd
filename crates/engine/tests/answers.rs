//! What senders are told about packets that go nowhere.

mod oracle;
mod site;

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use oracle::packets::{Transport, build, verdict};
use site::{Ends, Site};
use ztna_engine::Command;

/// A source and a destination of each family.
fn families() -> [(IpAddr, IpAddr); 2] {
    let v6 = |last| IpAddr::from([0xFD64, 0x7A74, 0x6E61, 0, 0, 0, 0, last]);
    [([100, 64, 8, 7].into(), [10, 0, 0, 53].into()), (v6(7), v6(53))]
}

fn packet((source, destination): (IpAddr, IpAddr), size: usize) -> Vec<u8> {
    build(source, destination, 0, &Transport::Udp(vec![b'x'; size]))
}

/// Type, code and the word after the checksum of an ICMP message that answers `packet`.
fn answer(site: &mut Site, to: Ends, packet: &[u8]) -> (u8, u8, u32) {
    let answers = site.received(to);
    let [answer] = answers.as_slice() else { panic!("{answers:?}") };
    let verdict = verdict(answer);
    assert!(verdict.header != Some(false) && verdict.transport == Some(true), "{verdict:?}");
    let at = if answer[0] >> 4 == 6 { 40 } else { 20 };
    let message = &answer[at..];
    assert!(packet.starts_with(&message[8..]), "it quotes another packet");
    (message[0], message[1], u32::from_be_bytes(*message[4..].first_chunk().unwrap()))
}

#[test]
fn what_is_larger_than_the_connector_takes_is_answered_with_its_limit() {
    let mut site = Site::new(|_| {});
    let agent = site.connect();
    let connector = site.connect_taking(1200);
    site.route("web", agent, connector);
    for (addresses, kind) in families().into_iter().zip([(3, 4), (2, 0)]) {
        let large = packet(addresses, 1200);
        site.send(agent, large.clone());
        let (kind_got, code, limit) = answer(&mut site, agent, &large);
        assert_eq!((kind_got, code), kind);
        let headers = if addresses.0.is_ipv6() { 48 } else { 28 };
        let fits = packet(addresses, limit as usize - headers);
        assert!((1100..1200).contains(&limit), "{limit}");
        site.send(agent, fits.clone());
        let got = site.received(connector);
        assert_eq!(got.iter().map(|p| p.len()).collect::<Vec<_>>(), [fits.len()]);
    }
    assert_eq!(site.relay.dropped("too_large"), 2);
}

#[test]
fn an_agent_is_told_why_its_packet_went_nowhere() {
    let mut site = Site::new(|_| {});
    let [agent, connector] = [(); 2].map(|()| site.connect());
    for (addresses, kind) in families().into_iter().zip([(3, 13, 0), (1, 1, 0)]) {
        let refused = packet(addresses, 4);
        site.send(agent, refused.clone());
        assert_eq!(answer(&mut site, agent, &refused), kind, "registered for nothing");
    }
    site.route("web", agent, connector);
    site.relay.apply(vec![Command::SetService { service: "web".into(), targets: vec![] }]);
    for (addresses, kind) in families().into_iter().zip([(3, 1, 0), (1, 3, 0)]) {
        let lost = packet(addresses, 4);
        site.send(agent, lost.clone());
        assert_eq!(answer(&mut site, agent, &lost), kind, "no connector");
    }
}

#[test]
fn a_connector_is_told_why_its_packet_went_nowhere() {
    let mut site = Site::new(|_| {});
    let [agent, connector, other] = [(); 3].map(|()| site.connect());
    site.route("web", agent, connector);
    site.route("dns", connector, other);
    let kinds = [[(3, 1, 0), (3, 13, 0)], [(1, 3, 0), (1, 1, 0)]];
    for ((inner, backend), [unreachable, prohibited]) in families().into_iter().zip(kinds) {
        let late = packet((backend, inner), 4);
        site.send(other, late.clone());
        assert_eq!(answer(&mut site, other, &late), unreachable, "no agent has that address");
        site.send(agent, packet((inner, backend), 4));
        assert_eq!(site.received(connector).len(), 1);
        site.send(other, late.clone());
        assert_eq!(answer(&mut site, other, &late), prohibited, "the agent is not of its service");
        site.send(connector, late.clone());
        assert_eq!(site.received(agent), [late]);
    }
    assert_eq!((site.relay.dropped("no_agent"), site.relay.dropped("not_allowed")), (2, 2));
}

#[test]
fn no_answers_a_second_means_none() {
    for (rate, answers) in [(0, 0), (2, 2)] {
        let mut site = Site::new(|config| config.relay.icmp_per_second = rate);
        let stranger = site.connect();
        let begun = std::time::Instant::now();
        for _ in 0..10 {
            site.send(stranger, packet(families()[0], 4));
        }
        site.relay.until(|_| site.relay.dropped("unregistered") == 10);
        let sent = site.relay.engine.counters().icmp_sent.get();
        let slow = u64::from(rate) * begun.elapsed().as_secs().saturating_add(1);
        assert!((answers..=answers + slow).contains(&sent) && (rate > 0 || sent == 0), "{sent}");
    }
}

#[test]
fn a_stray_probe_uses_up_no_stateless_reset() {
    let site = Site::new(|_| {});
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // A second reset would not be sent within 20 ms of the first.
    stranger.send_to(&[0x5A; 26], site.address).unwrap();
    stranger.send_to(&[0x5A; 100], site.address).unwrap();
    let size = stranger.recv(&mut [0; 1500]).unwrap();
    assert!((41..100).contains(&size), "{size} bytes answer the larger one");
    assert_eq!(site.relay.engine.counters().udp_dropped_too_small.get(), 1);
}
