//! Whether a connection attempt may go on: accept | retry | refuse | ignore.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use crate::{bucket::Bucket, config::ListenConfig};

/// Sources whose rate is remembered at once.
const MAX_SOURCES: usize = 65_536;

/// What becomes of a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may start a handshake.
    Accept,
    /// Its source must prove its address first.
    Retry,
    /// It is told to go away: its source is over its rate.
    RefuseRate,
    /// It is told to go away: the server is full or draining.
    RefuseFull,
    /// It gets no answer, so that it tries again by itself.
    Ignore,
}

/// The facts a verdict rests on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) remote: SocketAddr,
    /// The source has shown a good Retry token.
    pub(crate) validated: bool,
    pub(crate) connections: usize,
    pub(crate) half_open: usize,
    /// The control plane is behind with its events.
    pub(crate) congested: bool,
}

/// The limits, and how fast each source has been knocking.
#[derive(Debug)]
pub(crate) struct Admission {
    retry: bool,
    max_connections: usize,
    max_half_open: usize,
    per_source: Bucket,
    sources: HashMap<IpAddr, Bucket>,
    /// `false` while the server drains.
    pub(crate) accepting: bool,
}

impl Admission {
    pub(crate) fn new(config: &ListenConfig) -> Self {
        Self {
            retry: config.retry,
            max_connections: config.max_connections,
            max_half_open: config.max_half_open,
            per_source: Bucket::new(
                config.handshakes_per_source,
                config.handshake_burst_per_source,
            ),
            sources: HashMap::new(),
            accepting: true,
        }
    }

    /// Decides. Only an attempt that would be accepted counts against its source, and behind a
    /// Retry only a source that is really there: nobody can use up another's rate.
    pub(crate) fn decide(&mut self, attempt: Attempt, now: Instant) -> Verdict {
        if !self.accepting || attempt.connections >= self.max_connections {
            return Verdict::RefuseFull;
        }
        if attempt.congested {
            return Verdict::Ignore;
        }
        if self.retry && !attempt.validated {
            return Verdict::Retry;
        }
        if attempt.half_open >= self.max_half_open {
            return Verdict::RefuseFull;
        }
        if !self.within_rate(prefix(attempt.remote.ip()), now) {
            return Verdict::RefuseRate;
        }
        Verdict::Accept
    }

    fn within_rate(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, bucket| !bucket.is_full(now));
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        self.sources.entry(source).or_insert(self.per_source).take(now)
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /56 as handed to one site.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 72 << 72).into()),
        v4 => v4,
    }
}
