//! The way back for packets that went past the relay.
//!
//! An agent that was introduced to a connector sends to it directly, with the inner address it uses
//! itself. A connector of version 1 answers through the relay, which leased that address to nobody, or
//! to another agent. Where nobody else can be meant, the address is bound to the agent for what comes
//! from this connector. Only packets that no lease leads back come here.

use std::{collections::VecDeque, net::IpAddr, time::Instant};

use rustc_hash::FxHashMap;

use crate::boundary::event::ConnId;

/// Agents introduced to one connector at the most.
pub const MAX_INTRODUCED: usize = 64;

/// Why an agent and a connector cannot be introduced to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The connector knows the agent by other inner addresses than the agent itself.
    Translated,
    /// Answers to the agent could be another agent's, or the connector has too many agents.
    Ambiguous,
    /// Addresses are not translated: the way back is learned from packets, and none would pass.
    Learned,
}

impl Conflict {
    /// A stable word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Translated => "translated",
            Self::Ambiguous => "ambiguous",
            Self::Learned => "learned",
        }
    }
}

/// The receiver of a packet without a lease for its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// This agent and no other.
    Of(ConnId),
    /// One of several.
    Ambiguous,
}

/// Which agents were introduced to which connectors, and the addresses bound since.
#[derive(Debug, Default)]
pub(super) struct Introductions {
    pub(super) connectors: FxHashMap<ConnId, Connector>,
    /// The connectors that each agent is introduced to.
    pub(super) agents: FxHashMap<ConnId, Vec<ConnId>>,
    /// Places held, in the order in which they end.
    pub(super) holds: VecDeque<(Instant, ConnId, ConnId)>,
    /// When an introduced agent last left of whose addresses none was known.
    pub(super) unseen: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Connector {
    /// No agent's packet reached it before.
    pub(super) since: Instant,
    /// When it was last left by an agent that it may still answer at an address of the agent's own choice.
    pub(super) left: Option<Instant>,
    /// When it was last left by an introduced agent that it may still answer at an address that it was
    /// not leased.
    pub(super) departed: Option<Instant>,
    /// When it was last not known which of its agents uses which address.
    pub(super) contested: Option<Instant>,
    pub(super) introduced: Vec<Introduced>,
}

#[derive(Debug)]
pub(super) struct Introduced {
    pub(super) agent: ConnId,
    /// Until when its place is held; `None` since it was introduced.
    pub(super) held: Option<Instant>,
    pub(super) bound: Vec<IpAddr>,
}

impl Introductions {
    pub(super) fn of(&self, connector: ConnId, agent: ConnId) -> Option<&Introduced> {
        self.connectors.get(&connector)?.introduced.iter().find(|i| i.agent == agent)
    }

    pub(super) fn of_mut(&mut self, connector: ConnId, agent: ConnId) -> Option<&mut Introduced> {
        self.connectors.get_mut(&connector)?.introduced.iter_mut().find(|i| i.agent == agent)
    }

    /// The introduction of the two, made now if there is room for it.
    pub(super) fn enter(&mut self, connector: ConnId, agent: ConnId) -> Option<&mut Introduced> {
        let introduced = &mut self.connectors.get_mut(&connector)?.introduced;
        if let Some(at) = introduced.iter().position(|i| i.agent == agent) {
            return introduced.get_mut(at);
        }
        if introduced.len() >= MAX_INTRODUCED {
            return None;
        }
        self.agents.entry(agent).or_default().push(connector);
        introduced.push(Introduced { agent, held: None, bound: Vec::new() });
        introduced.last_mut()
    }

    pub(super) fn take(&mut self, connector: ConnId, agent: ConnId) -> Option<Introduced> {
        let introduced = &mut self.connectors.get_mut(&connector)?.introduced;
        let at = introduced.iter().position(|i| i.agent == agent)?;
        if let Some(connectors) = self.agents.get_mut(&agent) {
            connectors.retain(|other| *other != connector);
            if connectors.is_empty() {
                self.agents.remove(&agent);
            }
        }
        Some(introduced.swap_remove(at))
    }
}
