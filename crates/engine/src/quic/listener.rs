//! The state of a listening engine for new connections.

use std::sync::Arc;

use noq::ServerConfig;

use crate::{config::ListenConfig, quic::admission::Admission};

/// A server's endpoints, and their admission.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) config: ListenConfig,
    pub(crate) admission: Admission,
    pub(crate) endpoints: Vec<noq::Endpoint>,
    /// The settings of joins, if anybody can join.
    pub(crate) join: Option<Arc<ServerConfig>>,
}
