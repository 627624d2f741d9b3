//! The boundary to memory, queues and events: everything the state machines do to the world goes through
//! [`Host`].

use crate::atomic::AtomicOp;
use crate::types::{Access, Cause, Check, CompletionFlags, Event, Queue, WcOpcode, WcStatus};
use crate::work::{Bind, Flush, RecvWqe, SendWr};
use rnic_wire::SELECTIVE_ACK_LEN;

/// Payload of one packet: bytes of a frame, or a gather cursor of the peer on loopback. Of requests and READ responses it is
/// never looked into here.
pub trait Payload: Copy {
    /// Payload bytes, without pad.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a selective acknowledgement says; `None` when the payload is not of its length.
    fn selective_ack(&self) -> Option<[u8; SELECTIVE_ACK_LEN]>;
}

impl Payload for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn selective_ack(&self) -> Option<[u8; SELECTIVE_ACK_LEN]> {
        (*self).try_into().ok()
    }
}

/// Why memory could not be used.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No such key, or it was invalidated.
    #[error("the key names no valid region; register the memory and send its current key")]
    Key,
    /// The region lacks the right.
    #[error("the region does not grant the access; register it with the access flag the operation needs")]
    Access,
    /// The range leaves the region, or wraps.
    #[error("address and length leave the region; keep them inside what was registered")]
    Range,
    /// The region belongs to another protection domain.
    #[error("the region belongs to another protection domain than the QP")]
    PdMismatch,
    /// An atomic on memory that is not aligned to 8 bytes, whatever its address says.
    #[error("the memory of an atomic is not aligned to 8 bytes")]
    Alignment,
    /// The client's memory went away under the access.
    #[error("the memory behind the region is gone")]
    MemoryFault,
    /// A window that cannot be bound now.
    #[error(
        "the memory window cannot be bound; invalidate one of type 2 first, and bind it to a range that is not empty"
    )]
    WindowState,
    /// A region with windows is to be invalidated.
    #[error("memory windows are bound to the region; invalidate or deallocate them first")]
    WindowsBound,
    /// A window of type 2 that was bound on another QP.
    #[error("the memory window was bound on another QP; use it through that one")]
    WindowQp,
}

impl KeyError {
    /// The check to name in a [`Cause`].
    pub const fn check(self) -> Check {
        match self {
            KeyError::Key => Check::Key,
            KeyError::Access => Check::Access,
            KeyError::Range => Check::Range,
            KeyError::PdMismatch => Check::PdMismatch,
            KeyError::Alignment => Check::Alignment,
            KeyError::MemoryFault => Check::MemoryFault,
            KeyError::WindowState => Check::WindowState,
            KeyError::WindowsBound => Check::WindowsBound,
            KeyError::WindowQp => Check::WindowQp,
        }
    }
}

/// A receive WQE or its ring is malformed or forged: a local QP operation error.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receive queue holds a malformed work request or forged indices")]
pub struct RecvError {
    /// `wr_id` of the malformed WQE, when it could be read: it completes with `LocQpOpErr`.
    pub wr_id: Option<u64>,
}

/// The completion queue has no room.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the completion queue is full; create it with room for every signalled work request")]
pub struct CqFull;

/// One completion, to be placed into the CQ of its queue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The application's name of the work request.
    pub wr_id: u64,
    /// Outcome.
    pub status: WcStatus,
    /// Operation.
    pub opcode: WcOpcode,
    /// Send or receive queue.
    pub queue: Queue,
    /// What `imm_or_rkey` holds, and whether the completion is solicited.
    pub flags: CompletionFlags,
    /// QP of the sender (of a datagram), else of the peer the QP is connected to.
    pub src_qpn: u32,
    /// Bytes received, or bytes a READ or atomic fetched; 0 for other send completions and for errors.
    pub byte_len: u32,
    /// Immediate data or invalidated key, see `flags`.
    pub imm_or_rkey: u32,
    /// Why, when `status` is not success.
    pub cause: Cause,
}

/// What a QP needs of its surroundings. Implemented by the engine, and by tests; one monomorphised copy of
/// the state machines per implementation. No method may block, allocate or panic; all run on the QP's poll
/// core.
pub trait Host {
    /// A packet's payload.
    type Payload<'a>: Payload;

    /// Checks key, range and right of a whole remote operation, at its first packet. Never called with `len`
    /// 0.
    fn check_remote(&mut self, rkey: u32, addr: u64, len: u64, access: Access) -> Result<(), KeyError>;

    /// Places payload of a WRITE. The key was checked at the first packet, but may have been invalidated
    /// since: it is checked again (with [`Access::REMOTE_WRITE`]). Never called with an empty payload.
    fn write_remote(&mut self, rkey: u32, addr: u64, payload: Self::Payload<'_>) -> Result<(), KeyError>;

    /// Checks key, range and right ([`Access::REMOTE_ATOMIC`]) of 8 bytes at a multiple of 8, and executes an atomic
    /// there, towards every other access to this memory by any QP or program. What stood there before.
    fn atomic(&mut self, rkey: u32, addr: u64, op: AtomicOp) -> Result<u64, KeyError>;

    /// Finds the XRC SRQ of this number, for a request to an XRC target QP, and tells its XRC domain; `None` when there is
    /// none. Until the next call what it has is meant by every other function: its protection domain by those that check
    /// keys, its WQEs by [`Host::take_recv`], its CQ by [`Host::complete`] for the receive queue. Never called for another
    /// type of QP.
    fn xrc_srq(&mut self, srqn: u32) -> Option<u32>;

    /// Checks key, range and right ([`Access::REMOTE_WRITE`]) of 8 bytes at a multiple of 8, and places a payload of 8
    /// bytes there in one piece: whoever looks finds all of the old bytes or all of the new.
    fn atomic_write(&mut self, rkey: u32, addr: u64, payload: Self::Payload<'_>) -> Result<(), KeyError>;

    /// Checks key, right and, unless the whole region is meant, range (which may be empty), and sees to it that what this
    /// QP has placed there is as the flush demands before anything that comes after.
    fn flush(&mut self, rkey: u32, addr: u64, len: u32, flush: Flush) -> Result<(), KeyError>;

    /// Takes the next receive WQE, copied and validated; `None` when the queue is empty.
    fn take_recv(&mut self) -> Result<Option<RecvWqe>, RecvError>;

    /// Takes the next receive WQE, places all of a message of one packet in its buffers, and completes it (as
    /// [`WcOpcode::Recv`], with [`CompletionFlags::SOLICITED`] where it is solicited, from QP `src_qpn`): what
    /// [`Host::take_recv`], [`Host::scatter_recv`] and [`Host::complete`] do, where nothing about any of them is out of the
    /// ordinary. `false`: it is, and nothing has happened.
    fn receive_message(&mut self, payload: Self::Payload<'_>, solicited: bool, src_qpn: u32) -> bool;

    /// Places payload of a SEND into a receive WQE's buffers at `offset`. The range lies within
    /// `wqe.capacity`.
    fn scatter_recv(
        &mut self,
        wqe: &RecvWqe,
        offset: u32,
        payload: Self::Payload<'_>,
    ) -> Result<(), KeyError>;

    /// Places a READ response into the local buffers of `wr` at `offset`. The range lies within `wr.length`.
    fn scatter_send(&mut self, wr: &SendWr, offset: u32, payload: Self::Payload<'_>) -> Result<(), KeyError>;

    /// Places what an atomic found into the 8 bytes of the local buffers of `wr`, in host order.
    fn scatter_atomic(&mut self, wr: &SendWr, original: u64) -> Result<(), KeyError>;

    /// Begins to invalidate a key, for a LOCAL_INV of the QP's owner or a SEND with invalidate of its peer: no
    /// later use of it succeeds. Ownership and permission are checked here; when they fail nothing changed.
    fn invalidate(&mut self, rkey: u32) -> Result<(), KeyError>;

    /// Whether no one uses a key any more that this QP began to invalidate: not even a packet that another core
    /// was working on. Asked again and again until it is so.
    fn invalidated(&mut self) -> bool;

    /// Binds a memory window for the QP's owner; `false` while somebody may still use what the window stood for. Asked
    /// again and again until it is done or fails.
    ///
    /// `begin` is set the first time. When it is not set and the host knows of no bind under way, an earlier process
    /// began it, and may have done it.
    fn bind(&mut self, bind: &Bind, begin: bool) -> Result<bool, KeyError>;

    /// Places a completion. On error the QP goes to ERR; raising CQ_ERR is the host's part.
    fn complete(&mut self, completion: &Completion) -> Result<(), CqFull>;

    /// Raises an asynchronous event of this QP.
    fn event(&mut self, event: &Event);
}
