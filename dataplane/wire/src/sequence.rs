//! Which opcode may follow which (9.7.4.1.1, table 37; 9.8.2.2 for UC).

use crate::opcode::{Opcode, Transport};
use thiserror::Error;
use zerocopy::{Immutable, KnownLayout, TryFromBytes};

/// The multi-packet message which is under way on a QP, in one direction.
///
/// Fixed-width and plain, as QP state has to be.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum MessageKind {
    /// None: the next packet has to start a message.
    #[default]
    None = 0,
    /// A SEND, after its FIRST.
    Send = 1,
    /// An RDMA WRITE, after its FIRST.
    Write = 2,
    /// A READ response, after its FIRST.
    ReadResponse = 3,
}

impl MessageKind {
    /// The kind that `opcode` belongs to, when it is part of a message that may have several packets.
    #[inline]
    const fn of(opcode: Opcode) -> Self {
        if opcode.is_send() {
            MessageKind::Send
        } else if opcode.is_write() {
            MessageKind::Write
        } else if opcode.is_read_response() {
            MessageKind::ReadResponse
        } else {
            MessageKind::None
        }
    }

    /// What is under way once `opcode` has been taken.
    #[inline]
    const fn after(opcode: Opcode) -> Self {
        if opcode.ends_message() {
            MessageKind::None
        } else {
            MessageKind::of(opcode)
        }
    }
}

/// Why an opcode may not come next. A reliable responder answers with NAK invalid request; UC drops the message.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub enum SequenceError {
    /// A MIDDLE or LAST with no message under way.
    #[error("{next} continues a message, but none was started")]
    NothingToContinue {
        /// The offending opcode.
        next: Opcode,
    },
    /// A message is under way, and `next` neither continues nor ends it.
    #[error("{next} arrived inside an unfinished {open:?} message")]
    MessageUnfinished {
        /// The message under way.
        open: MessageKind,
        /// The offending opcode.
        next: Opcode,
    },
    /// The two opcodes are of different transport classes.
    #[error("{next} follows a packet of class {}", previous.name())]
    TransportChanged {
        /// Class of the packet before.
        previous: Transport,
        /// The offending opcode.
        next: Opcode,
    },
}

/// Whether `next` may follow `previous`, the packet accepted before it in the same direction of the same QP.
///
/// `None` stands for the QP's first packet. Single-packet messages (READ request, atomics, FLUSH, ATOMIC WRITE, ACKs) may
/// come wherever a message may start.
#[inline]
pub fn follows(previous: Option<Opcode>, next: Opcode) -> Result<(), SequenceError> {
    let open = match previous {
        Some(previous) if previous.transport != next.transport => {
            return Err(SequenceError::TransportChanged {
                previous: previous.transport,
                next,
            });
        }
        Some(previous) => MessageKind::after(previous),
        None => MessageKind::None,
    };
    MessageSequence { open }.check(next)
}

/// The state behind [`follows`], for a QP to keep: what is under way, in one byte.
///
/// It knows nothing of the transport class, which a QP has checked against its own beforehand.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MessageSequence {
    open: MessageKind,
}

impl MessageSequence {
    /// Between messages.
    pub const fn new() -> Self {
        MessageSequence {
            open: MessageKind::None,
        }
    }

    /// The message under way.
    #[inline]
    pub const fn open(&self) -> MessageKind {
        self.open
    }

    /// Whether `next` may come next.
    #[inline]
    pub const fn check(&self, next: Opcode) -> Result<(), SequenceError> {
        let starts = next.starts_message();
        match self.open {
            MessageKind::None if starts => Ok(()),
            MessageKind::None => Err(SequenceError::NothingToContinue { next }),
            open if !starts && open as u8 == MessageKind::of(next) as u8 => Ok(()),
            open => Err(SequenceError::MessageUnfinished { open, next }),
        }
    }

    /// Checks `next` and, when it is legal, moves on past it; else nothing changes.
    #[inline]
    pub fn accept(&mut self, next: Opcode) -> Result<(), SequenceError> {
        self.check(next)?;
        self.open = MessageKind::after(next);
        Ok(())
    }

    /// Forgets a message under way, as UC does when it drops one.
    #[inline]
    pub fn reset(&mut self) {
        self.open = MessageKind::None;
    }
}
