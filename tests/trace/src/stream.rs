//! The requests of one lane by PSN, shared by the rules on requests and those on responses.
//!
//! PSNs are 24 bits wide on the wire; here they are unwrapped to 64, counted from where they began.

use crate::lanes::Path;
use rnic_wire::{AtomicEth, Opcode, Psn, Reth};
use std::collections::BTreeMap;

/// PSNs further off than this from what was seen are a QP used anew.
const SAME_QP: i64 = 1 << 16;

/// What one request packet said.
#[derive(Copy, Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub opcode: Opcode,
    pub reth: Option<Reth>,
    pub atomic: Option<AtomicEth>,
    pub imm: Option<u32>,
    /// XRC SRQ.
    pub srqn: Option<u32>,
    pub len: usize,
}

/// A request packet that went by.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Sent {
    pub request: Request,
    /// One past the last PSN it takes.
    pub end: i64,
    /// First PSN of its message and payload of it so far, when every packet of it went by.
    pub message: Option<(i64, usize)>,
}

/// A READ that has not been asked for in parts.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Read {
    pub end: i64,
    pub reth: Reth,
}

/// Requests of one lane.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub path: Path,
    /// A PSN seen, and its unwrapped form, to unwrap others by.
    origin: Option<(Psn, i64)>,
    pub sent: BTreeMap<i64, Sent>,
    pub reads: BTreeMap<i64, Read>,
    /// PSNs at which a READ was asked for again from within.
    pub resumed: BTreeMap<i64, i64>,
    /// First PSN seen.
    pub first: i64,
    /// One past the last PSN sent.
    pub end: i64,
    /// The highest PSN that a request began with.
    pub newest: i64,
    /// One past the last PSN before which all went by.
    pub contiguous: i64,
    /// What a near requester sends next unless it goes back.
    pub next: Option<i64>,
    /// One past the highest PSN that a response acknowledged.
    pub acked: i64,
    /// A READ takes an unknown number of PSNs: gaps say nothing.
    pub loose: bool,
    /// The last packet was the first of those sent again.
    pub turned: bool,
    /// The responder has acknowledged selectively: what it has need not be sent again.
    pub selective: bool,
    /// The PSN that got an RNR NAK, when, and how long it has to wait.
    pub rnr: Option<(i64, u64, u64)>,
    pub answers: Answers,
}

/// What the responder has said.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The least PSN that it can expect by what it has said.
    pub expects: Option<i64>,
    /// The PSN of its last sequence error NAK.
    pub nak: Option<i64>,
    /// READs and atomics without their last response.
    pub pending: BTreeMap<i64, i64>,
    /// The MSN of the last AETH.
    pub msn: Option<Psn>,
    /// PSN and MSN of the last positive ACK.
    pub counted: Option<(i64, Psn)>,
    /// The PSN that the next MIDDLE or LAST has to have.
    pub burst: Option<i64>,
    /// Original values by PSN.
    pub originals: BTreeMap<i64, u64>,
}

impl Stream {
    pub fn new(path: Path) -> Self {
        Stream {
            path,
            ..Stream::default()
        }
    }

    /// The unwrapped form of a PSN near those seen; `None` before the first request.
    pub fn unwrap(&self, psn: Psn) -> Option<i64> {
        let (near, unwrapped) = self.origin?;
        Some(unwrapped + i64::from(psn.diff(near)))
    }

    /// The unwrapped form of a request's PSN, and whether the QP has been set up anew, so that nothing known of it
    /// counts any more.
    pub fn unwrap_request(&mut self, psn: Psn) -> (i64, bool) {
        match self.unwrap(psn) {
            Some(at) if at > self.first - SAME_QP && at < self.end + SAME_QP => (at, false),
            before => {
                *self = Stream::new(self.path);
                // Room below, so that retransmissions of what was sent before the capture are no negative numbers.
                let at = 1 << 32;
                self.origin = Some((psn, at));
                (self.first, self.end, self.newest) = (at, at, at);
                (self.contiguous, self.acked) = (at, at);
                (at, before.is_some())
            }
        }
    }

    /// Moves on to a PSN to unwrap others by.
    pub fn move_origin(&mut self, psn: Psn, at: i64) {
        self.origin = Some((psn, at));
    }

    /// The READ whose responses take this PSN.
    pub fn read_at(&self, at: i64) -> Option<(i64, Read)> {
        let (start, read) = self.reads.range(..=at).next_back()?;
        (read.end > at).then_some((*start, *read))
    }

    /// The request packet just before this PSN.
    pub fn before(&self, at: i64) -> Option<&Sent> {
        let (_, sent) = self.sent.range(..at).next_back()?;
        (sent.end == at).then_some(sent)
    }

    /// Whether everything from the first PSN up to this one went by.
    pub fn has_all_before(&self, at: i64) -> bool {
        at <= self.contiguous
    }

    /// Everything that can have been acknowledged was, up to this PSN.
    pub fn acknowledge(&mut self, end: i64) {
        self.acked = self.acked.max(end.min(self.end));
    }

    pub fn advance_contiguous(&mut self) {
        while let Some(sent) = self.sent.get(&self.contiguous) {
            self.contiguous = sent.end;
        }
    }
}
