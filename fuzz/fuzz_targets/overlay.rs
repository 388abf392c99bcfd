//! Invariant: whatever connections do, an address leads back to the one that was just given it, and nothing is left in the end.
#![no_main]

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ztna_engine::{
    ConnId,
    overlay::{Overlay, OverlayConfig, Owner},
};

#[derive(Arbitrary, Debug)]
enum Step {
    Attach { conn: u8, identity: Option<u8> },
    Detach { conn: u8 },
    Send { conn: u8, source: u32 },
    Wait { seconds: u8 },
}

fuzz_target!(|steps: Vec<Step>| {
    let mut overlay = Overlay::new(OverlayConfig {
        pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 28),
        pool_v6: ("fd64:7a74:6e61::".parse().unwrap(), 64),
        per_agent: 3,
        grace: Duration::from_secs(60),
        reserved: vec![],
    })
    .unwrap();
    let mut now = Instant::now();
    let id = |conn: u8| ConnId::new(u32::from(conn), 1);
    for step in steps {
        match step {
            Step::Attach { conn, identity } => {
                let owner = identity.map_or(Owner::Anonymous, |key| Owner::Identity([key; 32]));
                overlay.attach(id(conn), owner, now);
            }
            Step::Detach { conn } => overlay.detach(id(conn), now),
            Step::Send { conn, source } => {
                let source = IpAddr::V4(source.into());
                if let Ok(address) = overlay.outbound(id(conn), source, now) {
                    assert_eq!(overlay.inbound(address), Some((id(conn), source)));
                }
            }
            Step::Wait { seconds } => {
                now += Duration::from_secs(seconds.into());
                overlay.expire(now);
            }
        }
    }
    (0..=255).for_each(|conn| overlay.detach(id(conn), now));
    overlay.expire(now + Duration::from_secs(61));
    assert_eq!(overlay.leases(), 0);
});
