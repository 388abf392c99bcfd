//! Whatever agents do, the NAT gives the leases its model gives: no address has two owners, the
//! way back from each leads to its owner only, and nothing is left when all are gone. What no lease
//! leads back reaches agents only that were introduced, and none while another one may be meant.
#![no_main]

#[path = "../../crates/engine/tests/oracle/nat_model.rs"]
#[allow(dead_code)]
mod nat_model;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use nat_model::{Model, Op};
use ztna_engine::{
    event::ConnId,
    nat::{Claim, Nat, NatConfig, Owner, QUARANTINE},
};

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

fn config(bytes: &[u8]) -> NatConfig {
    let Owner::Identity(known) = owner(2) else { unreachable!() };
    NatConfig {
        pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 29),
        pool_v6: (Ipv6Addr::new(0xFD64, 0, 0, 0, 0, 0, 0, 0), 120),
        per_agent: 3,
        grace: Duration::from_secs(300),
        reserved: vec![Ipv4Addr::new(100, 64, 0, 3).into()],
        known: [(known, Ipv4Addr::new(100, 64, 0, 2).into())].into(),
        known_in_part: bytes.len() % 2 == 1,
    }
}

const CONNECTORS: [ConnId; 2] = [ConnId(10), ConnId(11)];

/// Every agent of both connectors or of one.
fn shares(connector: ConnId, agent: ConnId) -> bool {
    agent.0 % 3 == 2 || agent.0 % 3 == connector.0 - 10
}

fn introductions(bytes: &[u8]) {
    let mut nat = Nat::new(config(bytes)).unwrap();
    let mut now = Instant::now();
    let (mut attached, mut introduced) = (BTreeSet::new(), BTreeSet::new());
    CONNECTORS.into_iter().for_each(|connector| nat.serve(connector, now));
    for operation in bytes.chunks_exact(2).take(200) {
        let [first, second] = [operation[0], operation[1]];
        let agent = ConnId(u64::from(first >> 4 & 7));
        let connector = CONNECTORS[usize::from(second & 1)];
        match first & 0x0F {
            0 | 1 => {
                let who = owner(agent.0 as u8);
                nat.attach(agent, who, agent.0, now);
                attached.insert(agent);
            }
            2 => {
                nat.detach(agent, now);
                attached.remove(&agent);
                introduced.retain(|(other, _)| *other != agent);
            }
            3 => now += Duration::from_secs(u64::from(second) * 50),
            4 => nat.expire(now),
            5 => drop(nat.conflict(agent, connector, |other| shares(connector, other), now)),
            6 => {
                nat.introduce(agent, connector);
                if attached.contains(&agent) {
                    introduced.insert((agent, connector));
                }
            }
            7 => {
                nat.separate(agent, connector, now);
                introduced.remove(&(agent, connector));
            }
            8..11 => {
                let address = source(second);
                let shares = |other| shares(connector, other);
                if let Some(Claim::Of(agent)) = nat.claimant(connector, address, shares, now) {
                    assert!(introduced.contains(&(agent, connector)));
                    let holder = nat.inbound(address).map(|(holder, _)| holder);
                    assert!(holder.is_none_or(|holder| holder == agent || !shares(holder)));
                    nat.bind(connector, agent, address);
                }
            }
            _ => {
                let Ok(leased) = nat.outbound(agent, source(second), now) else { continue };
                for connector in CONNECTORS.into_iter().filter(|c| shares(*c, agent)) {
                    let shares = |other| shares(connector, other);
                    let claim = nat.claimant(connector, leased, shares, now);
                    assert!(!matches!(claim, Some(Claim::Of(other)) if other != agent));
                }
            }
        }
    }
    attached.into_iter().for_each(|agent| nat.detach(agent, now));
    CONNECTORS.into_iter().for_each(|connector| nat.remove_connector(connector));
    for _ in 0..2 {
        now += QUARANTINE;
        nat.expire(now);
    }
    assert_eq!(nat.leases(), 0);
}

fuzz_target!(|bytes: &[u8]| {
    introductions(bytes);
    let mut model = Model::new(config(bytes));
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
