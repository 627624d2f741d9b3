//! A script as it was read.

use rnic_transport::{EventKind, GRH_AREA, WcStatus};
use rnic_wire::Mtu;

/// One of the two QPs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Side {
    A,
    B,
}

impl Side {
    /// 0 and 1.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// An attribute of a QP, as `ibv_qp_attr` names it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Attribute {
    Psn,
    Timeout,
    RetryCnt,
    RnrRetry,
    MinRnrTimer,
    MaxRdAtomic,
    MaxDestRdAtomic,
}

/// What is posted.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the specification's
pub enum Operation {
    Send,
    SendImm,
    Write,
    WriteImm,
    Read,
    FetchAdd,
    CmpSwap,
    AtomicWrite,
    Flush,
}

impl Operation {
    /// Whether it works on exactly 8 bytes.
    pub fn is_atomic(self) -> bool {
        matches!(
            self,
            Operation::FetchAdd | Operation::CmpSwap | Operation::AtomicWrite
        )
    }
}

/// A send work request.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// Who posts it.
    pub side: Side,
    /// What.
    pub operation: Operation,
    /// Bytes; 8 of an atomic or ATOMIC WRITE, those it concerns of a FLUSH.
    pub len: usize,
    /// It waits for earlier READs and atomics.
    pub fence: bool,
    /// Its remote key names nothing.
    pub bad_key: bool,
    /// Of a datagram: its Q_Key is not the peer's.
    pub bad_qkey: bool,
    /// Over XRC: which XRC SRQ it is for.
    pub srq: Srq,
    /// When, in nanoseconds.
    pub at: u64,
}

/// The service that the QPs are of.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Service {
    #[default]
    Rc,
    /// `a` is an initiator, `b` its target.
    Xrc,
    Uc,
    Ud,
}

impl Service {
    /// Whether what is sent arrives.
    pub fn is_reliable(self) -> bool {
        matches!(self, Service::Rc | Service::Xrc)
    }
}

/// Which messages a side is told of, when it is not all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// At least one, each once, in order.
    Some,
    /// These, by the numbers of the work requests, in this order.
    Exactly(Vec<usize>),
}

/// An XRC SRQ at `b`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Srq {
    /// One of the target's domain.
    #[default]
    First,
    /// Another one.
    Second,
    /// One of another domain.
    Foreign,
    /// There is none of its number.
    Unknown,
}

impl Srq {
    /// Its number.
    pub fn number(self) -> u32 {
        [0x51, 0x52, 0x61, 0x71][self as usize]
    }
}

/// Receive WQEs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Recv {
    /// Who posts them.
    pub side: Side,
    /// How many.
    pub count: usize,
    /// Bytes of each.
    pub size: usize,
    /// When, in nanoseconds.
    pub at: u64,
    /// Over XRC: where to.
    pub srq: Srq,
}

/// What a frame is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameName {
    /// Whatever it is.
    Any,
    /// ACK, NAK, RNR_NAK, or the operation of its opcode.
    Named(String),
}

/// Frames of one side by name and relative PSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Who sends them.
    pub side: Side,
    /// What they are.
    pub name: FrameName,
    /// PSN, counted from the requester's first; `None` for any.
    pub psn: Option<u32>,
}

/// How often.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Amount {
    /// The first so many times.
    Times(u32),
    /// Each time.
    Always,
}

/// What may happen to a frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It is lost.
    Drop,
    /// It arrives twice.
    Duplicate,
    /// It arrives damaged, which its ICRC shows.
    Corrupt,
    /// It arrives after the next one of its side.
    Reorder,
    /// It arrives so many nanoseconds later.
    Delay(u64),
    /// It arrives marked "congestion experienced".
    Mark,
}

/// Something that happens to chosen frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// To which.
    pub pick: Pick,
    /// How often.
    pub amount: Amount,
}

/// Something that happens by chance.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    /// To what this side sends.
    pub side: Side,
    /// What; a delay happens to every frame.
    pub kind: FaultKind,
    /// Thousandths.
    pub per_mille: u32,
}

/// A frame of the expected trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Who sends it.
    pub side: Side,
    /// "NAK access", "SEND_FIRST".
    pub name: String,
    /// Relative PSN.
    pub psn: u32,
    /// Nanoseconds since the frame before, at least.
    pub after: u64,
    /// The line of the script.
    pub line: usize,
}

/// How many frames there must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Which.
    pub pick: Pick,
    /// How many.
    pub count: usize,
    /// The line of the script.
    pub line: usize,
}

/// The send or the receive queue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Queue {
    Send,
    Recv,
}

/// A completion that is not a success.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Whose.
    pub side: Side,
    /// Of which queue.
    pub queue: Queue,
    /// Of which work request, in the order of posting, from 0.
    pub number: usize,
    /// How it ends.
    pub status: WcStatus,
}

/// The byte at a place of memory before anything happens; what is sent is the same from 1 on.
pub fn content(at: usize) -> u8 {
    (at * 7 + at / 256) as u8
}

/// A script.
#[derive(Clone, Debug)]
pub struct Script {
    /// Where it came from, for messages.
    pub name: String,
    /// Default: RC.
    pub service: Service,
    /// Path MTU. Default 256.
    pub mtu: Mtu,
    /// Both QPs have DCQCN's congestion control.
    pub congestion: bool,
    /// Seed of what happens by chance. Default 0.
    pub seed: u64,
    /// Attributes that are not the default.
    pub attributes: Vec<(Side, Attribute, u32)>,
    /// Receive WQEs; a side without any has as many as it needs.
    pub recvs: Vec<Recv>,
    /// Send work requests in the order of posting.
    pub posts: Vec<Post>,
    /// What happens to chosen frames.
    pub faults: Vec<Fault>,
    /// What happens by chance.
    pub rates: Vec<Rate>,
    /// The whole trace, as sent; empty for any.
    pub trace: Vec<Line>,
    /// Frames counted.
    pub counts: Vec<Count>,
    /// Completions that are no success, in order.
    pub done: Vec<Done>,
    /// Messages that sides are told of; a side without such a statement is told of all.
    pub heard: Vec<(Side, Heard)>,
    /// Asynchronous events, in order.
    pub events: Vec<(Side, EventKind)>,
}

impl Script {
    /// Whether it can be played against an appliance: nothing happens to chosen frames nor at given times, and first
    /// PSNs are free; datagrams have the path MTU of the port. What it demands of the trace holds in virtual time alone; an appliance's is checked by the rules.
    pub fn is_live(&self) -> bool {
        let atomic = |post: &Post| post.operation.is_atomic() || post.operation == Operation::Flush;
        let too_long = |post: &Post| self.service == Service::Ud && post.len > self.mtu.bytes();
        self.faults.is_empty()
            && !self.xrc()
            && !self.posts.iter().any(too_long)
            && !self.posts.iter().any(|post| post.at > 0 || atomic(post))
            && !self.recvs.iter().any(|recv| recv.at > 0)
            && !self
                .attributes
                .iter()
                .any(|(_, attribute, _)| *attribute == Attribute::Psn)
    }

    /// What a side posts, each with the offset in the peer's memory that it reads or writes.
    pub fn posts_of(&self, side: Side) -> Vec<(Post, u64)> {
        let mut offset = 0;
        let place = |post: &Post| {
            let at = offset;
            offset += post.len.next_multiple_of(8) as u64;
            (*post, at)
        };
        self.posts
            .iter()
            .filter(|post| post.side == side)
            .map(place)
            .collect()
    }

    /// Over XRC.
    pub fn xrc(&self) -> bool {
        self.service == Service::Xrc
    }

    /// Bytes in front of a message where it is received.
    pub fn grh(&self) -> usize {
        match self.service {
            Service::Ud => GRH_AREA,
            _ => 0,
        }
    }

    /// Which messages a side is told of, when it is not all.
    pub fn heard(&self, side: Side) -> Option<&Heard> {
        self.heard
            .iter()
            .find(|(at, _)| *at == side)
            .map(|(_, heard)| heard)
    }

    /// The messages that a side receives, in order; when it is told of some only, all of which those are.
    pub fn messages_to(&self, side: Side) -> Vec<Post> {
        let sent: Vec<Post> = self
            .posts
            .iter()
            .filter(|post| post.side != side)
            .copied()
            .collect();
        let tells = |post: &Post| {
            matches!(
                post.operation,
                Operation::Send | Operation::SendImm | Operation::WriteImm
            )
        };
        match self.heard(side) {
            Some(Heard::Exactly(numbers)) => {
                let message = |number: &usize| sent.get(*number).copied();
                numbers.iter().filter_map(message).collect()
            }
            _ => sent.into_iter().filter(tells).collect(),
        }
    }

    /// Whether all of a side's request must be where it belongs in the end: a WRITE of UC whose immediate the peer is not told
    /// of may be there in part.
    pub fn arrives(&self, side: Side, number: usize, post: &Post) -> bool {
        let peer = [Side::B, Side::A][side.index()];
        match self.heard(peer) {
            _ if self.service.is_reliable() => true,
            Some(Heard::Exactly(numbers)) if post.operation == Operation::WriteImm => {
                numbers.contains(&number)
            }
            _ => self.faults.is_empty() && self.rates.is_empty() && !post.bad_key,
        }
    }

    /// The status that a work request must complete with.
    pub fn status(&self, side: Side, queue: Queue, number: usize) -> WcStatus {
        self.done
            .iter()
            .find(|done| (done.side, done.queue, done.number) == (side, queue, number))
            .map_or(WcStatus::Success, |done| done.status)
    }

    /// An attribute of a side, if the script gives one.
    pub fn attribute(&self, side: Side, wanted: Attribute) -> Option<u32> {
        let of = |(at, attribute, value): &(Side, Attribute, u32)| {
            (*at == side && *attribute == wanted).then_some(*value)
        };
        self.attributes.iter().rev().find_map(of)
    }
}
