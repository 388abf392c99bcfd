use super::*;

const WEB: Bytes = Bytes::from_static(b"web");

fn id(n: u32) -> ConnId {
    ConnId::new(n, 1)
}

fn target(n: u32, rank: u32) -> Target {
    Target { conn: id(n), rank, key: u64::from(n) }
}

fn connector(routes: &mut Routes, agent: u32) -> Option<ConnId> {
    routes.from_agent(id(agent), None).unwrap().connector
}

#[test]
fn an_agent_stays_with_its_connector_until_it_leaves() {
    let mut routes = Routes::default();
    routes.set_service(&WEB, vec![target(1, 0)]);
    for agent in 10..60 {
        routes.set_agent(id(agent), &[WEB], u64::from(agent));
        assert_eq!(connector(&mut routes, agent), Some(id(1)));
    }
    routes.set_service(&WEB, vec![target(1, 0), target(2, 0), target(3, 0)]);
    assert!((10..60).all(|a| connector(&mut routes, a) == Some(id(1))));
    routes.remove(id(1));
    let second = (10..60).filter(|a| connector(&mut routes, *a) == Some(id(2))).count();
    assert!((10..40).contains(&second), "{second} of 50 agents on one of two connectors");
}

#[test]
fn the_newest_anonymous_connector_is_used_and_the_older_takes_over() {
    let mut routes = Routes::default();
    routes.set_agent(id(9), &[WEB], 9);
    assert_eq!(connector(&mut routes, 9), None);
    routes.set_service(&WEB, vec![target(1, 1)]);
    assert_eq!(connector(&mut routes, 9), Some(id(1)));
    routes.set_service(&WEB, vec![target(2, 1), target(1, 2)]);
    assert_eq!(connector(&mut routes, 9), Some(id(2)));
    routes.remove(id(2));
    assert_eq!(connector(&mut routes, 9), Some(id(1)));
}

#[test]
fn a_stalled_connector_is_passed_over_while_another_answers() {
    let mut routes = Routes::default();
    routes.set_service(&WEB, vec![target(1, 0), target(2, 0)]);
    routes.set_agent(id(9), &[WEB], 9);
    let first = connector(&mut routes, 9).unwrap();
    routes.set_stalled(first, true);
    let second = connector(&mut routes, 9).unwrap();
    assert_ne!(first, second);
    routes.set_stalled(first, false);
    assert_eq!(connector(&mut routes, 9), Some(second), "no move back");
    routes.set_stalled(first, true);
    routes.set_stalled(second, true);
    assert_eq!(connector(&mut routes, 9), Some(second), "one that stalls beats none");
}

#[test]
fn a_connector_that_is_leaving_sends_back_and_is_never_chosen() {
    let mut routes = Routes::default();
    routes.set_agent(id(9), &[WEB], 9);
    routes.set_service(&WEB, vec![target(1, 0)]);
    routes.set_service(&WEB, vec![target(2, 0), target(1, LEAVING)]);
    assert_eq!(connector(&mut routes, 9), Some(id(2)));
    assert!(routes.shared_service(id(1), id(9), [10, 0, 0, 1].into()).is_some());
    routes.set_stalled(id(2), true);
    assert_eq!(connector(&mut routes, 9), Some(id(2)), "it is tried on");
    let service = routes.from_agent(id(9), None).unwrap().service;
    let counters = routes.counters(service).unwrap();
    assert_eq!((counters.connectors.get(), counters.healthy.get()), (1, 0));
    routes.set_service(&WEB, vec![target(1, LEAVING)]);
    assert_eq!(connector(&mut routes, 9), None);
}

#[test]
fn bare_packets_go_to_the_first_service_and_named_ones_only_to_registered() {
    let mut routes = Routes::default();
    let dns = Bytes::from_static(b"dns");
    routes.set_service(&WEB, vec![target(1, 0)]);
    routes.set_service(&dns, vec![target(2, 0)]);
    routes.set_agent(id(9), &[dns.clone(), WEB], 9);
    assert_eq!(connector(&mut routes, 9), Some(id(2)));
    assert_eq!(routes.from_agent(id(9), Some(b"web")).unwrap().connector, Some(id(1)));
    assert_eq!(routes.from_agent(id(9), Some(b"ssh")), Err(true));
    assert_eq!(routes.from_agent(id(1), None), Err(false));
    routes.set_agent(id(9), &[WEB], 9);
    assert_eq!(routes.from_agent(id(9), Some(b"dns")), Err(true));
    let anywhere = [10, 0, 0, 1].into();
    let web = routes.from_agent(id(9), None).unwrap().service;
    assert_eq!(routes.shared_service(id(1), id(9), anywhere), Some(web));
    assert_eq!(routes.shared_service(id(2), id(9), anywhere), None);
    assert_eq!(
        routes.shared_service(id(1), id(9), ServiceAddresses::of(b"web").v4.into()),
        Some(web)
    );
    assert_eq!(routes.shared_service(id(1), id(9), ServiceAddresses::of(b"dns").v4.into()), None);
}

#[test]
fn nothing_is_left_when_all_are_gone() {
    let board = Arc::new(ServiceBoard::default());
    let mut routes = Routes::new(board.clone());
    for round in 0..3 {
        for n in 0..20 {
            routes.set_service(&WEB, (0..=n).map(|n| target(n, n)).collect());
            routes.set_agent(id(100 + n), &[WEB, Bytes::from(vec![n as u8])], 1);
            let _ = routes.from_agent(id(100 + n), None);
        }
        for n in 0..20 {
            routes.remove(id(n));
            if round % 2 == 0 {
                routes.remove(id(100 + n));
            } else {
                routes.set_agent(id(100 + n), &[], 1);
            }
        }
        routes.set_service(&WEB, vec![]);
        assert!(routes.is_empty());
        assert!(board.lock().unwrap().is_empty());
        assert!(routes.services.is_empty());
    }
}
