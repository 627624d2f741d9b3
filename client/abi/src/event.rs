//! Asynchronous events: a ring of slot numbers, and a slot for each object with the kinds that are pending.
//!
//! The daemon sets kinds in [`EventSlot::pending`] and, when [`IN_RING`] was clear, pushes the slot number and
//! wakes the client. The client pops a slot number, reads the slot and clears `pending`. A slot is in the ring
//! at most once, so the ring cannot overflow: its length is the number of slots.
//!
//! Both sides change `pending` by compare-and-exchange, and it holds the generation of the object the kinds are
//! of. So whatever the client reads of the slot between a look at `pending` and its clearing belongs to those
//! very kinds, even when the object is destroyed and the slot reused meanwhile: then the exchange fails and the
//! client looks again. `tests/loom.rs` checks both halves against each other.
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Cause, protocol::Word32};

/// Bit of [`EventSlot::pending`]: the slot number stands in the ring.
pub const IN_RING: u32 = 1 << 31;
/// Lowest of the 12 bits of [`EventSlot::pending`] that hold the generation of the object's handle.
pub const GENERATION_SHIFT: u32 = 16;

/// Bits of [`EventSlot::pending`], one a kind.
pub mod event_kind {
    /// The QP went to the error state.
    pub const QP_FATAL: u32 = 1 << 0;
    /// The responder refused a request: invalid request.
    pub const QP_REQ_ERR: u32 = 1 << 1;
    /// The responder refused a request: R_Key violation.
    pub const QP_ACCESS_ERR: u32 = 1 << 2;
    /// First packet on a QP in RTR.
    pub const COMM_EST: u32 = 1 << 3;
    /// The send queue is drained (SQD).
    pub const SQ_DRAINED: u32 = 1 << 4;
    /// A QP on an SRQ is in the error state and takes no further receive.
    pub const LAST_WQE_REACHED: u32 = 1 << 5;
    /// Fewer receives are posted to the SRQ than its limit, which is not armed any more.
    pub const SRQ_LIMIT_REACHED: u32 = 1 << 6;
    /// The SRQ failed: its ring's indices or a unit count were forged.
    pub const SRQ_ERR: u32 = 1 << 7;
    /// A completion queue overflowed.
    pub const CQ_ERR: u32 = 1 << 8;
    /// The port came up.
    pub const PORT_ACTIVE: u32 = 1 << 9;
    /// The port went down.
    pub const PORT_ERR: u32 = 1 << 10;
    /// The GID table changed.
    pub const GID_CHANGE: u32 = 1 << 11;
    /// The device is gone or unusable.
    pub const DEVICE_FATAL: u32 = 1 << 12;
    /// Kinds that are errors: these have a cause.
    pub const ERRORS: u32 = QP_FATAL | QP_REQ_ERR | QP_ACCESS_ERR | SRQ_ERR | CQ_ERR | DEVICE_FATAL;
    /// All kinds.
    pub const ALL: u32 = (1 << NAMES.len()) - 1;
    /// The names, by bit number.
    pub const NAMES: [&str; 13] = [
        "QP_FATAL",
        "QP_REQ_ERR",
        "QP_ACCESS_ERR",
        "COMM_EST",
        "SQ_DRAINED",
        "LAST_WQE_REACHED",
        "SRQ_LIMIT_REACHED",
        "SRQ_ERR",
        "CQ_ERR",
        "PORT_ACTIVE",
        "PORT_ERR",
        "GID_CHANGE",
        "DEVICE_FATAL",
    ];
}

/// The events of one object.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventSlot {
    /// Kinds pending, the generation they are of, and [`IN_RING`].
    pub pending: u32,
    /// Handle of the object that now has the slot.
    pub handle: u32,
    /// QPN, SRQ number, CQ number or port number.
    pub number: u32,
    /// Of a port: counts the changes of its state, even while it is up and odd while it is down, so that the
    /// client ends at the true state.
    pub sequence: u32,
    /// Cause of the first pending error; of no use while none is pending.
    pub cause: Cause,
    /// Zero.
    pub reserved: [u32; 10],
}

impl EventSlot {
    /// Offset of `pending`.
    pub const PENDING: usize = 0;
    /// Offset of `handle`.
    pub const HANDLE: usize = 4;
    /// Offset of `number`.
    pub const NUMBER: usize = 8;
    /// Offset of `sequence`.
    pub const SEQUENCE: usize = 12;
    /// Offset of `cause`.
    pub const CAUSE: usize = 16;
}

/// What [`raise`] did.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Raised {
    /// Kinds that were not pending before: each is one event.
    pub reported: u32,
    /// The slot does not stand in the ring yet: push it and wake the client.
    pub push: bool,
}

/// How often the daemon tries to change a word. An honest client changes it once: it takes what is there.
const TRIES: usize = 4;

/// Daemon: makes `kinds` pending for the object whose handle has `generation`. `write_cause` writes
/// [`EventSlot::cause`]; it is called when no error is pending, so that the cause is that of the first. A client that
/// takes another kind at this moment may see any of it, and has no use for it.
pub fn raise<W: Word32>(pending: &W, generation: u32, kinds: u32, mut write_cause: impl FnMut()) -> Raised {
    let kinds = kinds & event_kind::ALL;
    let with =
        |before: u32| (before & event_kind::ALL) | kinds | IN_RING | (generation & 0xFFF) << GENERATION_SHIFT;
    let raised = |before: u32| Raised {
        reported: (kinds & !before).count_ones(),
        push: before & IN_RING == 0,
    };
    let mut seen = pending.load(Ordering::Acquire);
    for _ in 0..TRIES {
        if kinds & event_kind::ERRORS != 0 && seen & event_kind::ERRORS == 0 {
            write_cause();
        }
        match pending.compare_exchange(seen, with(seen), Ordering::AcqRel, Ordering::Acquire) {
            Ok(before) => return raised(before),
            Err(now) => seen = now,
        }
    }
    // Only a client that breaks the protocol gets here, and only its own events suffer.
    raised(pending.swap(with(0), Ordering::AcqRel))
}

/// Daemon: withdraws what is pending in a slot whose object is destroyed, and tells how many events that were.
/// The slot keeps its place in the ring, for the next object: were the place given up, a client that reads no
/// events could fill the ring by creating and destroying.
pub fn withdraw<W: Word32>(pending: &W) -> u32 {
    (pending.fetch_and(IN_RING, Ordering::AcqRel) & event_kind::ALL).count_ones()
}

/// Client: takes the kinds pending in a slot that it popped from the ring, with what `read` reads of the slot.
/// No kinds (and nothing read) when the object was destroyed meanwhile.
pub fn take<W: Word32, T>(pending: &W, mut read: impl FnMut() -> T) -> (u32, Option<T>) {
    let mut seen = pending.load(Ordering::Acquire);
    loop {
        let kinds = seen & event_kind::ALL;
        let details = (kinds != 0).then(&mut read);
        match pending.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return (kinds, details),
            Err(now) => seen = now,
        }
    }
}
