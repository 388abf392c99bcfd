//! Whatever agents do, the NAT gives the leases its model gives: no address has two owners, the
//! way back from each leads to its owner only, and nothing is left when all are gone.
#![no_main]

#[path = "../../crates/engine/tests/oracle/nat_model.rs"]
#[allow(dead_code)]
mod nat_model;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use nat_model::{Model, Op};
use ztna_engine::nat::{NatConfig, Owner};

fn owner(who: u8) -> Owner {
    if who < 2 {
        return Owner::Anonymous;
    }
    let mut key = [who; 32];
    // Few start addresses, so that identities collide.
    key[15] = who & 3;
    key[31] = who;
    Owner::Identity(key)
}

fn source(which: u8) -> IpAddr {
    let low = which & 0x0F;
    match which >> 4 {
        0..=6 => Ipv4Addr::new(100, 64, 0, low & 7).into(),
        7..=10 => Ipv4Addr::new(10, 0, 0, low).into(),
        11..=13 => Ipv6Addr::new(0xFD64, 0, 0, 0, 0, 0, 0, low.into()).into(),
        14 => Ipv6Addr::new(0xFD65, 0, 0, 0, 0, 0, 0, low.into()).into(),
        _ => Ipv4Addr::new(127, 0, 0, low).into(),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Owner::Identity(known) = owner(2) else { unreachable!() };
    let mut model = Model::new(NatConfig {
        pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 29),
        pool_v6: (Ipv6Addr::new(0xFD64, 0, 0, 0, 0, 0, 0, 0), 120),
        per_agent: 3,
        grace: Duration::from_secs(300),
        reserved: vec![Ipv4Addr::new(100, 64, 0, 3).into()],
        known: [(known, Ipv4Addr::new(100, 64, 0, 2).into())].into(),
        known_in_part: bytes.len() % 2 == 1,
    });
    for operation in bytes.chunks_exact(2).take(200) {
        let [first, second] = [operation[0], operation[1]];
        let conn = u64::from(first >> 4 & 7);
        model.step(&match first & 0x0F {
            0 | 1 => Op::Attach(conn, owner(second & 7)),
            2 => Op::Detach(conn),
            3 => Op::Pass(Duration::from_secs(u64::from(second) * 50)),
            4 => Op::Expire,
            _ => Op::Outbound(conn, source(second)),
        });
    }
    model.finish();
});
