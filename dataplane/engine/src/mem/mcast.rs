//! Multicast: which QPs are attached to which group of which port (IBTA 10.5.2).
//!
//! Written by the control thread while cores look: an attachment is found, or is not yet or no longer.
use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;

use super::snapshot::Snapshot;

/// QPs attached to a group of a port, at most: a frame is copied to each of them.
pub const MAX_MCAST_QP_ATTACH: usize = 64;
/// Attachments of the daemon, at most.
pub const MAX_TOTAL_MCAST_QP_ATTACH: usize = 1024;

/// Set in the third word of an attachment that there is; beside it stand port and QPN.
const ATTACHED: u64 = 1 << 63;
const PORT_SHIFT: u32 = 32;

/// An attachment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Port by which its frames come.
    pub port: u16,
    /// The group's address.
    pub mgid: [u8; 16],
    /// The QP.
    pub qpn: u32,
}

/// All attachments.
pub struct McastTable {
    /// Entries that were ever used.
    len: AtomicU32,
    entries: Box<[Snapshot<3>]>,
}

impl Default for McastTable {
    fn default() -> Self {
        let entries = (0..MAX_TOTAL_MCAST_QP_ATTACH).map(|_| Snapshot::default());
        McastTable {
            len: AtomicU32::new(0),
            entries: entries.collect(),
        }
    }
}

impl McastTable {
    /// Attaches a QP that is not attached to this group yet. Control thread; `false` when there is no room, in the group
    /// or at all.
    pub fn attach(&self, attachment: &Attachment) -> bool {
        let Attachment { port, mgid, .. } = attachment;
        if self.attached(*port, mgid).is_full() {
            return false;
        }
        let free = |entry: &Snapshot<3>| entry.load().is_some_and(|[.., last]| last & ATTACHED == 0);
        let Some(at) = self.entries.iter().position(free) else {
            return false;
        };
        self.entries[at].store(&pack(attachment));
        // Release: whoever looks at so many finds it.
        self.len.fetch_max(at as u32 + 1, Ordering::Release);
        true
    }

    /// Undoes it. Control thread; `false` when it was not attached.
    pub fn detach(&self, attachment: &Attachment) -> bool {
        let words = pack(attachment);
        let found = self.entries.iter().find(|entry| entry.load() == Some(words));
        found.inspect(|entry| entry.store(&[0; 3])).is_some()
    }

    /// The QPs attached to a group of a port. Any thread, without waiting.
    #[inline]
    pub fn attached(&self, port: u16, mgid: &[u8; 16]) -> ArrayVec<u32, MAX_MCAST_QP_ATTACH> {
        let [high, low, place] = pack(&Attachment {
            port,
            mgid: *mgid,
            qpn: 0,
        });
        let len = self.len.load(Ordering::Acquire) as usize;
        let mut found = ArrayVec::new();
        for [a, b, last] in self.entries.iter().take(len).filter_map(Snapshot::load) {
            if (a, b, last & !0xFF_FFFF) == (high, low, place)
                && found.try_push(last as u32 & 0xFF_FFFF).is_err()
            {
                break;
            }
        }
        found
    }
}

fn pack(attachment: &Attachment) -> [u64; 3] {
    let mgid = u128::from_be_bytes(attachment.mgid);
    let place = u64::from(attachment.port) << PORT_SHIFT;
    [
        (mgid >> 64) as u64,
        mgid as u64,
        ATTACHED | place | u64::from(attachment.qpn & 0xFF_FFFF),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(port: u16, group: u8, qpn: u32) -> Attachment {
        let mgid = [group; 16];
        Attachment { port, mgid, qpn }
    }

    #[test]
    fn a_group_of_a_port_has_the_qps_that_were_attached_and_not_detached() {
        let table = McastTable::default();
        let all = [(0, 1, 7), (0, 1, 8), (1, 1, 9), (0, 2, 10)].map(|(p, g, q)| attachment(p, g, q));
        assert!(all.iter().all(|one| table.attach(one)));
        assert_eq!(table.attached(0, &[1; 16])[..], [7, 8]);
        assert!(table.detach(&all[0]) && !table.detach(&all[0]));
        assert_eq!(table.attached(0, &[1; 16])[..], [8]);
        assert!(table.attach(&attachment(0, 1, 11)));
        assert_eq!(
            table.attached(0, &[1; 16])[..],
            [11, 8],
            "the place is used again"
        );
        assert_eq!(table.attached(1, &[1; 16])[..], [9]);
        assert!(table.attached(2, &[1; 16]).is_empty());
    }

    #[test]
    fn a_group_has_room_for_so_many_and_others_for_more() {
        let table = McastTable::default();
        for qpn in 0..MAX_MCAST_QP_ATTACH as u32 {
            assert!(table.attach(&attachment(0, 1, qpn)));
        }
        assert!(!table.attach(&attachment(0, 1, 99)));
        assert!(table.attach(&attachment(0, 2, 99)));
    }
}
