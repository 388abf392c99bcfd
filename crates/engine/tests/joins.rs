//! Joins: a request up and a reply down, beside the relay's connections and never in their way.

mod oracle;
mod site;

use std::{net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use oracle::packets::{Transport, build};
use site::{Site, server_tls};
use ztna_engine::{
    Command, Event, Failure, FailureCause, ListenConfig, MAX_JOIN,
    tls::{ClientTls, ServerTrust},
};

/// The code of CONNECTION_REFUSED (RFC 9000 section 20.1).
const REFUSED: u64 = 2;
/// The code of the TLS alert "no_application_protocol" (RFC 9001 section 4.8).
const NO_PROTOCOL: u64 = 0x178;

fn site(change: impl FnOnce(&mut ListenConfig)) -> Site {
    Site::new(|config| {
        config.tls = server_tls(Some(b""));
        (config.joins_per_source, config.join_burst_per_source) = (1000, 1000);
        config.joins_per_second = 1000;
        change(config);
    })
}

/// The next request at the relay, and its bytes.
fn requested(site: &mut Site) -> (u64, Vec<u8>) {
    site.relay.wait(|event| match event {
        Event::JoinRequest { request, remote, certificate, data } => {
            assert_eq!((remote.ip(), certificate), (Ipv4Addr::LOCALHOST.into(), &None));
            Some((*request, data.clone()))
        }
        _ => None,
    })
}

fn reply(site: &Site, request: u64, data: &[u8], refused: bool) {
    let data = Bytes::copy_from_slice(data);
    site.relay.apply(vec![Command::JoinReply { request, data, refused }]);
}

/// The answer to a client's request.
fn answered(site: &mut Site, asked: u64) -> Result<Vec<u8>, Failure> {
    site.clients.wait(|event| match event {
        Event::Answered { request, certificates, data } if *request == asked => {
            assert_eq!(certificates.len(), 1);
            Some(Ok(data.clone()))
        }
        Event::ConnectFailed { request, failure } if *request == asked => {
            Some(Err(failure.clone()))
        }
        _ => None,
    })
}

/// A whole exchange.
fn join(site: &mut Site, refused: bool) -> Result<Vec<u8>, Failure> {
    let asked = site.ask(b"please", |_| {});
    let (request, data) = requested(site);
    assert_eq!(data, b"please");
    reply(site, request, b"welcome", refused);
    answered(site, asked)
}

fn failed(site: &mut Site) -> (FailureCause, u64) {
    let asked = site.ask(b"please", |_| {});
    let failure = answered(site, asked).unwrap_err();
    (failure.cause, failure.code)
}

#[test]
fn a_request_gets_its_reply_and_no_connection_comes_of_it() {
    for retry in [false, true] {
        let mut site = site(|config| config.retry = retry);
        assert_eq!(join(&mut site, false).unwrap(), b"welcome");
        site.relay.until(|relay| {
            let counters = relay.counters();
            counters.join_replies.get() == 1 && counters.joins.get() == 0
        });
        let counters = site.relay.engine.counters();
        assert_eq!((counters.join_accepted.get(), counters.join_requests.get()), (1, 1));
        assert_eq!((counters.accepted.get(), counters.admitted.get()), (0, 0));
        assert_eq!(counters.retry_validated.get(), 1, "whether others have to prove theirs or not");
        assert!(site.relay.closed().is_empty());
    }
}

#[test]
fn the_largest_messages_pass_and_larger_ones_do_not() {
    let mut site = site(|_| {});
    let largest = vec![7; MAX_JOIN];
    let asked = site.ask(&largest, |_| {});
    let (request, data) = requested(&mut site);
    assert!(data == largest);
    reply(&site, request, &largest, false);
    assert!(answered(&mut site, asked).unwrap() == largest);

    let asked = site.ask(&vec![7; MAX_JOIN + 1], |_| {});
    let failure = answered(&mut site, asked).unwrap_err();
    assert_eq!((failure.cause, failure.code), (FailureCause::Peer, 1), "{failure:?}");
    assert_eq!(site.relay.engine.counters().join_malformed.get(), 1);

    let asked = site.ask(b"please", |_| {});
    let (request, _) = requested(&mut site);
    reply(&site, request, &vec![7; MAX_JOIN + 1], false);
    let failure = answered(&mut site, asked).unwrap_err();
    assert!(failure.reason.contains("more than 16384 bytes"), "{failure:?}");
}

#[test]
fn where_joining_is_off_nobody_joins_and_a_reload_turns_it_on() {
    let mut site = site(|config| config.tls = server_tls(None));
    assert_eq!(failed(&mut site), (FailureCause::Peer, NO_PROTOCOL));
    site.relay.apply(vec![Command::SetServerTls { tls: server_tls(Some(b"")) }]);
    assert!(join(&mut site, false).is_ok());
    site.relay.apply(vec![Command::SetServerTls { tls: server_tls(None) }]);
    assert_eq!(failed(&mut site), (FailureCause::Peer, NO_PROTOCOL));
    site.connect();
}

#[test]
fn joins_and_connections_take_nothing_from_each_other() {
    let mut site = site(|config| {
        (config.max_connections, config.max_half_open) = (1, 1);
        (config.handshakes_per_source, config.handshake_burst_per_source) = (1, 1);
        (config.joins_per_source, config.join_burst_per_source) = (1, 2);
        config.retry = true;
    });
    assert!(join(&mut site, false).is_ok());
    site.connect();
    assert!(join(&mut site, false).is_ok(), "although the relay is full");
    for _ in 0..10 {
        site.ask(b"please", |_| {});
    }
    site.relay.until(|relay| relay.counters().join_refused_rate.get() > 0);
    let counters = site.relay.engine.counters();
    assert_eq!((counters.connections.get(), counters.handshake_refused_full.get()), (1, 0));
    assert_eq!(counters.handshake_refused_rate.get(), 0);
}

#[test]
fn five_refused_requests_close_joining_to_their_source_and_nothing_else() {
    let mut site = site(|_| {});
    for _ in 0..5 {
        assert_eq!(join(&mut site, true).unwrap(), b"welcome", "a refusal is a reply too");
    }
    assert_eq!(failed(&mut site), (FailureCause::Peer, REFUSED));
    assert_eq!(site.relay.engine.counters().join_refused_blocked.get(), 1);
    site.connect();
    // Another source.
    let asked = site.ask(b"please", |config| config.bind = ([127, 0, 0, 2], 0).into());
    let request = site.relay.wait(|event| match event {
        Event::JoinRequest { request, remote, .. } => {
            assert_eq!(remote.ip(), Ipv4Addr::new(127, 0, 0, 2));
            Some(*request)
        }
        _ => None,
    });
    reply(&site, request, b"welcome", false);
    assert!(answered(&mut site, asked).is_ok());
}

#[test]
fn a_client_that_leaves_early_keeps_its_place_until_its_request_is_decided_on() {
    let mut site = site(|_| {});
    for _ in 0..5 {
        let asked = site.ask(b"please", |_| {});
        let (request, _) = requested(&mut site);
        site.clients.engine.apply(vec![Command::CancelConnect { request: asked }]).unwrap();
        site.relay.until(|relay| relay.counters().joins.get() == 1);
        reply(&site, request, b"wrong", true);
        site.relay.until(|relay| relay.counters().joins.get() == 0);
    }
    assert_eq!(failed(&mut site), (FailureCause::Peer, REFUSED));
    let counters = site.relay.engine.counters();
    assert_eq!((counters.join_refused_blocked.get(), counters.join_requests.get()), (1, 5));
    let answer =
        |event: &Event| matches!(event, Event::Answered { .. } | Event::ConnectFailed { .. });
    assert!(!site.clients.has(answer), "whoever gave up is told nothing");
}

#[test]
fn a_request_that_nobody_replies_to_ends() {
    let mut site = site(|_| {});
    let asked = site.ask(b"please", |_| {});
    let (request, _) = requested(&mut site);
    let failure = answered(&mut site, asked).unwrap_err();
    assert_eq!((failure.cause, failure.code), (FailureCause::Peer, 3));
    assert_eq!(site.relay.engine.counters().join_timeouts.get(), 1);
    reply(&site, request, b"late", true);
    assert!(join(&mut site, false).is_ok());
}

#[test]
fn relaying_goes_on_beside_a_flood_of_wrong_requests() {
    let mut site = site(|config| (config.joins_per_source, config.join_burst_per_source) = (1, 20));
    let [agent, connector] = [(); 2].map(|()| site.connect());
    site.route("web", agent, connector);
    let (source, destination) = ([100, 64, 0, 1].into(), [10, 0, 0, 53].into());
    let packet = build(source, destination, 0, &Transport::Udp(b"ping".to_vec()));
    for turn in 0..200u8 {
        for last in [turn % 20, turn % 7 + 20] {
            site.ask(b"guess", |config| config.bind = ([127, 0, 3, last + 1], 0).into());
        }
        for request in site.relay.requests() {
            let reply = Command::JoinReply { request, data: "no".into(), refused: true };
            site.relay.engine.apply(vec![reply]).unwrap();
        }
        site.send(agent, packet.clone());
        assert_eq!(site.received(connector), [packet.as_slice()], "in turn {turn}");
    }
    site.relay.until(|relay| relay.counters().join_refused_blocked.get() > 0);
    let counters = site.relay.engine.counters();
    assert_eq!((counters.relayed_to_connector_packets.get(), counters.connections.get()), (200, 2));
    assert!(counters.drops.snapshot().iter().all(|(_, dropped)| *dropped == 0));
}

/// A reply that panics when it is let go, in the task of its join.
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

#[test]
fn a_panic_in_a_join_frees_its_place_and_ends_nothing_else() {
    let mut site = site(|_| {});
    let ends = site.connect();
    site.ask(b"please", |_| {});
    let (request, _) = requested(&mut site);
    let data = Bytes::from_owner(Bomb);
    site.relay.apply(vec![Command::JoinReply { request, data, refused: false }]);
    site.relay.until(|relay| {
        let counters = relay.counters();
        counters.connection_panics.get() == 1 && counters.joins.get() == 0
    });
    assert!(join(&mut site, false).is_ok());
    site.relay.apply(vec![Command::SendDatagram { conn: ends.relay, data: "x".into() }]);
    assert_eq!(site.received(ends), ["x"]);
}

#[test]
fn a_drain_takes_no_more_joins() {
    let mut site = site(|_| {});
    site.relay.apply(vec![Command::SetAccepting { accepting: false }]);
    assert_eq!(failed(&mut site), (FailureCause::Peer, REFUSED));
}

#[test]
fn a_pin_is_the_only_root_and_the_name_still_counts() {
    let mut site = site(|_| {});
    let ask = |site: &mut Site, pin: [u8; 32], name: &str| {
        let tls = Arc::new(ClientTls::new(None, None, ServerTrust::Pinned(pin)).unwrap());
        site.ask(b"please", |config| (config.tls, config.server_name) = (tls, name.into()))
    };
    let pin = site::fingerprint();
    let asked = ask(&mut site, pin, "relay.test");
    let (request, _) = requested(&mut site);
    reply(&site, request, b"welcome", false);
    assert!(answered(&mut site, asked).is_ok());
    for (pin, name, cause) in [
        (pin, "other.test", FailureCause::WrongName),
        ([7; 32], "relay.test", FailureCause::UnknownIssuer),
    ] {
        let asked = ask(&mut site, pin, name);
        assert_eq!(answered(&mut site, asked).unwrap_err().cause, cause);
    }
    site.relay.until(|relay| relay.counters().join_handshake_failed.get() == 2);
    assert_eq!(site.relay.engine.counters().join_requests.get(), 1);
}

/// The longest name that is sent as SNI, 253 bytes.
fn longest_name() -> String {
    let label = "x".repeat(63);
    [&label, &label, &label, &"x".repeat(61)].map(String::as_str).join(".")
}

#[test]
fn the_longest_client_hello_is_read_from_one_packet() {
    let mut site = site(|config| config.retry = true);
    let identity = Some((site::CERTIFICATE, site::KEY));
    let tls = Arc::new(ClientTls::new(None, identity, ServerTrust::Anyone).unwrap());
    let name = longest_name();
    assert_eq!(name.len(), 253);
    let asked = site.ask(b"please", |config| (config.tls, config.server_name) = (tls, name));
    let request = site.relay.wait(|event| match event {
        Event::JoinRequest { request, certificate, .. } => {
            assert!(certificate.is_some());
            Some(*request)
        }
        _ => None,
    });
    reply(&site, request, b"welcome", false);
    assert!(answered(&mut site, asked).is_ok());
    // The relay would have taken none that it cannot read whole from a packet, which has 1200 bytes.
    assert_eq!(site.relay.engine.counters().join_accepted.get(), 1);
}
