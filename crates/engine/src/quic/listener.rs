//! The state of a listening engine for new connections.

use crate::{config::ListenConfig, quic::admission::Admission};

/// A server's endpoints, and their admission.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) config: ListenConfig,
    pub(crate) admission: Admission,
    pub(crate) endpoints: Vec<noq::Endpoint>,
}
