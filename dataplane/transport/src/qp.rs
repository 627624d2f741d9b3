//! The queue pair: its record, and the entry points that share work between requester and responder.

use core::mem::offset_of;
use core::ops::Range;

use crate::attr::Attrs;
use crate::cold::Cold;
use crate::congestion::{Flow, Pace};
use crate::host::{Completion, Host, KeyError};
use crate::record::record;
use crate::requester::Requester;
use crate::responder::Responder;
use crate::types::{Cause, Check, Event, EventKind, QpState, QpType, Queue, Time, WcOpcode, WcStatus};
use crate::work::{RecvWqe, SendWr, WrOpcode};
use rnic_wire::{Bth, Headers, Opcode, Operation, Psn};

/// The longest message of any operation, in bytes (9.7.8).
pub const MAX_MESSAGE: u32 = 1 << 31;

/// Half the PSN space less one: the most PSNs that may be outstanding (9.7.4.1).
pub(crate) const MAX_WINDOW: u32 = (1 << 23) - 1;

/// What each call borrows from the engine.
pub struct Ctx<'a, H: Host> {
    /// Memory, queues and events.
    pub host: &'a mut H,
    /// Storage of the QP's send ring; the same power-of-two number of records at every call.
    pub sq: &'a mut [SendWr],
    /// What is seldom needed; the same at every call.
    pub cold: &'a mut Cold,
    /// Now.
    pub now: Time,
}

impl<H: Host> Ctx<'_, H> {
    /// The record at a free-running index.
    #[inline]
    pub(crate) fn wr(&mut self, index: u32) -> &mut SendWr {
        let mask = self.sq.len().wrapping_sub(1);
        &mut self.sq[index as usize & mask]
    }
}

/// Where the payload of a packet to be sent lies.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// There is none.
    None,
    /// In the local buffers of a send work request.
    Send {
        /// Index into the ring, already reduced to its size.
        wr_index: u32,
        /// [`SendWr::data`].
        data: u32,
        /// First byte within the message.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// In the memory a READ names; the key is to be checked again (with [`crate::Access::REMOTE_READ`]) when
    /// it is read.
    Remote {
        /// Remote key of the request.
        rkey: u32,
        /// Address.
        addr: u64,
        /// Bytes.
        len: u32,
        /// On an XRC target QP: number of the XRC SRQ whose protection domain the key has to belong to.
        srqn: u32,
    },
    /// In the QP itself: [`RcQp::selective_ack`].
    Missing,
}

/// One packet to be sent to the peer. Pad count, addresses and ICRC are the engine's to add.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Emit {
    /// Transport headers.
    pub headers: Headers,
    /// Payload.
    pub source: Source,
    /// Number of the address handle by which a datagram goes; `None` on a connected QP, which has one way.
    pub ah: Option<u32>,
    /// The request was sent before, or answered before.
    pub retransmitted: bool,
}

impl Emit {
    /// A place for packets: nothing of it means anything before [`RcQp::poll_transmit_into`] has filled it.
    pub const EMPTY: Emit = Emit {
        headers: Headers::new(Bth::new(Opcode::CNP, 0, Psn::ZERO)),
        source: Source::None,
        ah: None,
        retransmitted: false,
    };

    /// Makes it a packet of this BTH alone, sent for the first time.
    #[inline]
    pub(crate) fn begin(&mut self, bth: Bth) {
        self.headers.begin(bth);
        self.source = Source::None;
        self.ah = None;
        self.retransmitted = false;
    }
}

/// What became of an incoming packet. For counters; every action it asks for has been taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was in sequence and took effect.
    Accepted,
    /// Part of a WRITE whose turn has not come, since packets before it are missing: its payload was placed.
    Early,
    /// A request seen before: acknowledged again, a READ executed again, an atomic's result said again.
    Duplicate,
    /// Packets before it are missing: NAKed, or a retry began. On UC the message they belong to is dropped; this one begins
    /// another.
    OutOfOrder,
    /// No receive WQE: answered with an RNR NAK.
    NotReady,
    /// A CNP: the QP has slowed down.
    Notified,
    /// An error: NAKed if it is a request, a failed completion if it is a response. The QP is in ERR.
    Refused(Check),
    /// It had no effect.
    Dropped(DropReason),
}

/// Why a packet had no effect.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The QP's state does not take such packets.
    State,
    /// An opcode of another class than the QP's.
    OtherClass,
    /// A request to an XRC initiator, or a response to an XRC target.
    OtherHalf,
    /// A CNP, to a QP without a reaction point: congestion control is off, or of a fixed rate, or it is a UD QP.
    CnpIgnored,
    /// A reserved opcode, on an unreliable QP.
    ReservedOpcode,
    /// Of a message that is dropped as a whole, since part of it is missing (UC).
    MessageLost,
    /// No receive WQE for its message, which is dropped (UC, UD).
    NoReceiveWqe,
    /// A check failed, and its message is dropped (UC, UD).
    Refused(Check),
    /// Not the QP's Q_Key (UD).
    Qkey,
    /// A response to what was acknowledged before.
    StaleResponse,
    /// A response to nothing that is outstanding.
    UnexpectedResponse,
    /// A syndrome which the specification reserves.
    ReservedSyndrome,
    /// Out of order while a NAK is outstanding: exactly one is sent.
    NakOutstanding,
    /// The key of a SEND with invalidate is still in use somewhere: nothing is taken before its completion.
    Invalidating,
    /// A duplicate READ or atomic that does not match what was asked, or for which there is no room. Its sender
    /// will retry.
    ReplayRefused,
}

/// Why a send work request was not accepted. The ring is unchanged.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The ring holds as many requests as it has records.
    #[error("the send queue is full; poll the completion queue and post again")]
    Full,
    /// Not RTS, SQD, SQE or ERR.
    #[error("the QP is in {state}; bring it to RTS before posting sends")]
    BadState {
        /// The QP's state.
        state: QpState,
    },
    /// The operation is not implemented, or not for QPs of this type.
    #[error("{opcode:?} is not supported by this device on QPs of this type")]
    Unsupported {
        /// The operation.
        opcode: WrOpcode,
    },
    /// Longer than 2^31 bytes, or a READ of more packets than half the PSN space.
    #[error("a message of {length} bytes is too long for the operation; split it")]
    TooLong {
        /// Its length.
        length: u32,
    },
    /// An atomic of another length than 8 bytes.
    #[error("an atomic of {length} bytes; it works on exactly 8, and its local buffer has room for as many")]
    AtomicLength {
        /// Its length.
        length: u32,
    },
    /// A FLUSH of no placement, of one that the specification reserves, or with a message.
    #[error(
        "a FLUSH with placement and selectivity {feth:#x} and {length} bytes; ask for global visibility (1) or persistence (2) of a range (0) or a region (1), without data"
    )]
    BadFlush {
        /// As [`Flush::to_bits`](crate::Flush::to_bits).
        feth: u64,
        /// Bytes of its message.
        length: u32,
    },
    /// A READ or atomic on a QP whose `max_rd_atomic` is 0.
    #[error("max_rd_atomic of the QP is 0; set it to 1 or more to post READs and atomics")]
    NoRdAtomicResources,
}

record! {
    /// Engine limits of a QP, not visible in verbs.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct Limits {
        /// Packets sent and not acknowledged, at most.
        pub(crate) max_unacked: u32,
        /// Inside a long message every so many packets ask for an ACK: log2.
        pub(crate) ack_every_log2: u32,
    }
}

impl Limits {
    /// At most `max_unacked` packets (1 to 2^23 − 1) on their way, and an ACK asked for every `1 <<
    /// ack_every_log2` packets of a long message. Values out of range are brought into it.
    pub const fn new(max_unacked: u32, ack_every_log2: u32) -> Self {
        let max_unacked = match max_unacked {
            0 => 1,
            MAX_WINDOW.. => MAX_WINDOW,
            n => n,
        };
        let ack_every_log2 = if ack_every_log2 > 22 { 22 } else { ack_every_log2 };
        Limits {
            max_unacked,
            ack_every_log2,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::new(1024, 4)
    }
}

record! {
    /// A queue pair of any type (9.7, 9.8): a plain record without pointers. What a type has no use for stays as it was made.
    #[derive(Copy, Clone, Debug)]
    pub struct RcQp {
        pub(crate) state: QpState,
        pub(crate) qp_type: QpType,
        /// The next packet asked for goes to the requester first: requests and responses take turns.
        pub(crate) turn_request: bool,
        pub(crate) uses_srq: bool,
        /// A completion was lost to a full CQ; said once.
        pub(crate) overflowed: bool,
        /// In ERR: the receive queue has been seen empty.
        pub(crate) recv_flushed: bool,
        /// In ERR: LAST_WQE_REACHED was raised.
        pub(crate) last_wqe_raised: bool,
        /// Congestion control, as far as every packet asks for it.
        pub(crate) pace: Pace,
        pub(crate) dest_qpn: u32,
        pub(crate) attrs: Attrs,
        pub(crate) limits: Limits,
        /// Deliberate fault of tests, by number; zero is none.
        pub(crate) mutation: u8,
        // What follows begins with what every packet needs, and ends with what few do.
        pub(crate) req: Requester,
        pub(crate) resp: Responder,
        pub(crate) flow: Flow,
        pub(crate) qpn: u32,
        /// XRC domain of an XRC target QP.
        pub(crate) xrcd: u32,
    }
}

impl RcQp {
    /// Bytes of the record that every packet needs.
    pub const HOT: [Range<usize>; 2] = [
        0..offset_of!(RcQp, req) + Requester::HOT,
        offset_of!(RcQp, resp)..offset_of!(RcQp, resp) + Responder::HOT,
    ];

    /// An RC QP in RESET.
    pub const fn new(qpn: u32) -> Self {
        RcQp {
            state: QpState::Reset,
            qp_type: QpType::Rc,
            turn_request: false,
            uses_srq: false,
            overflowed: false,
            recv_flushed: false,
            last_wqe_raised: false,
            pace: Pace::OFF,
            dest_qpn: 0,
            req: Requester::new(),
            resp: Responder::new(),
            attrs: Attrs::new(),
            limits: Limits::new(1024, 4),
            qpn,
            xrcd: 0,
            flow: Flow::new(),
            mutation: 0,
        }
    }

    /// The same of another type.
    #[must_use]
    pub const fn with_type(mut self, qp_type: QpType) -> Self {
        self.qp_type = qp_type;
        self
    }

    /// The same, drawing its receive WQEs from an SRQ: ERR does not flush them, and raises LAST_WQE_REACHED.
    #[must_use]
    pub const fn with_srq(mut self) -> Self {
        self.uses_srq = true;
        self
    }

    /// Whether it draws its receive WQEs from an SRQ.
    pub const fn uses_srq(&self) -> bool {
        self.uses_srq
    }

    /// The same under other limits.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Its type.
    #[inline]
    pub const fn qp_type(&self) -> QpType {
        self.qp_type
    }

    /// Its number.
    #[inline]
    pub const fn qpn(&self) -> u32 {
        self.qpn
    }

    /// The peer's QP number, once RTR.
    #[inline]
    pub const fn dest_qpn(&self) -> u32 {
        self.dest_qpn
    }

    /// Its state.
    #[inline]
    pub const fn state(&self) -> QpState {
        self.state
    }

    /// Its path MTU, in bytes.
    #[inline]
    pub const fn path_mtu(&self) -> usize {
        self.attrs.mtu.bytes()
    }

    /// Index of the oldest send work request in progress, or of the next one when there is none; reduce it to the
    /// size of the ring.
    #[inline]
    pub const fn sq_oldest(&self) -> u32 {
        self.req.head
    }

    /// Index at which the next send work request is posted.
    #[inline]
    pub const fn sq_next(&self) -> u32 {
        self.req.tail
    }

    /// Whether anything of [`Cold`] is in use.
    pub fn uses_cold(&self) -> bool {
        !self.resp.responses.is_empty()
            || self.resp.atomics.cursors().0 > 0
            || self.resp.early.is_gap()
            || self.req.resend.is_beyond()
    }

    /// The receive WQE of the message under way.
    pub const fn receiving(&self) -> Option<RecvWqe> {
        if self.resp.has_wqe {
            Some(self.resp.wqe)
        } else {
            None
        }
    }

    /// Records free in a send ring of `ring_len`.
    #[inline]
    pub const fn sq_room(&self, ring_len: u32) -> u32 {
        ring_len.saturating_sub(self.req.tail.wrapping_sub(self.req.head))
    }

    /// Takes one packet for this QP. Its addresses, ICRC and lengths were checked; payload excludes pad. Of a datagram the
    /// payload begins with the GRH area ([`crate::GRH_AREA`]).
    #[inline]
    pub fn receive<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        let opcode = headers.bth.opcode;
        if opcode.transport != self.qp_type.transport() {
            return match opcode {
                Opcode::CNP => self.notified(ctx.now),
                Opcode::SELECTIVE_ACK if self.attrs.selective => {
                    self.selectively_acknowledged(ctx, headers, payload)
                }
                _ => Received::Dropped(DropReason::OtherClass),
            };
        }
        match self.qp_type {
            QpType::Rc | QpType::XrcIni if opcode.is_response() => self.response(ctx, headers, payload),
            QpType::Rc => self.request(ctx, headers, payload),
            QpType::XrcTgt if opcode.is_request() => self.request(ctx, headers, payload),
            QpType::XrcIni | QpType::XrcTgt => Received::Dropped(DropReason::OtherHalf),
            QpType::Uc => self.uc_request(ctx, headers, payload),
            QpType::Ud => self.ud_request(ctx, headers, payload),
        }
    }

    /// Takes a packet whose opcode is reserved, but of the QP's own class: in sequence it is an invalid request on RC and
    /// XRC, and dropped on others.
    pub fn receive_reserved<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, opcode: u8, psn: Psn) -> Received {
        match self.qp_type {
            QpType::Rc | QpType::XrcTgt => self.reserved_request(ctx, opcode, psn),
            QpType::XrcIni => Received::Dropped(DropReason::OtherHalf),
            QpType::Uc | QpType::Ud => Received::Dropped(DropReason::ReservedOpcode),
        }
    }

    /// The next packet to send, or `None` when there is nothing to send now. Requests and responses take
    /// turns.
    ///
    /// A QP with congestion control may have packets to send, and to wait: [`RcQp::poll_timeout`] then says until when.
    #[inline]
    pub fn poll_transmit<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) -> Option<Emit> {
        let mut emit = Emit::EMPTY;
        self.poll_transmit_into(ctx, &mut emit).then_some(emit)
    }

    /// The same, put into `emit`; `false` when there is nothing to send now, and `emit` is then of no meaning. For who sends
    /// many: what is built in place is not copied.
    #[inline]
    pub fn poll_transmit_into<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &mut Emit) -> bool {
        if self.pace.is_engaged() {
            return self.poll_paced(ctx, emit);
        }
        self.poll_next(ctx, emit)
    }

    #[inline]
    pub(crate) fn poll_next<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &mut Emit) -> bool {
        match self.qp_type {
            QpType::Rc | QpType::XrcIni | QpType::XrcTgt => {}
            QpType::Uc => return self.poll_uc(ctx, emit),
            QpType::Ud => return self.poll_ud(ctx, emit),
        }
        self.turn_request = !self.turn_request;
        let first = self.turn_request && self.poll_request(ctx, emit);
        first || self.poll_response(ctx, emit) || !self.turn_request && self.poll_request(ctx, emit)
    }

    /// The engine could not read the payload of a packet it had been given: nothing of it was sent.
    ///
    /// Of a request: its work request fails with a local protection error once its turn comes. Of a READ
    /// response: the peer gets a NAK. Either way the QP ends in ERR; an unreliable one in SQE. Only if the READ was
    /// answered before, the QP lives on, as when a repeated request is refused at once.
    pub fn gather_failed<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &Emit, err: KeyError) {
        let opcode = emit.headers.bth.opcode.to_u8();
        let psn = emit.headers.bth.psn;
        match emit.source {
            Source::None | Source::Missing => {}
            Source::Send { wr_index, .. } => self.request_gather_failed(ctx, wr_index, psn, opcode, err),
            Source::Remote { .. } => self.response_gather_failed(ctx, psn, opcode, emit.retransmitted, err),
        }
    }

    /// Whether the responder may have something to say.
    #[inline]
    pub fn has_response(&self) -> bool {
        self.resp.has_work()
    }

    /// Whether [`RcQp::poll_transmit`] or [`RcQp::flush`] may have something to do.
    #[inline]
    pub fn has_work(&self) -> bool {
        let waiting = self.pace.is_waiting();
        if self.pace.owes_cnp() || self.resp.has_work() && (!waiting || self.resp.has_unpaced()) {
            return true;
        }
        match self.state {
            QpState::Err => self.req.head != self.req.tail || !self.recv_flushed,
            QpState::Sqe => self.req.head != self.req.tail,
            _ => self.state.sends() && (self.req.may_send() && !waiting || self.has_sent()),
        }
    }

    /// An error only the engine can see (forged ring indices, client memory gone): QP_FATAL, and ERR.
    pub fn fatal<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, cause: Cause) {
        if self.state == QpState::Err || self.state == QpState::Reset {
            return;
        }
        ctx.host.event(&Event {
            kind: EventKind::QpFatal,
            cause,
        });
        self.enter_err(false);
    }

    /// A send WQE that cannot be executed, and whose turn has come: it completes in error, and a reliable QP goes to ERR with
    /// QP_FATAL, an unreliable one to SQE (10.3.1.6).
    pub fn refuse_send<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, wr_id: u64, cause: Cause) {
        let completion = Completion {
            status: WcStatus::LocQpOpErr,
            cause,
            ..self.flushed(wr_id, Queue::Send, WcOpcode::Send)
        };
        self.complete(ctx, &completion);
        if self.qp_type.is_reliable() {
            self.fatal(ctx, cause);
        } else if self.state.sends() {
            self.enter_sqe();
        }
    }

    /// Goes to ERR. `answer` keeps what the responder has yet to say: READ responses due, and the NAK after
    /// them.
    pub(crate) fn enter_err(&mut self, answer: bool) {
        self.state = QpState::Err;
        self.req.stop();
        self.stop_pacing();
        self.resp.invalidating = false;
        if !answer {
            self.resp.silence();
        }
    }

    /// Places a completion; a full CQ is fatal to the QP.
    #[inline]
    pub(crate) fn complete<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, completion: &Completion) {
        if completion.queue == Queue::Recv && !self.name_srq_in_use(ctx) {
            // With its SRQ went what was posted to it.
            return;
        }
        if ctx.host.complete(completion).is_err() && !self.overflowed {
            self.overflowed = true;
            let cause = Cause {
                check: Check::CqOverflow,
                ..completion.cause
            };
            ctx.host.event(&Event {
                kind: EventKind::QpFatal,
                cause,
            });
            self.enter_err(false);
        }
    }

    /// A BTH to the peer.
    #[inline]
    pub(crate) fn bth(&self, operation: Operation, psn: Psn) -> Bth {
        Bth::new(
            Opcode::new(self.qp_type.transport(), operation),
            self.dest_qpn,
            psn,
        )
    }
}
