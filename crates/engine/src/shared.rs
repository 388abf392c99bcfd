//! Parts that all rooms of an engine thread use: counters, the outbox and the clock.

use std::{sync::Arc, time::Instant};

use crate::boundary::{counters::Counters, outbox::Outbox};

/// The counters, the outbox and the clock of one engine.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counters: Arc<Counters>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) started: Instant,
}
