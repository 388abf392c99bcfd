//! What a listening engine keeps for the connections to come.

use crate::{config::ListenConfig, quic::admission::Admission};

/// A server's endpoints, and whom they let in.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) config: ListenConfig,
    pub(crate) admission: Admission,
    pub(crate) endpoints: Vec<noq::Endpoint>,
}
