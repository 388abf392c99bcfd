//! A control plane that does not look: what peers do meanwhile is bounded, and nothing that lasts is
//! lost.

mod site;

use site::Site;
use ztna_engine::{Command, Event};

#[test]
fn addresses_that_change_while_nobody_looks_do_not_pile_up() {
    const CAPACITY: usize = 8;
    let mut site = Site::with_outbox(CAPACITY, |_| {});
    let ends = [(); 3].map(|()| site.connect());
    // Registrations fill the outbox to its limit, and nobody takes them.
    let mut registration = vec![0x10, 3];
    registration.extend(b"web");
    site.relay.until(|relay| {
        site.send(ends[0], registration.clone());
        relay.counters().outbox_depth.get() == CAPACITY as u64
    });
    for _ in 0..3 {
        for moved in ends {
            site.clients.engine.apply(vec![Command::Rebind { conn: moved.client }]).unwrap();
            // It is heard from its new address, and the relay has had a look at every connection.
            site.send(moved, registration.clone());
        }
        let ticks = site.relay.engine.counters().ticks.get();
        site.relay.until(|relay| relay.counters().ticks.get() >= ticks + 3);
    }
    assert_eq!(site.relay.engine.counters().outbox_high_water.get(), CAPACITY as u64);
    // Each is told once there is room, with the address it has now.
    for moved in ends {
        site.relay.wait(|event| match event {
            Event::AddressChanged { conn, remote } if *conn == moved.relay => Some(*remote),
            _ => None,
        });
    }
}
