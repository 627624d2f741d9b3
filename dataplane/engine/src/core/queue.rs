//! The daemon's side of a client's rings, whose producer is hostile, and of its send queues.
//!
//! A WQE is read once and validated as it was read; what the client does to it afterwards has no effect. Indices are private; the words in shared memory are only told (`head`) or asked (`tail`).
use std::{
    ptr::NonNull,
    sync::{Arc, atomic::Ordering},
};

use arrayvec::ArrayVec;
use rnic_abi::{MAX_SGE, RingIndices, Sge, WQE_UNIT, Wqe, XrcUnit, protocol, wqe_flags};
use rnic_transport::{Access, KeyError, SendWr, WrOpcode};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    qp::{PREFETCHED, prefetch_lines},
    records::Cursor,
};
use crate::{
    arena::{ArenaError, ArenaSlice},
    mem::{ClientMem, MrTable, RemoteRange, SharedQueue},
};

/// Parts a payload can be in: one for each SGE, or for each unit of inline data.
pub type Segments = ArrayVec<RemoteRange, MAX_SGE>;

/// 64 bytes of a WQE.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Unit([u8; WQE_UNIT]);

impl Unit {
    /// Nothing.
    pub const ZERO: Unit = Unit([0; WQE_UNIT]);

    /// The same bytes as the first unit of a WQE.
    #[inline]
    pub fn head(&self) -> &Wqe {
        zerocopy::transmute_ref!(self)
    }

    #[inline]
    fn sges(&self) -> &[Sge; 4] {
        zerocopy::transmute_ref!(self)
    }
}

/// What a ring's indices or a WQE can have wrong.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// `tail - head` exceeds the depth, or a WQE claims units that are not there: the ring is lost.
    #[error("the queue's tail or a WQE's unit count was forged")]
    Forged,
    /// The WQE is malformed, but its extent is known: it alone is lost.
    #[error("malformed WQE")]
    Malformed {
        /// From the WQE.
        wr_id: u64,
    },
}

/// Why a queue cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The slice leaves the region, is misaligned, or its depth is no power of two.
    #[error("queue slice at {offset} with depth {depth} does not fit the region of {region} bytes")]
    Slice {
        /// Offset of the slice.
        offset: u64,
        /// Units or entries.
        depth: u32,
        /// Length of the region.
        region: usize,
    },
    /// There is no such core.
    #[error("there is no poll core {0}")]
    NoCore(u32),
    /// A queue is to be made, and the region it is to stand in is not given.
    #[error("a QP that has queues needs the region of a client")]
    NoRegion,
    /// There is no room for its records.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// The client's ring, as a [`Cursor`] describes it.
pub struct Ring(SharedQueue);

impl Ring {
    pub fn new(mem: &Arc<ClientMem>, cursor: &Cursor) -> Result<Self, InitError> {
        let Cursor { offset, depth, .. } = *cursor;
        let shared = SharedQueue::new(mem, offset, depth);
        shared.map(Ring).ok_or(InitError::Slice {
            offset,
            depth,
            region: mem.len(),
        })
    }

    #[inline]
    pub(super) fn depth(&self) -> u32 {
        self.0.depth()
    }

    /// Units posted and not yet taken.
    #[inline]
    pub(super) fn available(&self, cursor: &Cursor) -> Result<u32, QueueError> {
        protocol::available(&self.0.tail(), cursor.next, self.depth()).ok_or(QueueError::Forged)
    }

    #[inline]
    pub(super) fn copy_unit(&self, index: u32, into: &mut Unit) {
        into.0 = zerocopy::transmute!(self.0.unit(index));
    }

    /// The first unit of a WQE.
    #[inline]
    pub(super) fn wqe(&self, index: u32) -> Wqe {
        zerocopy::transmute!(self.0.unit(index))
    }

    /// Forgets what was posted.
    pub(super) fn discard(&self, cursor: &mut Cursor) {
        cursor.next = self.0.tail().load(Ordering::Acquire);
        protocol::give_back(&self.0.head(), cursor.next);
    }

    #[inline]
    pub(super) fn take(&self, cursor: &mut Cursor, units: u32) {
        cursor.next = cursor.next.wrapping_add(units);
        protocol::give_back(&self.0.head(), cursor.next);
    }

    /// Asks to be kicked and tells whether nothing was posted since.
    #[inline]
    pub(super) fn release(&self, cursor: &Cursor) -> bool {
        protocol::drop_queue(&self.0.tail(), cursor.next, &self.0.need_kick())
    }
}

/// Checks the first unit against what is available.
pub(super) fn check_extent(wqe: &Wqe, available: u32, depth: u32) -> Result<u32, QueueError> {
    let units = u32::from(wqe.units);
    if units == 0 || units > Wqe::MAX_UNITS || units > available || units > depth {
        return Err(QueueError::Forged);
    }
    Ok(units)
}

/// The entries of a WQE whose units are `unit(0..)`.
#[inline]
pub(super) fn sge<'a>(unit: impl Fn(u32) -> &'a Unit, i: usize) -> Sge {
    match i.checked_sub(rnic_abi::SGES_IN_HEAD) {
        None => unit(0).head().sges[i],
        Some(rest) => unit(1 + (rest / 4) as u32).sges()[rest % 4],
    }
}

/// The only entry of a receive WQE that has one, and nothing out of the ordinary.
#[inline]
pub(super) fn single_entry(wqe: &Wqe) -> Option<&Sge> {
    let plain =
        wqe.units == 1 && wqe.num_sge == 1 && wqe.flags == 0 && wqe.opcode == 0 && wqe.inline_len == 0;
    Some(&wqe.sges[0]).filter(|entry| plain && entry.length <= 1 << 31)
}

/// Whether its last unit is an [`XrcUnit`].
fn is_xrc(wqe: &Wqe) -> bool {
    wqe.flags & wqe_flags::XRC != 0
}

/// Sum of the entries' lengths, when the WQE is well-formed.
#[inline]
pub(super) fn total_length<'a>(wqe: &Wqe, unit: impl Fn(u32) -> &'a Unit) -> Option<u32> {
    if wqe.flags & !(wqe_flags::ALL | wqe_flags::XRC) != 0 {
        return None;
    }
    let units = u32::from(wqe.units) - u32::from(is_xrc(wqe));
    if wqe.flags & wqe_flags::INLINE != 0 {
        let len = wqe.inline_len as usize;
        let fits = wqe.num_sge == 0 && len <= rnic_abi::MAX_INLINE && Wqe::units_for_inline(len) == units;
        return fits.then_some(wqe.inline_len);
    }
    let count = usize::from(wqe.num_sge);
    if count > MAX_SGE || wqe.inline_len != 0 || Wqe::units_for_sges(count) != units {
        return None;
    }
    let total: u64 = (0..count).map(|i| u64::from(sge(&unit, i).length)).sum();
    (total <= 1 << 31).then_some(total as u32)
}

/// The entry that a work request holds, of whose WQE there is no private copy.
#[inline]
fn entry_of(wr: &SendWr) -> Sge {
    Sge {
        addr: wr.compare_add,
        length: wr.length,
        lkey: wr.swap as u32,
    }
}

/// Has a SEND, WRITE or READ hold the only entry of its WQE.
#[inline]
pub fn hold_entry(wr: &mut SendWr, entry: &Sge) {
    (wr.compare_add, wr.swap) = (entry.addr, entry.lkey.into());
    wr.has_entry = true;
}

/// Resolves the bytes `offset..offset + len` of an entry; `None` where they are not all of it, or may not be used.
#[inline]
pub(super) fn part_of(
    entry: &Sge,
    mrs: &MrTable,
    (pd, access): (u32, Access),
    offset: u32,
    len: u32,
) -> Option<RemoteRange> {
    if offset.checked_add(len)? > entry.length {
        return None;
    }
    let addr = entry.addr.checked_add(u64::from(offset))?;
    mrs.resolve(entry.lkey, pd, addr, u64::from(len), access).ok()
}

/// Resolves the bytes `offset..offset + len` of a list of `count` entries, and adds them to `segments`.
#[inline]
pub(super) fn resolve_sges(
    mrs: &MrTable,
    (pd, access): (u32, Access),
    count: usize,
    entry: impl Fn(usize) -> Sge,
    mut offset: u32,
    mut len: u32,
    segments: &mut Segments,
) -> Result<(), KeyError> {
    for i in 0..count {
        if len == 0 {
            break;
        }
        let entry = entry(i);
        if offset >= entry.length {
            offset -= entry.length;
            continue;
        }
        let part = (entry.length - offset).min(len);
        let addr = entry.addr.checked_add(u64::from(offset)).ok_or(KeyError::Range)?;
        segments.push(mrs.resolve(entry.lkey, pd, addr, u64::from(part), access)?);
        offset = 0;
        len -= part;
    }
    if len == 0 { Ok(()) } else { Err(KeyError::Range) }
}

/// A send WQE that was copied and checked.
#[derive(Copy, Clone, Debug)]
pub struct Accepted {
    /// Index of the first unit in the private ring: the `data` of the work request.
    pub data: u32,
    /// Bytes of the message.
    pub length: u32,
    /// The XRC SRQ it is for, of an XRC initiator.
    pub remote_srqn: Option<u32>,
}

/// Whether a WQE of a message of `length` bytes has the entries that its operation needs.
#[inline]
pub fn suits(wqe: &Wqe, length: u32, opcode: WrOpcode) -> bool {
    // What stores into its buffers: inline data is no place for that.
    let stores = wqe.flags & wqe_flags::INLINE == 0;
    match opcode {
        // There is nothing for it to send. Operands of two of them stand where the second entry would.
        WrOpcode::LocalInv | WrOpcode::BindMw | WrOpcode::Flush => length == 0 && stores && wqe.num_sge == 0,
        WrOpcode::Read => stores,
        // Its operands stand where the second entry would.
        WrOpcode::CompSwap | WrOpcode::FetchAdd => stores && wqe.num_sge == 1,
        _ => true,
    }
}

/// A send queue: the client's ring and the private copies of what was taken from it.
pub struct SendQueue {
    /// None of an XRC target QP, which sends nothing.
    ring: Option<Ring>,
    units: ArenaSlice<Unit>,
}

impl SendQueue {
    /// The queue over a ring; `units` are as many as the ring has. Control thread.
    pub fn new(ring: Option<Ring>, units: ArenaSlice<Unit>) -> Self {
        debug_assert!(
            ring.as_ref()
                .is_none_or(|ring| units.len() == ring.depth() as usize)
        );
        SendQueue { ring, units }
    }

    /// Memory of the daemon behind a queue of `depth` units, in bytes.
    pub(super) const fn bytes_for(depth: usize) -> usize {
        depth * size_of::<Unit>()
    }

    /// Copies the next WQE, if there is one and if its units do not overwrite those from `oldest` on, the
    /// first unit of the oldest work request in progress.
    #[inline]
    pub fn take(&mut self, cursor: &mut Cursor, oldest: Option<u32>) -> Result<Option<Accepted>, QueueError> {
        let Some(ring) = &self.ring else { return Ok(None) };
        let available = ring.available(cursor)?;
        if available == 0 {
            return Ok(None);
        }
        let (first, mask) = (cursor.next, ring.depth() - 1);
        let held = oldest.map_or(0, |o| first.wrapping_sub(o));
        if held >= ring.depth() {
            return Ok(None);
        }
        // Nobody uses the place of the first unit: fewer than there are, are held.
        ring.copy_unit(first, &mut self.units[(first & mask) as usize]);
        let count = check_extent(self.head(first), available, ring.depth())?;
        if held + count > ring.depth() {
            return Ok(None);
        }
        for i in 1..count {
            let index = first.wrapping_add(i);
            ring.copy_unit(index, &mut self.units[(index & mask) as usize]);
        }
        ring.take(cursor, count);
        let wqe = self.head(first);
        match total_length(wqe, |i| self.unit(first, i)) {
            Some(length) => Ok(Some(Accepted {
                data: first,
                length,
                remote_srqn: self.remote_srqn(wqe, first),
            })),
            None => Err(QueueError::Malformed { wr_id: wqe.wr_id }),
        }
    }

    /// How many units are posted whose copies would not overwrite those from `oldest` on, as of [`SendQueue::take`]; none where
    /// the indices were forged, which that function says.
    #[inline]
    pub fn posted(&self, cursor: &Cursor, oldest: Option<u32>) -> u32 {
        let Some(ring) = &self.ring else { return 0 };
        let held = oldest.map_or(0, |oldest| cursor.next.wrapping_sub(oldest));
        let available = ring.available(cursor).unwrap_or(0);
        available.min(ring.depth().saturating_sub(held))
    }

    /// The first unit of the next WQE, one of those [`SendQueue::posted`] has counted: read once, and left where it is.
    #[inline]
    pub fn peek(&self, cursor: &Cursor) -> Option<Wqe> {
        Some(self.ring.as_ref()?.wqe(cursor.next))
    }

    /// Makes what was read the private copy of the next WQE, which has one unit.
    #[inline]
    pub fn copy_one(&mut self, cursor: &Cursor, wqe: &Wqe) {
        let at = cursor.next as usize & self.units.len().wrapping_sub(1);
        self.units[at] = zerocopy::transmute!(*wqe);
    }

    /// Takes the WQE that was looked at last, which has one unit.
    #[inline]
    pub fn take_one(&self, cursor: &mut Cursor) {
        if let Some(ring) = &self.ring {
            ring.take(cursor, 1);
        }
    }

    /// Begins to load the indices of the client's ring.
    #[inline]
    pub fn prefetch_indices(&self) {
        if let Some(ring) = &self.ring {
            prefetch_lines(ring.0.indices().as_ptr(), 0..RingIndices::NEED_KICK);
        }
    }

    /// Begins to load the next units of the client's ring.
    #[inline]
    pub fn prefetch(&self, cursor: &Cursor) {
        let Some(ring) = &self.ring else { return };
        let before_end = ring.depth() - (cursor.next & (ring.depth() - 1));
        let count = PREFETCHED.min(before_end as usize);
        prefetch_lines(ring.0.place(cursor.next).as_ptr(), 0..count * WQE_UNIT);
    }

    /// Units it has, a power of two.
    fn depth(&self) -> u32 {
        self.units.len() as u32
    }

    fn remote_srqn(&self, wqe: &Wqe, data: u32) -> Option<u32> {
        let last = u32::from(wqe.units) - 1;
        is_xrc(wqe).then(|| {
            let unit: XrcUnit = zerocopy::transmute!(*self.unit(data, last));
            unit.remote_srqn
        })
    }

    #[inline]
    fn unit(&self, data: u32, i: u32) -> &Unit {
        &self.units[(data.wrapping_add(i) & (self.depth() - 1)) as usize]
    }

    /// The first unit of the private copy at `data`.
    #[inline]
    pub fn head(&self, data: u32) -> &Wqe {
        self.unit(data, 0).head()
    }

    /// Resolves the bytes `offset..offset + len` of a work request, if they are one part of its only entry.
    #[inline]
    pub fn segment(
        &self,
        mrs: &MrTable,
        (pd, access): (u32, Access),
        wr: &SendWr,
        offset: u32,
        len: u32,
    ) -> Option<RemoteRange> {
        if wr.has_entry {
            return part_of(&entry_of(wr), mrs, (pd, access), offset, len);
        }
        let wqe = self.head(wr.data);
        let single = wqe.num_sge == 1 && wqe.flags & wqe_flags::INLINE == 0;
        let entry = single.then_some(&wqe.sges[0])?;
        part_of(entry, mrs, (pd, access), offset, len)
    }

    /// Adds the bytes `offset..offset + len` of a work request to `segments`, which is empty. After an error it has a part of them.
    #[inline]
    pub fn segments(
        &self,
        mrs: &MrTable,
        (pd, access): (u32, Access),
        wr: &SendWr,
        offset: u32,
        len: u32,
        segments: &mut Segments,
    ) -> Result<(), KeyError> {
        let to = (pd, access);
        if wr.has_entry {
            let sge = entry_of(wr);
            return resolve_sges(mrs, to, 1, |_| sge, offset, len, segments);
        }
        let data = wr.data;
        let wqe = self.head(data);
        if wqe.flags & wqe_flags::INLINE != 0 {
            return self.inline_segments(data, offset, len, segments);
        }
        let count = usize::from(wqe.num_sge);
        let entry = |i| sge(|unit| self.unit(data, unit), i);
        resolve_sges(mrs, to, count, entry, offset, len, segments)
    }

    fn inline_segments(
        &self,
        data: u32,
        mut offset: u32,
        mut len: u32,
        segments: &mut Segments,
    ) -> Result<(), KeyError> {
        const HEAD: usize = WQE_UNIT - rnic_abi::SGES_IN_HEAD * size_of::<Sge>();
        for i in 0..Wqe::MAX_UNITS {
            if len == 0 {
                break;
            }
            let unit = &self.unit(data, i).0;
            let payload = if i == 0 { &unit[HEAD..] } else { &unit[..] };
            if offset as usize >= payload.len() {
                offset -= payload.len() as u32;
                continue;
            }
            let part = &payload[offset as usize..];
            let part = &part[..part.len().min(len as usize)];
            segments.push(RemoteRange {
                ptr: NonNull::from(part).cast(),
                len: part.len(),
            });
            len -= part.len() as u32;
            offset = 0;
        }
        if len == 0 { Ok(()) } else { Err(KeyError::Range) }
    }

    /// Whether the private copy of a work request is what was accepted once, as whoever uses it takes for granted.
    pub fn is_sound(&self, cursor: &Cursor, wr: &SendWr) -> bool {
        let held = cursor.next.wrapping_sub(wr.data);
        if wr.has_entry {
            let fits = matches!(wr.opcode, WrOpcode::Send | WrOpcode::Write | WrOpcode::Read);
            return fits && (1..=self.depth()).contains(&held) && wr.swap <= u64::from(u32::MAX);
        }
        let wqe = self.head(wr.data);
        check_extent(wqe, held, self.depth()).is_ok()
            && held <= self.depth()
            && total_length(wqe, |i| self.unit(wr.data, i)) == Some(wr.length)
            && suits(wqe, wr.length, wr.opcode)
    }

    /// Forgets what was posted (RESET).
    pub fn discard(&self, cursor: &mut Cursor) {
        if let Some(ring) = &self.ring {
            ring.discard(cursor);
        }
    }

    /// Asks to be kicked and tells whether the queue can be left alone.
    #[inline]
    pub fn release(&self, cursor: &Cursor) -> bool {
        let ring = self.ring.as_ref();
        ring.is_none_or(|ring| ring.release(cursor))
    }

    /// Takes the queue into the core's own polling.
    #[inline]
    pub fn keep(&self) {
        if let Some(ring) = &self.ring {
            protocol::keep_queue(&ring.0.need_kick());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{ArenaId, RangeArena};

    #[test]
    fn a_request_without_a_private_copy_is_sound_if_its_operation_has_no_operands() {
        let id = ArenaId {
            kind: "rings",
            owner: 0,
            epoch: 1,
        };
        let arena = RangeArena::create(id, 1 << 20).unwrap();
        let queue = SendQueue::new(None, arena.put(8, Unit::ZERO).unwrap());
        let cursor = Cursor {
            offset: 0,
            depth: 8,
            next: 5,
        };
        let mut sound = SendWr {
            opcode: WrOpcode::Write,
            length: 100,
            data: 4,
            ..SendWr::default()
        };
        assert!(!queue.is_sound(&cursor, &sound), "there is no WQE of it");
        let entry = Sge {
            addr: u64::MAX,
            length: 100,
            lkey: u32::MAX,
        };
        hold_entry(&mut sound, &entry);
        assert_eq!(entry_of(&sound), entry);
        for opcode in [WrOpcode::Write, WrOpcode::Send, WrOpcode::Read] {
            assert!(queue.is_sound(&cursor, &SendWr { opcode, ..sound }));
        }
        for opcode in [
            WrOpcode::FetchAdd,
            WrOpcode::CompSwap,
            WrOpcode::Flush,
            WrOpcode::WriteImm,
        ] {
            assert!(!queue.is_sound(&cursor, &SendWr { opcode, ..sound }));
        }
        for data in [5, 6, 5u32.wrapping_sub(9)] {
            assert!(!queue.is_sound(&cursor, &SendWr { data, ..sound }), "{data}");
        }
        let swap = 1 << 32;
        assert!(!queue.is_sound(&cursor, &SendWr { swap, ..sound }));
    }
}
