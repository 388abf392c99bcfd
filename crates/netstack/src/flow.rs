//! Names of flows, and the table that holds them.

use std::{collections::HashMap, net::SocketAddr};

use ztna_packet::slots::{SlotId, Slots};

use crate::config::Transport;

/// The name of a flow for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId(SlotId);

/// The two ends of a flow, seen from this stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The transport.
    pub transport: Transport,
    /// The end that this stack stands for.
    pub local: SocketAddr,
    /// The end beyond the relay.
    pub remote: SocketAddr,
}

/// Flows by name and by ends. The caller bounds its size.
#[derive(Debug)]
pub(crate) struct FlowTable<T> {
    flows: Slots<(FlowKey, T)>,
    index: HashMap<FlowKey, FlowId>,
}

impl<T> Default for FlowTable<T> {
    fn default() -> Self {
        Self { flows: Slots::default(), index: HashMap::new() }
    }
}

impl<T> FlowTable<T> {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn insert(&mut self, key: FlowKey, flow: T) -> FlowId {
        let id = FlowId(self.flows.insert((key, flow)));
        self.index.insert(key, id);
        id
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<(FlowKey, T)> {
        let (key, flow) = self.flows.remove(id.0)?;
        self.index.remove(&key);
        Some((key, flow))
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.index.get(key).copied()
    }

    pub(crate) fn contains(&self, id: FlowId) -> bool {
        self.flows.get(id.0).is_some()
    }

    pub(crate) fn key(&self, id: FlowId) -> Option<FlowKey> {
        self.flows.get(id.0).map(|(key, _)| *key)
    }

    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<(&FlowKey, &mut T)> {
        self.flows.get_mut(id.0).map(|(key, flow)| (&*key, flow))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, &FlowKey, &T)> {
        self.flows.iter().map(|(id, (key, flow))| (FlowId(id), key, flow))
    }
}
