//! The reliable connection transport as sans-IO state machines (chapter 9 of the InfiniBand Architecture
//! Specification, volume 1; section numbers in this crate refer to it).
//!
//! [`RcQp`] is one queue pair: requester, responder, retry and timers. It has no clock, allocates nothing,
//! does no I/O and holds no pointer, so its record may live in an arena that outlives the process. What it
//! does to the world goes through one monomorphised [`Host`]; what it wants sent is returned as an [`Emit`];
//! time is an argument and timers are returned deadlines. Everything that arrives is treated as hostile:
//! every loop is bounded, and no input panics.
//!
//! How an engine drives a QP, always on the poll core that owns it:
//! - frames: [`RcQp::receive`], and [`RcQp::receive_reserved`] for opcodes that [`rnic_wire`] reports as
//!   reserved;
//! - accepted work: [`RcQp::post_send`]; receive WQEs are drawn when needed, through [`Host::take_recv`];
//! - while [`RcQp::has_work`] and its budget lasts: [`RcQp::poll_transmit`], in ERR also [`RcQp::flush`];
//! - beside a frame that arrives marked "congestion experienced": [`RcQp::marked`];
//! - when [`RcQp::poll_timeout`] is reached: [`RcQp::handle_timeout`]. Deadlines only ever need to be
//!   looked at after a call that took a `Ctx`.

#![no_std]
#![forbid(unsafe_code)]

mod ack;
mod atomic;
mod attr;
mod attr_mask;
mod bare;
mod bit_set;
mod cold;
mod congestion;
mod credit;
mod fetch;
mod flush;
mod host;
mod modify;
mod modify_table;
mod mutation;
mod qp;
mod read;
mod record;
mod record_check;
mod refusal;
mod replay;
mod requester;
mod respond;
mod responder;
mod retry;
mod selective;
mod short;
mod stretch;
mod types;
mod uc;
mod ud;
mod unreliable;
mod whole;
mod work;
mod xrc;

pub use atomic::AtomicOp;
pub use attr::{MAX_RD_ATOMIC, MIGRATED, ModifyError, QpAttr};
pub use attr_mask::QpAttrMask;
pub use cold::Cold;
pub use congestion::{Congestion, DcqcnSettings};
pub use host::{Completion, CqFull, Host, KeyError, Payload, RecvError};
pub use modify_table::check_modify;
pub use mutation::Mutation;
pub use qp::{Ctx, DropReason, Emit, Limits, MAX_MESSAGE, PostError, RcQp, Received, Source};
pub use record::{BadField, FieldPath, Record};
pub use stretch::Stretch;
pub use types::{
    Access, Cause, Check, CompletionFlags, Event, EventKind, QpState, QpType, Queue, Time, WcOpcode, WcStatus,
};
pub use ud::GRH_AREA;
pub use work::{Bind, Flush, RecvWqe, SendFlags, SendWr, WrOpcode};
