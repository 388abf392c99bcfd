//! The book of reserved addresses of identities: first come, for good.

use std::{collections::HashMap, net::IpAddr};

/// Identities that have reserved addresses at the most; one more gets none.
pub const MAX_OWNERS: usize = 262_144;

/// The reserved addresses of identities, also of those that are away.
#[derive(Debug)]
pub(super) struct Book {
    /// The IPv4 and the IPv6 address.
    reserved: HashMap<[u8; 32], [Option<IpAddr>; 2]>,
    owners: HashMap<IpAddr, [u8; 32]>,
    open: bool,
}

impl Book {
    /// A book with the known entries. Unless it is `open` it takes no new one, since entries may be
    /// missing.
    pub(super) fn new(known: impl Iterator<Item = ([u8; 32], IpAddr)>, open: bool) -> Self {
        let mut book = Self { reserved: HashMap::new(), owners: HashMap::new(), open };
        for (key, address) in known {
            book.enter(key, address);
        }
        book
    }

    /// Whether identities that have no reserved address yet may be given one.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether there is room for one more identity.
    pub(super) fn has_room(&self, key: &[u8; 32]) -> bool {
        self.open && (self.reserved.len() < MAX_OWNERS || self.reserved.contains_key(key))
    }

    pub(super) fn reserved(&self, key: &[u8; 32]) -> [Option<IpAddr>; 2] {
        self.reserved.get(key).copied().unwrap_or_default()
    }

    /// Whether an address is reserved.
    pub(super) fn is_owned(&self, address: IpAddr) -> bool {
        self.owners.contains_key(&address)
    }

    /// Reserves an address for an identity, unless it is taken or the identity has one of its
    /// family.
    pub(super) fn enter(&mut self, key: [u8; 32], address: IpAddr) {
        if self.reserved.len() >= MAX_OWNERS && !self.reserved.contains_key(&key) {
            return;
        }
        if self.owners.contains_key(&address) {
            return;
        }
        self.owners.insert(address, key);
        self.reserved.entry(key).or_default()[usize::from(address.is_ipv6())]
            .get_or_insert(address);
    }
}
