//! The daemon's side of a client's receive queue, and of the ring of a shared one.
use rnic_abi::{MAX_SGE, Sge, Wqe};
use rnic_transport::{Access, KeyError, RecvWqe};

use super::{
    queue::{
        QueueError, Ring, Segments, Unit, check_extent, part_of, resolve_sges, sge, single_entry,
        total_length,
    },
    records::Cursor,
};
use crate::mem::{MrTable, RemoteRange};

/// Units of a receive WQE with the most entries.
pub const RECV_UNITS: usize = Wqe::units_for_sges(MAX_SGE) as usize;

/// A receive queue: the client's ring. The private copy of the WQE in progress stands in the QP's record.
pub struct RecvQueue {
    ring: Ring,
}

/// A receive WQE that was copied and checked.
#[derive(Copy, Clone, Debug)]
pub struct AcceptedRecv {
    /// From the WQE.
    pub wr_id: u64,
    /// Bytes its entries hold together.
    pub capacity: u32,
}

impl RecvQueue {
    /// The queue over a ring. Control thread.
    pub fn new(ring: Ring) -> Self {
        RecvQueue { ring }
    }

    /// Units posted and not yet taken.
    #[inline]
    pub fn available(&self, cursor: &Cursor) -> Result<u32, QueueError> {
        self.ring.available(cursor)
    }

    /// As [`RecvQueue::take`], of a ring each of whose WQEs has `stride` units, however few its entries need.
    #[inline]
    pub fn take_strided(
        &self,
        cursor: &mut Cursor,
        current: &mut [Unit; RECV_UNITS],
        stride: u32,
    ) -> Result<Option<AcceptedRecv>, QueueError> {
        let available = self.ring.available(cursor)?;
        if available == 0 {
            return Ok(None);
        }
        self.ring.copy_unit(cursor.next, &mut current[0]);
        let wqe = *current[0].head();
        if u32::from(wqe.units) != stride || stride > available {
            return Err(QueueError::Forged);
        }
        for i in 1..stride.min(RECV_UNITS as u32) {
            self.ring
                .copy_unit(cursor.next.wrapping_add(i), &mut current[i as usize]);
        }
        self.ring.take(cursor, stride);
        let needed = Wqe::units_for_sges(wqe.num_sge.into());
        let plain = wqe.flags == 0 && wqe.opcode == 0 && needed <= stride;
        // The copy is a WQE like any other.
        let wqe = Wqe {
            units: needed as u8,
            ..wqe
        };
        current[0] = zerocopy::transmute!(wqe);
        total_length(&wqe, |i| &current[i as usize])
            .filter(|_| plain)
            .map(|capacity| {
                Some(AcceptedRecv {
                    wr_id: wqe.wr_id,
                    capacity,
                })
            })
            .ok_or(QueueError::Malformed { wr_id: wqe.wr_id })
    }

    /// The `wr_id` and the only entry of the next WQE, if that is all there is to it: read once, and left where it is.
    #[inline]
    pub fn peek_single(&self, cursor: &Cursor) -> Option<(u64, Sge)> {
        if self.ring.available(cursor).ok()? == 0 {
            return None;
        }
        let wqe = self.ring.wqe(cursor.next);
        single_entry(&wqe).map(|entry| (wqe.wr_id, *entry))
    }

    /// Takes the WQE that was looked at last.
    #[inline]
    pub fn take_single(&self, cursor: &mut Cursor) {
        self.ring.take(cursor, 1);
    }

    /// Copies the next WQE to `current`; one is in progress at a time.
    #[inline]
    pub fn take(
        &self,
        cursor: &mut Cursor,
        current: &mut [Unit; RECV_UNITS],
    ) -> Result<Option<AcceptedRecv>, QueueError> {
        let available = self.ring.available(cursor)?;
        if available == 0 {
            return Ok(None);
        }
        let first = cursor.next;
        self.ring.copy_unit(first, &mut current[0]);
        let wqe = current[0].head();
        let wr_id = wqe.wr_id;
        if let Some(entry) = single_entry(wqe) {
            let capacity = entry.length;
            self.ring.take(cursor, 1);
            return Ok(Some(AcceptedRecv { wr_id, capacity }));
        }
        let count = check_extent(wqe, available, self.ring.depth())?;
        if count as usize > RECV_UNITS || wqe.flags != 0 || wqe.opcode != 0 {
            self.ring.take(cursor, count);
            return Err(QueueError::Malformed { wr_id });
        }
        for i in 1..count {
            self.ring
                .copy_unit(first.wrapping_add(i), &mut current[i as usize]);
        }
        self.ring.take(cursor, count);
        match total_length(current[0].head(), |i| &current[i as usize]) {
            Some(capacity) => Ok(Some(AcceptedRecv { wr_id, capacity })),
            None => Err(QueueError::Malformed { wr_id }),
        }
    }

    /// Whether the private copy of the WQE in progress is what was accepted once.
    pub fn is_sound(current: &[Unit; RECV_UNITS], wqe: &RecvWqe) -> bool {
        let head = current[0].head();
        check_extent(head, RECV_UNITS as u32, RECV_UNITS as u32).is_ok()
            && total_length(head, |i| &current[i as usize]) == Some(wqe.capacity)
    }

    /// Resolves the bytes `offset..offset + len` of the WQE in progress, if they are one part of its only entry.
    #[inline]
    pub fn segment(
        current: &[Unit; RECV_UNITS],
        mrs: &MrTable,
        pd: u32,
        offset: u32,
        len: u32,
    ) -> Option<RemoteRange> {
        let entry = single_entry(current[0].head())?;
        part_of(entry, mrs, (pd, Access::LOCAL_WRITE), offset, len)
    }

    /// Adds the bytes `offset..offset + len` of the WQE in progress to `segments`, which is empty.
    #[inline]
    pub fn segments(
        current: &[Unit; RECV_UNITS],
        mrs: &MrTable,
        pd: u32,
        offset: u32,
        len: u32,
        segments: &mut Segments,
    ) -> Result<(), KeyError> {
        let count = usize::from(current[0].head().num_sge);
        let entry = |i| sge(|unit| &current[unit as usize], i);
        resolve_sges(
            mrs,
            (pd, Access::LOCAL_WRITE),
            count,
            entry,
            offset,
            len,
            segments,
        )
    }

    /// Forgets what was posted (RESET).
    pub fn discard(&self, cursor: &mut Cursor) {
        self.ring.discard(cursor);
    }

    /// Asks to be kicked (a QP in error flushes what is posted later) and tells whether nothing is there now.
    #[inline]
    pub fn release(&self, cursor: &Cursor) -> bool {
        self.ring.release(cursor)
    }
}
