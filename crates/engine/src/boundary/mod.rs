//! Everything that crosses between the control plane and the engine.

pub(crate) mod command;
pub mod counters;
pub mod event;
pub(crate) mod limits;
pub(crate) mod outbox;
