//! The part of the engine under test, taken file by file: without QUIC and TLS a target builds in
//! seconds, and no C code has to be built with sanitizers. It has the engine's name so that the
//! models of the engine's tests can be used as they are.
#![allow(rustdoc::broken_intra_doc_links)]

#[path = "../../crates/packet/src/checksum.rs"]
pub mod checksum;
#[path = "../../crates/engine/src/classify.rs"]
pub mod classify;
#[path = "../../crates/engine/src/event.rs"]
pub mod event;
#[path = "../../crates/engine/src/flow.rs"]
pub mod flow;
#[path = "../../crates/packet/src/icmp.rs"]
pub mod icmp;
#[path = "../../crates/engine/src/nat/mod.rs"]
pub mod nat;
#[path = "../../crates/packet/src/packet.rs"]
pub mod packet;
#[path = "../../crates/engine/src/pool.rs"]
pub mod pool;
#[path = "../../crates/engine/src/service_address/networks.rs"]
#[allow(dead_code)]
pub mod service_address;
#[path = "../../crates/packet/src/translate.rs"]
pub mod translate;
#[path = "../../crates/engine/src/tunnel"]
pub mod tunnel {
    pub mod config;
}
