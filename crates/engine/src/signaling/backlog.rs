//! Bytes of unfinished frames of all connections, bounded together.

use std::collections::{BTreeSet, HashMap};

use crate::boundary::event::ConnId;

/// The most bytes that unfinished frames of all connections may hold.
pub const MAX_BACKLOG: usize = 16 * 1024 * 1024;

/// How much each connection's unfinished frame holds.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    total: usize,
    by_connection: HashMap<ConnId, usize>,
    by_size: BTreeSet<(usize, ConnId)>,
}

impl Backlog {
    /// Notes how many bytes a connection's unfinished frame holds now. Returns the connection with the
    /// largest one where all of them are too many.
    pub(crate) fn set(&mut self, conn: ConnId, bytes: usize) -> Option<ConnId> {
        if let Some(before) = self.by_connection.remove(&conn) {
            self.by_size.remove(&(before, conn));
            self.total -= before;
        }
        if bytes > 0 {
            self.by_connection.insert(conn, bytes);
            self.by_size.insert((bytes, conn));
            self.total += bytes;
        }
        let largest = self.by_size.last().map(|(_, conn)| *conn);
        largest.filter(|_| self.total > MAX_BACKLOG)
    }
}

#[cfg(test)]
impl Backlog {
    pub(crate) fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_the_largest_is_named() {
        let mut backlog = Backlog::default();
        let frame = 64 * 1024;
        for conn in 0..256 {
            assert_eq!(backlog.set(ConnId(conn), frame), None, "{conn}");
        }
        assert_eq!(backlog.set(ConnId(7), frame + 1), Some(ConnId(7)));
        assert_eq!(backlog.set(ConnId(7), 0), None);
        assert_eq!(backlog.set(ConnId(7), 0), None, "as before");
        assert_eq!(backlog.set(ConnId(900), frame), None);
        assert_eq!((backlog.total, backlog.by_size.len()), (MAX_BACKLOG, 256));
    }
}
