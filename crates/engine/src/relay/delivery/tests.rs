use std::sync::Arc;

use super::*;
use crate::{
    boundary::{counters::ServiceBoard, outbox::Outbox},
    relay::routes::{Routes, Target},
};

/// A datagram that the relay panics at.
pub(super) const DEFECT: &[u8] = b"a defect";

fn config() -> RelayConfig {
    RelayConfig { translate: false, icmp_per_second: 1, ..RelayConfig::default() }
}

/// The smallest IPv4 packet of a protocol without ports.
fn packet(source: u8) -> Bytes {
    let mut packet = vec![0; 20];
    (packet[0], packet[3], packet[9]) = (0x45, 20, 253);
    packet[12..].copy_from_slice(&[100, 64, 0, source, 10, 0, 0, 1]);
    packet.into()
}

#[test]
fn a_panic_leaves_nothing_for_the_next_connections_batch() {
    let counters = Arc::<Counters>::default();
    let outbox = Arc::new(Outbox::new(16, counters.clone()).unwrap());
    let shared = Shared { counters, outbox, started: Instant::now() };
    let (board, mut peers) = (Arc::<ServiceBoard>::default(), Peers::new(Arc::default()));
    let routes = Routes::new(board.clone());
    let mut relay = Relay::new(config(), Forwarder::new(&config(), routes).unwrap());
    let conns: Vec<ConnId> = (0..4).map(|slot| ConnId::new(slot, 1)).collect();
    let services: [Bytes; 2] = [Bytes::from_static(b"first"), Bytes::from_static(b"second")];
    for (service, pair) in services.iter().zip(conns.chunks(2)) {
        let target = Target { conn: pair[1], rank: 0, key: 0 };
        relay.forwarder.routes.set_service(service, vec![target]);
        relay.forwarder.set_agent(pair[0], std::slice::from_ref(service), None, 1, Instant::now());
    }
    let defect = [packet(1), Bytes::from_static(DEFECT)];
    assert!(contained(|| relay.relay(&mut peers, &shared, conns[0], &defect)).is_none());
    // No target is alive, so a packet that is handed on is counted as a drop of its service.
    relay.relay(&mut peers, &shared, conns[2], &[packet(2)]);
    let board = board.lock().unwrap();
    let handed_on = services.map(|service| {
        let drops = board[&service].drops.snapshot();
        drops.iter().map(|(_, count)| count).sum::<u64>()
    });
    assert_eq!(handed_on, [0, 1]);
}
