//! The part of the engine under test, taken file by file: without QUIC and TLS a target builds in
//! seconds, and no C code has to be built with sanitizers. It has the engine's name so that the
//! models of the engine's tests can be used as they are.
#![allow(rustdoc::broken_intra_doc_links)]

#[path = "../../crates/engine/src/boundary"]
pub mod boundary {
    pub mod event;
}
#[path = "../../crates/packet/src/checksum.rs"]
pub mod checksum;
#[path = "../../crates/packet/src/icmp.rs"]
pub mod icmp;
#[path = "../../crates/packet/src/packet.rs"]
pub mod packet;
#[path = "../../crates/engine/src/relay"]
#[allow(dead_code)]
pub mod relay {
    pub mod classify;
    pub mod nat;
    #[path = "service_address/networks.rs"]
    pub mod service_address;
}
#[path = "../../crates/engine/src/signaling/frames.rs"]
pub mod frames;
#[path = "../../crates/packet/src/translate.rs"]
pub mod translate;
#[path = "../../crates/engine/src/tunnel"]
pub mod tunnel {
    pub mod config;
}

pub use boundary::event;
pub use relay::{classify, nat, nat::flow};
pub use ztna_packet::slots;
