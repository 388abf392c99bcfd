//! Random attachments, packets and time against a model that keeps one flat list of leases.

mod oracle;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use oracle::overlay_model::{Model, Op};
use proptest::prelude::*;
use ztna_engine::{
    event::ConnId,
    overlay::{LeaseError, MAX_RETAINED, Overlay, OverlayConfig, Owner, REST},
};

const GRACE: Duration = Duration::from_secs(300);

/// Pools small enough for collisions, evictions and exhaustion.
fn tight() -> OverlayConfig {
    OverlayConfig {
        pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 29),
        pool_v6: ("fd64::".parse().unwrap(), 120),
        per_agent: 3,
        grace: GRACE,
        reserved: vec!["192.0.0.8".parse().unwrap(), "100.64.0.3".parse().unwrap()],
    }
}

fn roomy() -> OverlayConfig {
    OverlayConfig { pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 10), per_agent: 4, ..tight() }
}

fn identity(seed: u8) -> Owner {
    let mut key = [seed.wrapping_mul(73); 32];
    key[15] = seed;
    key[31] = seed.wrapping_mul(151);
    Owner::Identity(key)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn source() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        6 => (0u8..8).prop_map(|last| IpAddr::V4(Ipv4Addr::new(100, 64, 0, last))),
        3 => (1u8..6).prop_map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))),
        2 => (0u16..4).prop_map(|last| format!("fd64::{last:x}").parse().unwrap()),
        1 => prop_oneof![Just("127.0.0.1"), Just("192.0.0.8"), Just("::ffff:10.0.0.1"), Just("fd65::7")].prop_map(ip),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u64..6, 0u8..5).prop_map(|(conn, who)| {
            Op::Attach(conn, if who < 2 { Owner::Anonymous } else { identity(who) })
        }),
        1 => (0u64..6).prop_map(Op::Detach),
        8 => (0u64..6, source()).prop_map(|(conn, source)| Op::Outbound(conn, source)),
        1 => (0u64..400).prop_map(|seconds| Op::Pass(Duration::from_secs(seconds))),
        1 => Just(Op::Expire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(250) })]

    #[test]
    fn the_overlay_does_what_the_model_does(ops in prop::collection::vec(op(), 1..120)) {
        let mut model = Model::new(tight());
        ops.iter().for_each(|op| model.step(op));
        model.finish();
    }

    #[test]
    fn an_identity_has_the_same_address_on_every_relay(key: [u8; 32], sources in prop::collection::vec(1u8..250, 1..4)) {
        let mut seen = Vec::new();
        for last in sources {
            let mut overlay = Overlay::new(roomy()).unwrap();
            let now = Instant::now();
            overlay.attach(ConnId(1), Owner::Identity(key), now);
            seen.push(overlay.outbound(ConnId(1), IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), now).unwrap());
        }
        prop_assert!(seen.iter().all(|address| address == &seen[0]));
    }
}

fn overlay() -> (Overlay, Instant) {
    (Overlay::new(roomy()).unwrap(), Instant::now())
}

#[test]
fn agents_with_the_same_inner_address_get_different_ones() {
    let (mut overlay, now) = overlay();
    let source = ip("100.64.0.1");
    let mut seen = std::collections::HashSet::new();
    for conn in (0..20).map(ConnId) {
        overlay.attach(conn, Owner::Anonymous, now);
        let leased = overlay.outbound(conn, source, now).unwrap();
        assert!(seen.insert(leased));
        assert_eq!(overlay.inbound(leased), Some((conn, source)));
    }
    assert!(seen.contains(&source), "the first one keeps what it uses");
}

#[test]
fn flows_of_an_identity_survive_a_reconnect_before_the_old_connection_times_out() {
    let (mut overlay, now) = overlay();
    overlay.attach(ConnId(1), identity(7), now);
    let own = overlay.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    let extra = overlay.outbound(ConnId(1), ip("10.0.0.2"), now).unwrap();
    overlay.attach(ConnId(2), identity(7), now);
    assert_eq!(overlay.inbound(own), Some((ConnId(2), ip("10.0.0.1"))));
    assert_eq!(overlay.inbound(extra), Some((ConnId(2), ip("10.0.0.2"))));
    overlay.detach(ConnId(1), now);
    assert_eq!(overlay.outbound(ConnId(2), ip("10.0.0.1"), now), Ok(own));
    assert_eq!(overlay.outbound(ConnId(2), ip("10.0.0.2"), now), Ok(extra));
}

#[test]
fn two_live_connections_of_one_identity_do_not_share_an_address() {
    let (mut overlay, now) = overlay();
    for conn in [ConnId(1), ConnId(2)] {
        overlay.attach(conn, identity(7), now);
    }
    let old = overlay.outbound(ConnId(1), ip("100.64.0.1"), now).unwrap();
    let new = overlay.outbound(ConnId(2), ip("100.64.0.1"), now).unwrap();
    assert_ne!(old, new);
    assert_eq!(overlay.inbound(old), Some((ConnId(1), ip("100.64.0.1"))));
    assert_eq!(overlay.inbound(new), Some((ConnId(2), ip("100.64.0.1"))));
}

#[test]
fn a_proven_identity_takes_its_own_address_from_an_anonymous_agent() {
    let (mut overlay, now) = overlay();
    overlay.attach(ConnId(1), identity(7), now);
    let own = overlay.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    overlay.detach(ConnId(1), now);
    overlay.expire(now + GRACE);

    overlay.attach(ConnId(2), Owner::Anonymous, now);
    assert_eq!(overlay.outbound(ConnId(2), own, now), Ok(own), "nobody holds it");
    overlay.attach(ConnId(3), identity(7), now);
    assert_eq!(
        overlay.inbound(own),
        Some((ConnId(3), own)),
        "reachable before it has sent anything"
    );
    let moved = overlay.outbound(ConnId(2), own, now).unwrap();
    assert_ne!(moved, own);
    assert_eq!(overlay.inbound(moved), Some((ConnId(2), own)));
}

#[test]
fn nobody_gets_the_address_of_an_identity_that_is_away_within_the_grace_time() {
    let (mut overlay, now) = overlay();
    overlay.attach(ConnId(1), identity(7), now);
    let own = overlay.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    overlay.detach(ConnId(1), now);
    overlay.expire(now + GRACE - Duration::from_secs(1));
    assert_eq!(overlay.inbound(own), None);
    overlay.attach(ConnId(2), Owner::Anonymous, now);
    assert_ne!(overlay.outbound(ConnId(2), own, now), Ok(own));
}

#[test]
fn what_is_late_for_an_anonymous_agent_reaches_no_other() {
    let (mut overlay, now) = overlay();
    let source = ip("100.64.0.1");
    overlay.attach(ConnId(1), Owner::Anonymous, now);
    assert_eq!(overlay.outbound(ConnId(1), source, now), Ok(source));
    overlay.detach(ConnId(1), now);
    overlay.expire(now + REST - Duration::from_secs(1));
    overlay.attach(ConnId(2), Owner::Anonymous, now);
    let leased = overlay.outbound(ConnId(2), source, now).unwrap();
    assert_ne!(leased, source);
    assert_eq!(overlay.inbound(leased), Some((ConnId(2), source)));
    assert_eq!(overlay.inbound(source), None);
    overlay.attach(ConnId(1), Owner::Anonymous, now);
    assert_eq!(overlay.outbound(ConnId(1), source, now), Ok(source), "it comes back for it");
    overlay.detach(ConnId(1), now);
    overlay.expire(now + REST);
    overlay.attach(ConnId(3), Owner::Anonymous, now);
    assert_eq!(overlay.outbound(ConnId(3), source, now), Ok(source), "it has rested");
}

#[test]
fn what_is_late_for_the_older_connection_of_an_identity_reaches_no_other() {
    let (mut overlay, now) = overlay();
    for conn in [ConnId(1), ConnId(2)] {
        overlay.attach(conn, identity(7), now);
    }
    let extra = overlay.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    overlay.detach(ConnId(1), now);
    overlay.attach(ConnId(3), Owner::Anonymous, now);
    assert_ne!(overlay.outbound(ConnId(3), extra, now), Ok(extra));
    assert_eq!(overlay.inbound(extra), None);
}

#[test]
fn agents_that_come_and_go_never_use_a_pool_up() {
    let (mut overlay, now) = (Overlay::new(tight()).unwrap(), Instant::now());
    for number in 0..1000 {
        let now = now + Duration::from_millis(number);
        overlay.attach(ConnId(number), Owner::Anonymous, now);
        overlay.outbound(ConnId(number), ip("100.64.0.1"), now).unwrap();
        overlay.detach(ConnId(number), now);
    }
    assert!(overlay.leases() <= 5, "the addresses of the pool");
    let (mut overlay, now) = (Overlay::new(roomy()).unwrap(), Instant::now());
    for number in 0..MAX_RETAINED as u64 + 1000 {
        overlay.attach(ConnId(number), Owner::Anonymous, now);
        overlay.outbound(ConnId(number), ip("100.64.0.1"), now).unwrap();
        overlay.detach(ConnId(number), now);
    }
    assert_eq!(overlay.leases(), MAX_RETAINED);
}

#[test]
fn a_silent_source_makes_room_after_the_grace_time() {
    let (mut overlay, now) = overlay();
    overlay.attach(ConnId(1), Owner::Anonymous, now);
    for last in 1..=4 {
        overlay.outbound(ConnId(1), IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), now).unwrap();
    }
    assert_eq!(overlay.outbound(ConnId(1), ip("10.0.0.5"), now), Err(LeaseError::TooMany));
    assert_eq!(overlay.outbound(ConnId(1), ip("10.0.0.5"), now + GRACE), Ok(ip("10.0.0.5")));
    assert_eq!(overlay.inbound(ip("10.0.0.1")), None, "the first one made room");
}

#[test]
fn identities_that_went_away_are_forgotten_at_the_cap() {
    let (mut overlay, now) = overlay();
    for number in 0..=MAX_RETAINED as u64 {
        let mut key = [0; 32];
        key[12..20].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
        key[24..].copy_from_slice(&number.to_be_bytes());
        overlay.attach(ConnId(number), Owner::Identity(key), now);
        overlay.detach(ConnId(number), now);
    }
    assert!(overlay.leases() <= 2 * MAX_RETAINED);
}
