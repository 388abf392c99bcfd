//! Settings by their names, so that their users need not list them again.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// A setting of some configuration, to be read or replaced.
#[derive(Debug)]
pub enum Setting<'a> {
    /// Yes or no.
    Flag(&'a mut bool),
    /// A number up to 65,535.
    U16(&'a mut u16),
    /// A number below 2^32.
    U32(&'a mut u32),
    /// A number below 2^64.
    U64(&'a mut u64),
    /// A count, or a number of bytes.
    Size(&'a mut usize),
    /// A time; its name ends in `_ms`.
    Time(&'a mut Duration),
    /// An IPv4 address.
    V4(&'a mut Ipv4Addr),
    /// An IPv6 address.
    V6(&'a mut Ipv6Addr),
    /// An IPv4 network.
    NetworkV4(&'a mut (Ipv4Addr, u8)),
    /// An IPv6 network.
    NetworkV6(&'a mut (Ipv6Addr, u8)),
}

/// The settings of `T`: each with its name, and where it is kept.
pub type Settings<T> = &'static [(&'static str, fn(&mut T) -> Setting<'_>)];
