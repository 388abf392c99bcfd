//! What senders are told about packets that go nowhere.

mod site;

use std::{net::UdpSocket, time::Duration};

use site::{Site, packet};

const SOURCE: [u8; 4] = [100, 64, 0, 1];
const DESTINATION: [u8; 4] = [10, 0, 0, 53];

#[test]
fn no_answers_a_second_means_none() {
    for (rate, answers) in [(0, 0), (2, 2)] {
        let mut site = Site::new(|config| config.relay.icmp_per_second = rate);
        let stranger = site.connect();
        let begun = std::time::Instant::now();
        for _ in 0..10 {
            site.send(stranger, packet(SOURCE, DESTINATION, 4));
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
