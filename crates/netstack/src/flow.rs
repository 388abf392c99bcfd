//! Names of flows, and the table that holds them.

use std::{collections::HashMap, net::SocketAddr};

use crate::config::Transport;

/// Names one flow for its whole life: a slot and how many flows have had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    slot: u32,
    generation: u32,
}

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

/// Flows by name and by ends. Its size is the caller's to bound.
#[derive(Debug)]
pub(crate) struct FlowTable<T> {
    slots: Vec<(u32, Option<(FlowKey, T)>)>,
    free: Vec<u32>,
    index: HashMap<FlowKey, FlowId>,
}

impl<T> Default for FlowTable<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), index: HashMap::new() }
    }
}

impl<T> FlowTable<T> {
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn insert(&mut self, key: FlowKey, flow: T) -> FlowId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.0 = entry.0.wrapping_add(1);
        entry.1 = Some((key, flow));
        let id = FlowId { slot, generation: entry.0 };
        self.index.insert(key, id);
        id
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<(FlowKey, T)> {
        let (generation, entry) = self.slots.get_mut(id.slot as usize)?;
        if *generation != id.generation {
            return None;
        }
        let (key, flow) = entry.take()?;
        self.free.push(id.slot);
        self.index.remove(&key);
        Some((key, flow))
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.index.get(key).copied()
    }

    pub(crate) fn contains(&self, id: FlowId) -> bool {
        let slot = self.slots.get(id.slot as usize);
        slot.is_some_and(|(generation, entry)| *generation == id.generation && entry.is_some())
    }

    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<(&FlowKey, &mut T)> {
        let (generation, entry) = self.slots.get_mut(id.slot as usize)?;
        let (key, flow) = entry.as_mut().filter(|_| *generation == id.generation)?;
        Some((key, flow))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, &FlowKey, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, (generation, entry))| {
            let (key, flow) = entry.as_ref()?;
            Some((FlowId { slot: slot as u32, generation: *generation }, key, flow))
        })
    }
}
