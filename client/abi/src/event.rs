//! Asynchronous events: a ring of slot numbers, and a slot for each object with the kinds that are pending.
//!
//! The daemon sets kinds in [`EventSlot::pending`] and, when [`IN_RING`] was clear, pushes the slot number and
//! wakes the client. The client pops a slot number, reads the cause, then swaps `pending` to zero. A slot is
//! in the ring at most once, so the ring cannot overflow: its length is the number of slots.
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Cause;

/// Bit of [`EventSlot::pending`]: the slot number stands in the ring.
pub const IN_RING: u32 = 1 << 31;

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
    /// A QP on an SRQ took its last WQE.
    pub const LAST_WQE_REACHED: u32 = 1 << 5;
    /// The SRQ fell below its limit.
    pub const SRQ_LIMIT_REACHED: u32 = 1 << 6;
    /// The SRQ failed.
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
    /// Kinds pending and [`IN_RING`].
    pub pending: u32,
    /// Handle of the object that now has the slot.
    pub handle: u32,
    /// QPN, CQ number or port number.
    pub number: u32,
    /// Counts the changes of a port's state; the client ends at the true state.
    pub sequence: u32,
    /// Cause of the first pending kind.
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
