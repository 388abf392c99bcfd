//! A panic in noq's driver of one connection ends that connection, and nothing else.

mod oracle;
mod site;

use bytes::Bytes;
use oracle::packets::{Transport, build};
use site::{Ends, Site};
use ztna_engine::{CloseCause, Command, ConnId, Event, Target};

fn packet() -> Vec<u8> {
    let (source, destination) = ([100, 64, 0, 1].into(), [10, 0, 0, 53].into());
    build(source, destination, 0, &Transport::Udp(b"ping".to_vec()))
}

/// A payload that panics when it is let go. noq does that while it builds the packet, under the
/// lock of the connection.
struct Bomb;

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        b"bomb"
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("injected by a test");
    }
}

fn bomb(conn: ConnId) -> Command {
    Command::SendDatagram { conn, data: Bytes::from_owner(Bomb) }
}

fn wait_panicked(site: &mut Site, victim: Ends) {
    let cause = site.relay.wait(|event| match event {
        Event::Closed { conn, cause, .. } if *conn == victim.relay => Some(*cause),
        _ => None,
    });
    assert_eq!(cause, CloseCause::Panic);
    assert_eq!(site.relay.engine.counters().connection_panics.get(), 1);
}

#[test]
fn a_panic_in_a_driver_ends_its_connection_only() {
    let mut site = Site::new(|_| {});
    let [agent, connector, victim] = [(); 3].map(|()| site.connect());
    site.route("web", agent, connector);
    site.relay.apply(vec![bomb(victim.relay)]);
    // Whoever asks the broken connection for something lives on.
    site.relay.until(|relay| {
        let inspect = Command::Inspect { conn: victim.relay };
        let send = Command::SendDatagram { conn: victim.relay, data: Bytes::from_static(b"x") };
        site.relay.apply(vec![inspect, send]);
        relay.counters().connection_panics.get() == 1
    });
    wait_panicked(&mut site, victim);
    let ticks = site.relay.engine.counters().ticks.get();
    site.relay.until(|relay| relay.counters().ticks.get() > ticks + 1);
    site.send(agent, packet());
    assert_eq!(site.received(connector), [packet()]);
    assert!(site.relay.closed().is_empty());
    assert_eq!(site.relay.engine.counters().connections.get(), 2);
    // Its peer learns it when it asks: its packets belong to no connection any more.
    let gone = |event: &Event| match event {
        Event::Closed { conn, cause, .. } if *conn == victim.client => Some(*cause),
        _ => None,
    };
    assert_eq!(site.clients.wait(gone), CloseCause::Reset);
}

#[test]
fn who_sends_to_a_connection_that_panicked_lives_on() {
    let mut site = Site::new(|_| {});
    let [agent, connector, victim] = [(); 3].map(|()| site.connect());
    site.route("web", agent, victim);
    site.relay.apply(vec![bomb(victim.relay)]);
    site.relay.until(|relay| {
        site.send(agent, packet());
        relay.counters().connection_panics.get() == 1
    });
    wait_panicked(&mut site, victim);
    let target = Target { conn: connector.relay, rank: 0, key: 0 };
    let before = site.relay.engine.counters().relayed_to_connector_packets.get();
    site.relay.apply(vec![Command::SetService { service: "web".into(), targets: vec![target] }]);
    site.relay.until(|relay| {
        site.send(agent, packet());
        relay.counters().relayed_to_connector_packets.get() > before
    });
    assert!(site.received(connector).contains(&packet().into()));
    assert!(site.relay.closed().is_empty());
}

#[test]
fn a_panic_while_a_connection_is_made_is_told_to_whoever_waits_for_it() {
    let mut site = Site::new(|_| {});
    // More than the limit of noq's queue can be made of.
    let request = site.begin(|config| config.send_queue = usize::MAX);
    let failed = |event: &Event| match event {
        Event::ConnectFailed { request, failure } => Some((*request, failure.reason.clone())),
        _ => None,
    };
    assert_eq!(site.clients.wait(failed), (request, "internal error".into()));
    assert_eq!(site.clients.engine.counters().connection_panics.get(), 1);
    site.connect();
}
