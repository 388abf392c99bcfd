//! Slow and simple counterparts of what the engine does fast, shared by the property tests and the
//! fuzz targets. Nothing here calls the code it judges, except for the order of a pool's addresses.
#![allow(dead_code)]

pub mod nat_model;
pub mod packets;
pub mod udp;
