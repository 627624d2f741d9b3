//! Congestion control of one QP: how fast its data packets leave, and what its peer is told of marked ones
//! (A17.9, and `docs/adr`).
//!
//! *Reaction point*: requests and READ responses of a limited flow go through its [`Pacer`], at the rate that its
//! [`Control`] allows. What is waited for is a deadline like any other ([`RcQp::poll_timeout`]). Acknowledgements and
//! CNPs are never held back. *Notification point*: a marked packet makes [`RcQp::marked`] owe the peer a CNP.
//!
//! A QP without congestion control, and one of DCQCN that is not limited, sees one byte of this per packet.

mod control;
mod dcqcn;
mod pacer;

use core::fmt;

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

use crate::host::Host;
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, Emit, RcQp, Received, Source};
use crate::record::{BadField, record};
use crate::types::{QpType, Time};
pub(crate) use control::Signal;
use control::{Control, FixedRate, Off};
use dcqcn::Dcqcn;
pub use dcqcn::DcqcnSettings;
use pacer::Pacer;
use rnic_wire::{Bth, Opcode, Psn};

/// What a packet takes on the wire beside its transport headers and payload: Ethernet with FCS, IPv4, UDP, ICRC. (IPv6
/// takes 20 more, which no rate counts.)
pub(crate) const FRAMING: u32 = 14 + 4 + 20 + 8 + 4;

/// Bytes a second of the fastest flow.
pub(crate) const MAX_RATE: u64 = 1 << 40;

/// ACKs are asked for so often that so many fit into the local ACK timeout.
const ACKS_PER_TIMEOUT: u64 = 4;

/// How a QP deals with congestion. Rates are bytes a second on the wire: Ethernet frames with FCS, as they are over IPv4.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Not at all: it sends as fast as its windows allow, as Not-ECT, and notifies nobody.
    #[default]
    Off,
    /// It never sends faster than this. Not-ECT, and notifies nobody.
    FixedRate {
        /// Bytes a second, 1 to 2^40.
        rate: u64,
    },
    /// DCQCN, of RC and UC. Frames leave as ECT(0), marks are answered by CNPs. A UD QP, whose datagrams go many ways, is as
    /// with `Off`.
    Dcqcn(DcqcnSettings),
}

/// Which of them.
#[derive(Copy, Clone, Debug, PartialEq, Eq, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub(crate) enum Algorithm {
    Off = 0,
    FixedRate = 1,
    Dcqcn = 2,
}

/// What of a flow is looked at for every packet: bits.
#[derive(Copy, Clone, PartialEq, Eq, TryFromBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub(crate) struct Pace(u8);

impl Pace {
    pub const OFF: Pace = Pace(0);
    /// The algorithm is at work.
    const ON: u8 = 1;
    /// The flow has a rate.
    const LIMITED: u8 = 2;
    /// The next data packet waits for [`Pacer::next`].
    const WAITING: u8 = 4;
    /// A CNP goes out now.
    const CNP_DUE: u8 = 8;
    /// A CNP goes out when [`Flow::cnp_next`] has come.
    const CNP_LATER: u8 = 16;
    const ALL: u8 = 31;

    #[inline(always)]
    fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Whether a packet has to be looked at twice.
    #[inline(always)]
    pub fn is_engaged(self) -> bool {
        self.has(Pace::LIMITED | Pace::WAITING | Pace::CNP_DUE | Pace::CNP_LATER)
    }

    /// An algorithm is at work.
    pub fn is_on(self) -> bool {
        self.has(Pace::ON)
    }

    /// Data packets wait.
    #[inline(always)]
    pub fn is_waiting(self) -> bool {
        self.has(Pace::WAITING)
    }

    /// A CNP can be sent.
    #[inline(always)]
    pub fn owes_cnp(self) -> bool {
        self.has(Pace::CNP_DUE)
    }

    #[inline(always)]
    pub fn is_limited(self) -> bool {
        self.has(Pace::LIMITED)
    }

    fn set(&mut self, bits: u8, on: bool) {
        if on {
            self.0 |= bits;
        } else {
            self.0 &= !bits;
        }
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#07b}", self.0)
    }
}

record! {
    /// The rest: touched by limited flows and for CNPs alone.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Flow {
        algorithm: Algorithm,
        fixed: FixedRate,
        dcqcn: Dcqcn,
        pacer: Pacer,
        /// No CNP before this.
        cnp_next: Time,
    }
}

impl Flow {
    pub const fn new() -> Self {
        Flow {
            algorithm: Algorithm::Off,
            fixed: FixedRate { rate: 1 },
            dcqcn: Dcqcn::new(DcqcnSettings::for_line_rate(1)),
            pacer: Pacer::new(),
            cnp_next: Time(0),
        }
    }

    fn with(congestion: &Congestion) -> Self {
        let mut flow = Flow::new();
        match *congestion {
            Congestion::Off => {}
            Congestion::FixedRate { rate } => {
                flow.algorithm = Algorithm::FixedRate;
                flow.fixed.rate = rate.clamp(1, MAX_RATE);
            }
            Congestion::Dcqcn(settings) => {
                flow.algorithm = Algorithm::Dcqcn;
                flow.dcqcn = Dcqcn::new(settings);
            }
        }
        flow
    }

    /// The same settings for a flow that has sent nothing.
    pub fn anew(&self) -> Self {
        Flow {
            algorithm: self.algorithm,
            fixed: self.fixed,
            dcqcn: Dcqcn::new(self.dcqcn.settings),
            ..Flow::new()
        }
    }

    fn congestion(&self) -> Congestion {
        match self.algorithm {
            Algorithm::Off => Congestion::Off,
            Algorithm::FixedRate => Congestion::FixedRate {
                rate: self.fixed.rate,
            },
            Algorithm::Dcqcn => Congestion::Dcqcn(self.dcqcn.settings),
        }
    }

    pub fn check(&self, pace: Pace, qp_type: QpType) -> Result<(), BadField> {
        BadField::unless(pace.0 & !Pace::ALL == 0, "pace", pace.0, "five bits")?;
        let idle =
            self.algorithm != Algorithm::Off && (self.algorithm != Algorithm::Dcqcn || qp_type != QpType::Ud);
        BadField::unless(
            idle || pace == Pace::OFF,
            "pace",
            pace.0,
            "0 without congestion control",
        )?;
        BadField::unless(
            pace.has(Pace::ON) || pace == Pace::OFF,
            "pace",
            pace.0,
            "0 where the lowest bit is",
        )?;
        BadField::unless(
            pace.is_limited() || !pace.is_waiting(),
            "pace",
            pace.0,
            "limited where it waits",
        )?;
        let rate = self.fixed.rate;
        BadField::unless(
            (1..=MAX_RATE).contains(&rate),
            "flow.fixed.rate",
            rate,
            "1 to 2^40",
        )?;
        self.dcqcn.check()
    }
}

impl Control for Flow {
    fn rate(&self) -> Option<u64> {
        match self.algorithm {
            Algorithm::Off => Off.rate(),
            Algorithm::FixedRate => self.fixed.rate(),
            Algorithm::Dcqcn => self.dcqcn.rate(),
        }
    }

    fn sent(&mut self, bytes: u32, silent: u64, now: Time) {
        match self.algorithm {
            Algorithm::Off => Off.sent(bytes, silent, now),
            Algorithm::FixedRate => self.fixed.sent(bytes, silent, now),
            Algorithm::Dcqcn => self.dcqcn.sent(bytes, silent, now),
        }
    }

    fn congested(&mut self, signal: Signal, now: Time) -> bool {
        match self.algorithm {
            Algorithm::Off => Off.congested(signal, now),
            Algorithm::FixedRate => self.fixed.congested(signal, now),
            Algorithm::Dcqcn => self.dcqcn.congested(signal, now),
        }
    }
}

impl RcQp {
    /// The same with congestion control, at work at once. Settings out of range are brought to those of
    /// [`DcqcnSettings::for_line_rate`].
    #[must_use]
    pub fn with_congestion(mut self, congestion: &Congestion) -> Self {
        let sound = match congestion {
            Congestion::Dcqcn(settings) if settings.check().is_err() => {
                Congestion::Dcqcn(DcqcnSettings::for_line_rate(settings.line_rate.min(MAX_RATE - 1)))
            }
            other => *other,
        };
        self.flow = Flow::with(&sound);
        self.use_congestion_control(true);
        self
    }

    /// Begins anew with congestion control as it was set, or goes on without: between two QPs of one appliance there
    /// is nothing to be congested.
    pub fn use_congestion_control(&mut self, on: bool) {
        self.flow = self.flow.anew();
        let fit = match self.flow.algorithm {
            Algorithm::Off => false,
            Algorithm::FixedRate => true,
            Algorithm::Dcqcn => self.qp_type != QpType::Ud,
        };
        self.pace = Pace::OFF;
        self.pace.set(Pace::ON, on && fit);
        self.pace
            .set(Pace::LIMITED, on && self.flow.algorithm == Algorithm::FixedRate);
    }

    /// Whether it has congestion control, and that is at work.
    #[inline]
    pub fn controls_congestion(&self) -> bool {
        self.pace.is_on()
    }

    /// Its congestion control, at work or not.
    pub fn congestion(&self) -> Congestion {
        self.flow.congestion()
    }

    /// Whether its frames are to leave as ECT(0): it hears of congestion and slows down.
    #[inline]
    pub fn is_ecn_capable(&self) -> bool {
        self.pace.has(Pace::ON) && self.flow.algorithm == Algorithm::Dcqcn
    }

    /// Bytes a second that it sends at most now; `None` when it is not limited.
    pub fn rate(&self) -> Option<u64> {
        if self.pace.is_limited() {
            self.flow.rate()
        } else {
            None
        }
    }

    /// A packet for it arrived marked "congestion experienced". Call it beside [`RcQp::receive`].
    ///
    /// The peer is told at once, or, when it was told a short while ago, at the end of that while.
    pub fn marked(&mut self, opcode: Opcode, now: Time) {
        // A CNP that was marked says nothing about data.
        if !self.is_ecn_capable()
            || opcode == Opcode::CNP
            || !self.state.receives()
            || self.mutated(Mutation::ForgetCnp)
        {
            return;
        }
        if self.flow.cnp_next <= now || self.mutated(Mutation::CnpPerMark) {
            self.pace.set(Pace::CNP_DUE, true);
        } else {
            self.pace.set(Pace::CNP_LATER, true);
        }
    }

    /// The CNP that is due. Its PSN is 0, and MigReq too (A17.9.1).
    fn poll_cnp(&mut self, now: Time, emit: &mut Emit) {
        self.pace.set(Pace::CNP_DUE | Pace::CNP_LATER, false);
        self.flow.cnp_next = now.saturating_add(self.flow.dcqcn.settings.cnp_interval.into());
        let bth = Bth {
            becn: true,
            mig_req: false,
            ..Bth::new(Opcode::CNP, self.dest_qpn, Psn::ZERO)
        };
        emit.begin(bth);
    }

    /// Takes a CNP.
    pub(crate) fn notified(&mut self, now: Time) -> Received {
        if !self.is_ecn_capable() || !self.state.receives() {
            return Received::Dropped(DropReason::CnpIgnored);
        }
        self.hear(Signal::Cnp, now);
        Received::Notified
    }

    /// Congestion was heard of.
    pub(crate) fn hear(&mut self, signal: Signal, now: Time) {
        let deaf = match signal {
            Signal::Cnp => self.mutated(Mutation::IgnoreCnp),
            Signal::SequenceError | Signal::Timeout => self.mutated(Mutation::IgnoreLoss),
        };
        if self.pace.has(Pace::ON) && !deaf {
            self.flow.congested(signal, now);
            if !self.pace.is_limited() {
                self.flow.pacer.begin(now);
            }
            self.limit(self.flow.rate().is_some());
        }
    }

    fn limit(&mut self, limited: bool) {
        self.pace.set(Pace::LIMITED, limited);
        if !limited {
            self.pace.set(Pace::WAITING, false);
        }
    }

    /// The next packet of a QP that is limited or owes a CNP.
    pub(crate) fn poll_paced<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &mut Emit) -> bool {
        self.come_up(ctx.now);
        if self.pace.owes_cnp() {
            self.poll_cnp(ctx.now, emit);
            return true;
        }
        if self.pace.is_waiting() {
            return self.poll_unpaced(ctx, emit);
        }
        if !self.poll_next(ctx, emit) {
            return false;
        }
        let opcode = emit.headers.bth.opcode;
        if self.pace.is_limited() && (opcode.is_request() || opcode.is_read_response()) {
            let payload = match emit.source {
                Source::None | Source::Missing => 0,
                Source::Send { len, .. } | Source::Remote { len, .. } => len.next_multiple_of(4),
            };
            self.count(FRAMING + opcode.header_len() as u32 + payload, ctx.now);
        }
        true
    }

    /// A data packet of so many bytes goes out.
    fn count(&mut self, bytes: u32, now: Time) {
        let silent = self.flow.pacer.silent(now);
        self.flow.sent(bytes, silent, now);
        let Some(rate) = self.flow.rate() else {
            return self.limit(false);
        };
        self.flow.pacer.sent(bytes, rate, now);
        let waits = self.flow.pacer.next > now && !self.mutated(Mutation::SendUnpaced);
        self.pace.set(Pace::WAITING, waits);
    }

    /// What may go though data waits: acknowledgements that no READ response has to precede; completions of what is out.
    fn poll_unpaced<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &mut Emit) -> bool {
        if !self.qp_type.is_reliable() {
            self.complete_sent(ctx);
            return false;
        }
        if self.resp.invalidating {
            self.finish_invalidation(ctx);
        }
        self.resp.has_unpaced() && self.poll_response(ctx, emit)
    }

    /// The next deadline of this part, or [`Time::NEVER`].
    pub(crate) fn pace_deadline(&self) -> Time {
        let mut next = Time::NEVER;
        if self.pace.is_waiting() {
            next = self.flow.pacer.next;
        }
        if self.pace.has(Pace::CNP_LATER) {
            next = next.min(self.flow.cnp_next);
        }
        next
    }

    /// Acts on them.
    pub(crate) fn come_up(&mut self, now: Time) {
        if self.pace.is_waiting() && self.flow.pacer.next <= now {
            self.pace.set(Pace::WAITING, false);
        }
        if self.pace.has(Pace::CNP_LATER) && self.flow.cnp_next <= now {
            self.pace.set(Pace::CNP_DUE, true);
            self.pace.set(Pace::CNP_LATER, false);
        }
    }

    /// Nothing is told to the peer any more, and nothing waits.
    pub(crate) fn stop_pacing(&mut self) {
        self.pace.set(Pace::CNP_DUE | Pace::CNP_LATER, false);
    }

    /// Whether packets are so far apart that an ACK asked for every so many of them could come after the ACK timer.
    #[inline]
    pub(crate) fn is_slow(&self) -> bool {
        self.pace.is_limited()
            && self.attrs.timeout.nanos().is_some_and(|timeout| {
                self.flow.pacer.gap() > (timeout / ACKS_PER_TIMEOUT) >> self.limits.ack_every_log2
            })
    }
}
