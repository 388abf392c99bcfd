//! Parts that the relay and the tunnels share: views of IP packets, checksums, address translation,
//! ICMP answers, token buckets, tables and counters. No IO, no clock, no dependency.
#![forbid(unsafe_code)]

pub mod bucket;
pub mod checksum;
pub mod counter;
pub mod icmp;
pub mod packet;
pub mod slots;
pub mod translate;
