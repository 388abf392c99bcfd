//! Signaling of a server's connections: frames on QUIC streams, up to the control plane and down.
//!
//! A connection's task sleeps until its peer opens a stream (`streams.rs`), cuts what comes into frames
//! (`frames.rs`) and passes each up. Frames down wait in the connection's queues (`queue.rs`). A bad or
//! endless frame ends the stream, never the connection. Nothing here touches a packet.

pub(crate) mod backlog;
pub mod frames;
pub(crate) mod queue;
pub(crate) mod streams;

use std::time::Duration;

/// The application error code of a stream that is condemned.
pub(crate) const CONDEMNED: u32 = 0x5A;
/// The time that a frame may take from its first byte to its last.
pub(crate) const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for which a stream that the peer has finished can still be written to.
pub(crate) const LINGER: Duration = Duration::from_secs(16);
