//! The context region: one sealed memfd per client, made by the daemon, holding events, doorbells and queues.
//!
//! ```text
//! 0                RegionHeader (one page)
//! events_offset    RingIndices, then event_ring_len u32 slot numbers
//! slots_offset     slots × EventSlot
//! doorbells_offset cores × doorbell block (see DoorbellLayout)
//! queues_offset    queue slices: SQ, RQ and CQ, handed out by the daemon
//! ```
//! The file is as long as the client's quota allows from the start and sealed against any change of length;
//! pages come into being when they are touched, so both sides map it once.
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::LINE;

/// First eight bytes of a context region: `rnicctx1`.
pub const REGION_MAGIC: u64 = u64::from_le_bytes(*b"rnicctx1");

/// The first page of a context region. Written by the daemon before the client sees the region; the daemon
/// never reads it back.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionHeader {
    /// [`REGION_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// Size of this header.
    pub header_size: u32,
    /// Optional features the daemon offers; none yet.
    pub features: u64,
    /// Changes with every start of the daemon.
    pub boot_epoch: u64,
    /// Length of the region in bytes.
    pub region_size: u64,
    /// Offset of the event ring.
    pub events_offset: u64,
    /// Offset of the event slots.
    pub slots_offset: u64,
    /// Offset of the first doorbell block.
    pub doorbells_offset: u64,
    /// Offset of the queue space.
    pub queues_offset: u64,
    /// Entries of the event ring; a power of two, at least `slots`.
    pub event_ring_len: u32,
    /// Number of object slots.
    pub slots: u32,
    /// Number of doorbell blocks, one a poll core.
    pub cores: u32,
    /// `size_of::<Wqe>()`.
    pub wqe_size: u32,
    /// `size_of::<Cqe>()`.
    pub cqe_size: u32,
    /// `size_of::<EventSlot>()`.
    pub event_slot_size: u32,
    /// `size_of::<RingIndices>()`.
    pub ring_indices_size: u32,
    /// Bytes of one doorbell block.
    pub doorbell_block_size: u32,
    /// Zero.
    pub reserved: [u32; 32],
}

/// The indices of one single-producer single-consumer ring. Free-running: the entry of index `i` is
/// `i & (depth - 1)`, `tail - head` entries are filled, more than `depth` is an error of whoever wrote it.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RingIndices {
    /// Next index the producer will fill. Stored with Release after the entries.
    pub tail: u32,
    pad0: [u8; LINE - 4],
    /// Next index the consumer will take.
    pub head: u32,
    pad1: [u8; LINE - 4],
    /// SQ and RQ: not zero when the core does not look at the queue by itself ([`crate::protocol`]).
    /// CQ sub-rings: unused.
    pub need_kick: u32,
    pad2: [u8; LINE - 4],
}

impl RingIndices {
    /// Offset of `tail`.
    pub const TAIL: usize = 0;
    /// Offset of `head`.
    pub const HEAD: usize = LINE;
    /// Offset of `need_kick`.
    pub const NEED_KICK: usize = 2 * LINE;
}

/// Where the words of one doorbell block stand. A block belongs to one (client, core) pair: a `sleeping` word
/// on its own line, then `level1` (a bit for each `level0` word), then `level0` (a bit for each slot).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct DoorbellLayout {
    /// Number of u64 words with a bit for each slot.
    pub level0_words: u32,
    /// Number of u64 words with a bit for each word of level 0.
    pub level1_words: u32,
}

impl DoorbellLayout {
    /// Offset of the `sleeping` u32 in a block.
    pub const SLEEPING: usize = 0;
    /// Offset of level 1 in a block.
    pub const LEVEL1: usize = LINE;

    /// The layout for `slots` slots.
    pub const fn new(slots: u32) -> Self {
        let level0_words = slots.div_ceil(64);
        DoorbellLayout {
            level0_words,
            level1_words: level0_words.div_ceil(64),
        }
    }

    /// Offset of level 0 in a block.
    pub const fn level0(&self) -> usize {
        Self::LEVEL1 + (self.level1_words as usize * 8).next_multiple_of(LINE)
    }

    /// Bytes of a block.
    pub const fn size(&self) -> usize {
        self.level0() + (self.level0_words as usize * 8).next_multiple_of(LINE)
    }
}

/// Offsets and sizes of a whole region.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Offset of the event ring's indices.
    pub events: usize,
    /// Entries of the event ring.
    pub event_ring_len: u32,
    /// Offset of the event slots.
    pub event_slots: usize,
    /// Number of object slots.
    pub slots: u32,
    /// Offset of doorbell block 0.
    pub doorbells: usize,
    /// Shape of each doorbell block.
    pub doorbell: DoorbellLayout,
    /// Number of doorbell blocks.
    pub cores: u32,
    /// Offset of the queue space.
    pub queues: usize,
    /// Length of the region.
    pub size: usize,
}

/// Page size the layout is rounded to.
pub const PAGE: usize = 4096;

impl RegionLayout {
    /// Lays out a region for `slots` objects (1 to [`crate::Handle::MAX_SLOTS`]), `cores` poll cores and
    /// `queue_bytes` of queue space.
    pub const fn new(slots: u32, cores: u32, queue_bytes: usize) -> Self {
        let events = PAGE;
        let event_ring_len = slots.next_power_of_two();
        let event_slots =
            (events + size_of::<RingIndices>() + event_ring_len as usize * 4).next_multiple_of(PAGE);
        let doorbells = (event_slots + slots as usize * size_of::<crate::EventSlot>()).next_multiple_of(PAGE);
        let doorbell = DoorbellLayout::new(slots);
        let queues = (doorbells + doorbell.size() * cores as usize).next_multiple_of(PAGE);
        let size = queues + queue_bytes.next_multiple_of(PAGE);
        RegionLayout {
            events,
            event_ring_len,
            event_slots,
            slots,
            doorbells,
            doorbell,
            cores,
            queues,
            size,
        }
    }

    /// The header that describes this layout.
    pub fn header(&self, boot_epoch: u64) -> RegionHeader {
        RegionHeader {
            magic: REGION_MAGIC,
            abi_version: crate::ABI_VERSION,
            header_size: size_of::<RegionHeader>() as u32,
            features: 0,
            boot_epoch,
            region_size: self.size as u64,
            events_offset: self.events as u64,
            slots_offset: self.event_slots as u64,
            doorbells_offset: self.doorbells as u64,
            queues_offset: self.queues as u64,
            event_ring_len: self.event_ring_len,
            slots: self.slots,
            cores: self.cores,
            wqe_size: size_of::<crate::Wqe>() as u32,
            cqe_size: size_of::<crate::Cqe>() as u32,
            event_slot_size: size_of::<crate::EventSlot>() as u32,
            ring_indices_size: size_of::<RingIndices>() as u32,
            doorbell_block_size: self.doorbell.size() as u32,
            reserved: [0; 32],
        }
    }

    /// The layout a header describes, or `None` when the header is not one of this ABI version or disagrees
    /// with itself.
    pub fn from_header(header: &RegionHeader) -> Option<Self> {
        let queue_bytes = header.region_size.checked_sub(header.queues_offset)?;
        // No mapping is longer; and the sums of the layout cannot overflow below.
        if header.region_size > isize::MAX as u64 {
            return None;
        }
        if header.magic != REGION_MAGIC || header.slots == 0 || header.slots > crate::Handle::MAX_SLOTS {
            return None;
        }
        let layout = Self::new(header.slots, header.cores, usize::try_from(queue_bytes).ok()?);
        let expected = layout.header(header.boot_epoch);
        let known = RegionHeader {
            features: header.features,
            ..expected
        };
        (known.as_bytes() == header.as_bytes()).then_some(layout)
    }
}
