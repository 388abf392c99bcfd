//! Random attachments, packets and time against a model that keeps one flat list of leases.

mod oracle;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use oracle::nat_model::{Model, Op, QUARANTINE};
use proptest::prelude::*;
use ztna_engine::{
    event::ConnId,
    nat::{self, LeaseError, MAX_DETACHED, Nat, NatConfig, Owner},
};

const GRACE: Duration = Duration::from_secs(300);

/// Pools small enough for collisions, evictions and exhaustion.
fn tight() -> NatConfig {
    NatConfig {
        pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 29),
        pool_v6: ("fd64::".parse().unwrap(), 120),
        per_agent: 3,
        grace: GRACE,
        reserved: vec!["192.0.0.8".parse().unwrap(), "100.64.0.3".parse().unwrap()],
        known: Arc::default(),
        known_in_part: false,
    }
}

fn roomy() -> NatConfig {
    NatConfig { pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 10), per_agent: 4, ..tight() }
}

fn identity(seed: u8) -> Owner {
    let mut key = [seed.wrapping_mul(73); 32];
    // Not an address of the shared part at first.
    (key[13], key[15]) = (seed, seed);
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
        2 => (0xEEu16..0x100).prop_map(|last| format!("fd64::{last:x}").parse().unwrap()),
        1 => prop_oneof![
            Just("127.0.0.1"), Just("192.0.0.8"), Just("::ffff:10.0.0.1"), Just("fd65::7"), Just("198.18.0.1")
        ].prop_map(ip),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u64..6, 0u8..5).prop_map(|(conn, who)| {
            Op::Attach(conn, if who < 2 { Owner::Anonymous } else { identity(who) })
        }),
        1 => (0u64..6).prop_map(Op::Detach),
        8 => (0u64..6, source()).prop_map(|(conn, source)| Op::Outbound(conn, source)),
        1 => prop_oneof![0u64..12, 0u64..400, 10_000u64..11_000].prop_map(|seconds| Op::Pass(Duration::from_secs(seconds))),
        1 => Just(Op::Expire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(250) })]

    #[test]
    fn the_nat_does_what_the_model_does(
        ops in prop::collection::vec(op(), 1..120), grace in prop_oneof![Just(0u64), Just(60), Just(300), Just(20_000)],
        known in any::<bool>(), known_in_part in any::<bool>(),
    ) {
        let Owner::Identity(key) = identity(3) else { unreachable!() };
        let known = if known { vec![(key, ip("100.64.0.2")), (key, ip("fd64::9"))] } else { vec![] };
        let grace = Duration::from_secs(grace);
        let mut model = Model::new(NatConfig { grace, known: known.into(), known_in_part, ..tight() });
        ops.iter().for_each(|op| model.step(op));
        model.finish();
    }

    #[test]
    fn an_identity_has_the_same_address_on_every_relay(key: [u8; 32], sources in prop::collection::vec(1u8..250, 1..4)) {
        let mut seen = Vec::new();
        for last in sources {
            let mut nat = Nat::new(roomy()).unwrap();
            let now = Instant::now();
            nat.attach(ConnId(1), Owner::Identity(key), 1, now);
            seen.push(nat.outbound(ConnId(1), IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), now).unwrap());
        }
        prop_assert!(seen.iter().all(|address| address == &seen[0]));
    }
}

fn nat() -> (Nat, Instant) {
    (Nat::new(roomy()).unwrap(), Instant::now())
}

#[test]
fn agents_with_the_same_inner_address_get_different_ones() {
    let (mut nat, now) = nat();
    let source = ip("100.64.0.1");
    let mut seen = std::collections::HashSet::new();
    for conn in (0..20).map(ConnId) {
        nat.attach(conn, Owner::Anonymous, 1, now);
        let leased = nat.outbound(conn, source, now).unwrap();
        assert!(seen.insert(leased));
        assert_eq!(nat.inbound(leased), Some((conn, source)));
    }
    assert!(seen.contains(&source), "the first one keeps what it uses");
}

#[test]
fn flows_of_an_identity_survive_a_reconnect_before_the_old_connection_times_out() {
    let (mut nat, now) = nat();
    nat.attach(ConnId(1), identity(7), 1, now);
    let reserved = nat.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    let additional = nat.outbound(ConnId(1), ip("10.0.0.2"), now).unwrap();
    nat.attach(ConnId(2), identity(7), 1, now);
    assert_eq!(nat.inbound(reserved), Some((ConnId(2), ip("10.0.0.1"))));
    assert_eq!(nat.inbound(additional), Some((ConnId(2), ip("10.0.0.2"))));
    nat.detach(ConnId(1), now);
    assert_eq!(nat.outbound(ConnId(2), ip("10.0.0.1"), now), Ok(reserved));
    assert_eq!(nat.outbound(ConnId(2), ip("10.0.0.2"), now), Ok(additional));
}

#[test]
fn two_live_connections_of_one_identity_do_not_share_an_address() {
    let (mut nat, now) = nat();
    for conn in [ConnId(1), ConnId(2)] {
        nat.attach(conn, identity(7), 1, now);
    }
    let now = now + nat::HAND_OVER;
    let old = nat.outbound(ConnId(1), ip("100.64.0.1"), now).unwrap();
    let new = nat.outbound(ConnId(2), ip("100.64.0.1"), now).unwrap();
    assert_ne!(old, new);
    assert_eq!(nat.inbound(old), Some((ConnId(1), ip("100.64.0.1"))));
    assert_eq!(nat.inbound(new), Some((ConnId(2), ip("100.64.0.1"))));
}

#[test]
fn an_own_address_is_its_owners_for_good() {
    let (mut nat, now) = nat();
    nat.attach(ConnId(1), identity(7), 1, now);
    let reserved = nat.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    nat.detach(ConnId(1), now);
    let later = now + Duration::from_secs(400 * 86_400);
    nat.expire(later);
    assert_eq!(nat.leases(), 0);

    // Neither who claims it nor another key that the same address would be the first for.
    nat.attach(ConnId(2), Owner::Anonymous, 2, later);
    assert_ne!(nat.outbound(ConnId(2), reserved, later), Ok(reserved));
    let Owner::Identity(mut ground) = identity(7) else { unreachable!() };
    ground[0] ^= 1;
    nat.attach(ConnId(3), Owner::Identity(ground), 3, later);
    assert_ne!(nat.reserved(&ground)[0], Some(reserved));
    assert_eq!(nat.inbound(reserved), None);
    nat.attach(ConnId(4), identity(7), 1, later);
    assert_eq!(nat.inbound(reserved), Some((ConnId(4), reserved)), "reachable before it has sent");
}

#[test]
fn an_own_address_is_remembered_over_a_restart() {
    let (Owner::Identity(first), Owner::Identity(mut second)) = (identity(7), identity(7)) else {
        unreachable!()
    };
    second[0] ^= 1;
    let (mut nat, now) = nat();
    nat.attach(ConnId(1), Owner::Identity(first), 1, now);
    nat.attach(ConnId(2), Owner::Identity(second), 2, now);
    let known: Vec<_> = [first, second]
        .into_iter()
        .flat_map(|key| {
            nat.reserved(&key).into_iter().flatten().map(move |reserved| (key, reserved))
        })
        .collect();
    // The second comes first now.
    for (in_part, order) in [(false, [second, first]), (true, [second, first])] {
        let config = NatConfig { known: known.clone().into(), known_in_part: in_part, ..roomy() };
        let mut again = Nat::new(config).unwrap();
        for key in order {
            again.attach(ConnId(key[0].into()), Owner::Identity(key), 1, now);
            assert_eq!(again.reserved(&key), nat.reserved(&key));
        }
    }
}

#[test]
fn where_owners_may_be_forgotten_nobody_is_given_what_may_be_anothers() {
    let (mut before, now) = nat();
    before.attach(ConnId(1), identity(7), 1, now);
    let Owner::Identity(key) = identity(7) else { unreachable!() };
    let lost = before.reserved(&key)[0].unwrap();
    let config = NatConfig { known_in_part: true, ..roomy() };
    let mut nat = Nat::new(config).unwrap();
    for (conn, owner) in [(1, identity(7)), (2, Owner::Anonymous), (3, identity(8))] {
        nat.attach(ConnId(conn), owner, conn, now);
        for source in [lost, ip("10.0.0.1")] {
            let leased = nat.outbound(ConnId(conn), source, now).unwrap();
            assert!(leased >= ip("100.124.0.0"), "{leased} could be somebody's own");
        }
    }
}

#[test]
fn an_agent_that_proved_nothing_uses_no_address_beyond_the_pool() {
    let (mut nat, now) = nat();
    // Applications' own, service addresses, the shared part of the pool, another family's.
    let sources =
        ["10.0.0.5", "198.18.209.62", "192.168.1.1", "100.124.0.9", "fd00::1", "fd64::ff01"];
    for (conn, source) in sources.into_iter().enumerate() {
        let (conn, source) = (ConnId(conn as u64), ip(source));
        nat.attach(conn, Owner::Anonymous, 1, now);
        let leased = nat.outbound(conn, source, now).unwrap();
        assert_ne!(leased, source);
        assert_eq!(nat.inbound(source), None);
        assert_eq!(nat.inbound(leased), Some((conn, source)));
    }
}

#[test]
fn what_was_given_up_comes_back_last() {
    let (mut nat, now) = nat();
    let mut seen = std::collections::HashSet::new();
    for number in 0..20_000 {
        nat.attach(ConnId(number), Owner::Anonymous, number, now);
        let leased = nat.outbound(ConnId(number), ip("10.0.0.1"), now).unwrap();
        assert!(seen.insert(leased), "{leased} again");
        nat.detach(ConnId(number), now);
        nat.expire(now);
    }
}

#[test]
fn who_comes_and_goes_uses_up_its_own_share_only() {
    let (mut nat, now) = nat();
    nat.attach(ConnId(1), Owner::Anonymous, 1, now);
    let left = nat.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    nat.detach(ConnId(1), now);
    // The pool shares 262,144 addresses; it would have had all of them twice.
    for number in 2..600_000 {
        nat.attach(ConnId(number), Owner::Anonymous, 2, now);
        assert_ne!(nat.outbound(ConnId(number), ip("10.0.0.1"), now), Ok(left));
        nat.detach(ConnId(number), now);
    }
    assert!(nat.leases() <= 262_144 / 16 + 1);
}

#[test]
fn a_rest_outlasts_whatever_keeps_a_session() {
    let kept = [
        ("TCP of Linux, by its keep-alive", 7_200 + 9 * 75),
        ("TCP of a NAT (RFC 5382, REQ-5)", 7_440),
        ("UDP of a NAT (RFC 4787, REQ-5)", 300),
        ("UDP of Linux's connection tracking", 180),
        ("TCP of our own connectors", 300 + 75),
        ("TCP of the connectors in the field", 120),
    ];
    for (keeper, seconds) in kept {
        assert!(nat::QUARANTINE > Duration::from_secs(seconds), "{keeper}");
    }
    assert_eq!(nat::QUARANTINE, QUARANTINE, "as the documents have it");
}

#[test]
fn additional_addresses_rest_also_where_an_identity_is_forgotten_at_once() {
    let now = Instant::now();
    let mut nat = Nat::new(NatConfig { grace: Duration::ZERO, ..tight() }).unwrap();
    nat.attach(ConnId(1), identity(7), 1, now);
    let (first, additional) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let _reserved = nat.outbound(ConnId(1), first, now).unwrap();
    let additional = nat.outbound(ConnId(1), additional, now).unwrap();
    nat.detach(ConnId(1), now);
    nat.expire(now);
    for conn in [2, 3] {
        nat.attach(ConnId(conn), Owner::Anonymous, conn, now);
        assert_ne!(nat.outbound(ConnId(conn), ip("10.0.0.1"), now), Ok(additional));
    }
    assert_eq!(nat.inbound(additional), None);
}

#[test]
fn nobody_gets_the_address_of_an_identity_that_is_away_within_the_grace_time() {
    let (mut nat, now) = nat();
    nat.attach(ConnId(1), identity(7), 1, now);
    let reserved = nat.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    nat.detach(ConnId(1), now);
    nat.expire(now + GRACE - Duration::from_secs(1));
    assert_eq!(nat.inbound(reserved), None);
    nat.attach(ConnId(2), Owner::Anonymous, 1, now);
    assert_ne!(nat.outbound(ConnId(2), reserved, now), Ok(reserved));
}

#[test]
fn what_is_late_for_an_anonymous_agent_reaches_no_other() {
    let (mut nat, now) = nat();
    let source = ip("100.64.0.1");
    nat.attach(ConnId(1), Owner::Anonymous, 1, now);
    assert_eq!(nat.outbound(ConnId(1), source, now), Ok(source));
    nat.detach(ConnId(1), now);
    nat.expire(now + QUARANTINE - Duration::from_secs(1));
    nat.attach(ConnId(2), Owner::Anonymous, 1, now);
    let leased = nat.outbound(ConnId(2), source, now).unwrap();
    assert_ne!(leased, source);
    assert_eq!(nat.inbound(leased), Some((ConnId(2), source)));
    assert_eq!(nat.inbound(source), None);
    nat.expire(now + QUARANTINE);
    nat.attach(ConnId(3), Owner::Anonymous, 1, now);
    assert_eq!(nat.outbound(ConnId(3), source, now), Ok(source), "it has rested");
}

#[test]
fn what_is_late_for_the_older_connection_of_an_identity_reaches_no_other() {
    let (mut nat, now) = nat();
    for conn in [ConnId(1), ConnId(2)] {
        nat.attach(conn, identity(7), 1, now);
    }
    let now = now + nat::HAND_OVER;
    let additional = nat.outbound(ConnId(1), ip("10.0.0.1"), now).unwrap();
    nat.detach(ConnId(1), now);
    nat.attach(ConnId(3), Owner::Anonymous, 1, now);
    assert_ne!(nat.outbound(ConnId(3), additional, now), Ok(additional));
    assert_eq!(nat.inbound(additional), None);
}

#[test]
fn agents_that_come_and_go_never_use_a_pool_up() {
    let (mut nat, now) = (Nat::new(tight()).unwrap(), Instant::now());
    for number in 0..1000 {
        let now = now + Duration::from_millis(number);
        nat.attach(ConnId(number), Owner::Anonymous, number, now);
        nat.outbound(ConnId(number), ip("100.64.0.1"), now).unwrap();
        nat.detach(ConnId(number), now);
    }
    assert!(nat.leases() <= 5, "the addresses of the pool");
}

#[test]
fn addresses_that_anonymous_agents_have_left_are_bounded() {
    let (mut nat, now) = nat();
    let kept = |number: u32| IpAddr::V4(Ipv4Addr::from_bits(0x6440_0100 + number));
    for number in 0..MAX_DETACHED as u32 + 10 {
        let conn = ConnId(number.into());
        nat.attach(conn, Owner::Anonymous, 1, now);
        let leased = nat.outbound(conn, kept(number), now).unwrap();
        assert_eq!(leased == kept(number), number < MAX_DETACHED as u32, "else it is translated");
        nat.detach(conn, now);
    }
}

#[test]
fn a_silent_source_makes_room_after_the_grace_time() {
    let (mut nat, now) = nat();
    nat.attach(ConnId(1), Owner::Anonymous, 1, now);
    for last in 1..=4 {
        nat.outbound(ConnId(1), IpAddr::V4(Ipv4Addr::new(100, 64, 0, last)), now).unwrap();
    }
    assert_eq!(nat.outbound(ConnId(1), ip("100.64.0.5"), now), Err(LeaseError::TooMany));
    assert_eq!(nat.outbound(ConnId(1), ip("100.64.0.5"), now + GRACE), Ok(ip("100.64.0.5")));
    assert_eq!(nat.inbound(ip("100.64.0.1")), None, "the first one made room");
    let again = nat.outbound(ConnId(1), ip("100.64.0.1"), now + GRACE);
    assert_eq!(again, Ok(ip("100.64.0.1")), "it comes back for it");
}

#[test]
fn identities_that_went_away_are_forgotten_at_the_cap() {
    let (mut nat, now) = nat();
    for number in 0..=MAX_DETACHED as u64 {
        let mut key = [0; 32];
        key[12..20].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
        key[24..].copy_from_slice(&number.to_be_bytes());
        nat.attach(ConnId(number), Owner::Identity(key), 1, now);
        nat.detach(ConnId(number), now);
    }
    assert!(nat.leases() <= 2 * MAX_DETACHED);
}
