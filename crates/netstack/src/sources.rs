//! Bounds of the flows of one source.

use std::{collections::HashMap, net::IpAddr, time::Instant};

use ztna_packet::bucket::Bucket;

use crate::config::Transport;

/// Flows by their source. A source stays while it has flows or has used some of its rate, so the
/// table is bounded by the flow table and the flows of the last second.
#[derive(Debug)]
pub(crate) struct Sources {
    known: HashMap<IpAddr, Source>,
    flows: usize,
    per_second: u32,
    burst: u32,
}

#[derive(Debug)]
struct Source {
    /// By transport.
    flows: [usize; 2],
    starts: Bucket,
}

impl Sources {
    pub(crate) fn new(flows: usize, per_second: u32, burst: u32) -> Self {
        Self { known: HashMap::new(), flows, per_second, burst }
    }

    /// Whether `source` may start a flow now; takes from its rate.
    pub(crate) fn may_start(&mut self, source: IpAddr, now: Instant) -> bool {
        let starts = Bucket::new(self.per_second, self.burst);
        let entry = self.known.entry(source).or_insert(Source { flows: [0; 2], starts });
        entry.starts.take(now)
    }

    /// Whether `source` is at its limit of flows.
    pub(crate) fn is_full(&self, source: IpAddr) -> bool {
        self.known.get(&source).is_some_and(|entry| entry.flows.iter().sum::<usize>() >= self.flows)
    }

    /// The number of flows of this transport that `source` has.
    pub(crate) fn held(&self, source: IpAddr, transport: Transport) -> usize {
        self.known.get(&source).map_or(0, |entry| entry.flows[transport as usize])
    }

    /// Counts one flow more of a source.
    pub(crate) fn begin(&mut self, source: IpAddr, transport: Transport) {
        if let Some(entry) = self.known.get_mut(&source) {
            entry.flows[transport as usize] += 1;
        }
    }

    /// Counts one flow less.
    pub(crate) fn end(&mut self, source: IpAddr, transport: Transport) {
        if let Some(entry) = self.known.get_mut(&source) {
            let flows = &mut entry.flows[transport as usize];
            *flows = flows.saturating_sub(1);
        }
    }

    /// Forgets sources without flows and with a full rate.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.known.retain(|_, source| source.flows != [0; 2] || !source.starts.is_full(now));
    }
}
