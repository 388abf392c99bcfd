//! Connecting to a TCP backend: its addresses race (RFC 8305), and silent ones are remembered.

use std::{cell::RefCell, collections::HashMap, io, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use ztna_netstack::{Backend, Refusal, Transport};

use super::{
    notices::{Notices, Told},
    proxy_protocol,
};
use crate::boundary::event::{Notice, Subject};

/// Head start of an address before the next one is tried beside it (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// An address that has not answered for so long is reported as silent.
const SILENCE: Duration = Duration::from_secs(3);
/// Time for all of them: shorter than a client's own patience with a SYN.
const TOTAL: Duration = Duration::from_secs(10);
/// An address that lost to a later one is tried after the others for so long.
const REMEMBERED: Duration = Duration::from_secs(30);

/// One address of a backend.
type Key = (Bytes, Transport, SocketAddr);

/// The state of the addresses of a connector's backends.
#[derive(Debug)]
pub(super) struct Health {
    notices: Notices,
    told: Told<Key>,
    slow: RefCell<HashMap<Key, Instant>>,
}

impl Health {
    pub(super) fn new(notices: Notices) -> Rc<Self> {
        Rc::new(Self { notices, told: Told::default(), slow: RefCell::default() })
    }

    /// Forgets addresses that are no longer any backend's.
    pub(super) fn retain(&self, backends: &[Backend]) {
        let named = |(service, transport, address): &Key| {
            backends.iter().any(|b| {
                b.service == service && b.transport == *transport && b.addresses.contains(address)
            })
        };
        self.told.retain(named);
        self.slow.borrow_mut().retain(|key, _| named(key));
    }

    /// Reports the state of an address: `error` ends a sentence that begins with the address.
    pub(super) fn tell(&self, backend: &Backend, address: SocketAddr, error: Option<String>) {
        let service = backend.service.clone();
        let key = (service.clone(), backend.transport, address);
        self.told.tell(key, error, std::time::Instant::now(), |error| {
            let subject = Subject::Backend;
            self.notices.tell(Notice { subject, service, address: Some(address), error })
        });
    }

    /// Tries each address once, to report silent ones at the start.
    pub(super) async fn try_each(&self, backend: &Backend) {
        for address in &backend.addresses {
            let error = match timeout(SILENCE, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    if backend.proxy_protocol {
                        // It has accepted: its own end does not concern the flows to come.
                        let _ = proxy_protocol::send(&stream, &proxy_protocol::LOCAL).await;
                    }
                    None
                }
                Ok(Err(e)) => Some(sentence(&e)),
                Err(_) => Some(silent(SILENCE)),
            };
            self.tell(backend, *address, error);
        }
    }

    /// A connection to the first address that accepts: each is tried a little after the one before,
    /// or at once after its refusal.
    pub(super) async fn connect(self: &Rc<Self>, backend: &Backend) -> Result<TcpStream, Refusal> {
        let end = Instant::now() + TOTAL;
        let mut refusal = Refusal::Unreachable;
        let mut waiting = self.in_order(backend).into_iter();
        let mut tried = Vec::new();
        let mut tries = JoinSet::new();
        loop {
            if let Some(address) = waiting.next() {
                tried.push(address);
                tries.spawn_local(attempt(self.clone(), backend.clone(), address));
            }
            let pause = if waiting.len() > 0 { Instant::now() + STAGGER } else { end };
            match timeout_at(end.min(pause), tries.join_next()).await {
                Ok(Some(Ok((address, Ok(stream))))) => {
                    tried.retain(|other| *other != address);
                    self.won(backend, address, &tried);
                    return Ok(stream);
                }
                Ok(Some(Ok((address, Err(e))))) => {
                    tried.retain(|other| *other != address);
                    self.tell(backend, address, Some(sentence(&e)));
                    if reason(&e) == Refusal::Refused {
                        refusal = Refusal::Refused;
                    }
                }
                // Only a defect ends a try without a result.
                Ok(Some(Err(_))) => {}
                Ok(None) => return Err(refusal),
                Err(_) if Instant::now() >= end => return Err(refusal),
                Err(_) => {}
            }
        }
    }

    /// The addresses in their order, with lately slow ones behind the others.
    fn in_order(&self, backend: &Backend) -> Vec<SocketAddr> {
        let mut slow = self.slow.borrow_mut();
        let now = Instant::now();
        slow.retain(|_, until| now < *until);
        let is_slow = |address: &SocketAddr| {
            !slow.is_empty()
                && slow.contains_key(&(backend.service.clone(), backend.transport, *address))
        };
        let (mut first, last): (Vec<_>, Vec<_>) =
            backend.addresses.iter().partition(|address| !is_slow(address));
        first.extend(last);
        first
    }

    /// `address` has accepted a connection, before the earlier tried `losers`.
    fn won(&self, backend: &Backend, address: SocketAddr, losers: &[SocketAddr]) {
        let until = Instant::now() + REMEMBERED;
        let key = |address| (backend.service.clone(), backend.transport, address);
        self.tell(backend, address, None);
        let mut slow = self.slow.borrow_mut();
        slow.remove(&key(address));
        for loser in losers {
            slow.insert(key(*loser), until);
            self.tell(backend, *loser, Some(silent(STAGGER)));
        }
    }
}

/// Connects to one address, and reports it when it takes long.
async fn attempt(
    health: Rc<Health>,
    backend: Backend,
    address: SocketAddr,
) -> (SocketAddr, io::Result<TcpStream>) {
    let mut connecting = std::pin::pin!(TcpStream::connect(address));
    let result = match timeout(SILENCE, &mut connecting).await {
        Ok(result) => result,
        Err(_) => {
            health.tell(&backend, address, Some(silent(SILENCE)));
            connecting.await
        }
    };
    (address, result)
}

/// The refusal that a client gets for this error of its application.
pub(super) fn reason(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Refusal::Refused,
        _ => Refusal::Unreachable,
    }
}

/// The end of a sentence that begins with the address.
pub(super) fn sentence(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused the connection".into(),
        _ => format!("cannot be reached: {error}"),
    }
}

fn silent(time: Duration) -> String {
    format!("did not answer within {} s", time.as_secs_f32())
}
