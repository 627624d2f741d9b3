//! Selective retransmission: an extension for peers that have agreed on it (`docs/adr`).
//!
//! *Responder*: packets of WRITEs that come before their turn are placed, if every message up to theirs is known and none
//! of them shares memory with it; when what was missing arrives, they are passed over as if they came then. So MSN,
//! completions and ACKs are in order as ever. While something is missing, what would be an ACK is a selective
//! acknowledgement: what is expected, and what has arrived behind it.
//!
//! *Requester*: the cursor of go-back-N goes back as ever, but over what the peer has, and only as far as something is
//! missing. What is lost again shows when packets sent later arrive, or by a probe, some round trips later.

use crate::cold::Cold;
use crate::congestion::Signal;
use crate::host::{Host, Payload};
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, Emit, MAX_MESSAGE, RcQp, Received, Source};
use crate::record::{BadField, record};
use crate::responder::next_msn;
use crate::types::{Access, QpState, Time};
use rnic_wire::{
    Aeth, Bth, Headers, MessageKind, NakCode, Opcode, Psn, PsnSet, SELECTIVE_ACK_LEN, SelectiveAck, Syndrome,
};

/// Messages known behind the one under way, at most.
const MESSAGES: usize = 4;
/// What a probe waits beyond the round trips: timers come up late by as much (16.4 µs twice), and acknowledgements wait
/// for the pass of a core.
const SLACK: u64 = 50_000;
/// Round trips that a probe waits.
const ROUND_TRIPS: u64 = 4;
/// The wait is doubled with each probe in vain, so often at most.
const MAX_PROBES: u8 = 10;

record! {
    /// At the responder: what has arrived before its turn. Distances are counted from the PSN expected.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Early {
        /// Distance of the last PSN of which anything was seen; 0 when nothing is missing. Looked at for every request.
        seen: u16,
        /// Messages that follow the one under way, without gap. All have the key of that one.
        messages: u16,
    }
}

record! {
    /// The rest of it, of no meaning while nothing is missing.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Placed {
        /// Lengths and addresses of the messages that follow.
        lens: [u32; MESSAGES],
        addrs: [u64; MESSAGES],
        /// Distances that have arrived, less one: the expected PSN itself is what is missing.
        received: PsnSet,
    }
}

impl Placed {
    pub const NOTHING: Placed = Placed {
        received: PsnSet::EMPTY,
        addrs: [0; MESSAGES],
        lens: [0; MESSAGES],
    };
}

/// What became of a packet before its turn.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Taken {
    Placed,
    Again,
    Not,
}

impl Early {
    pub const fn new() -> Self {
        Early { messages: 0, seen: 0 }
    }

    /// Whether something is missing.
    #[inline(always)]
    pub fn is_gap(&self) -> bool {
        self.seen != 0
    }

    /// The messages known behind the one under way.
    fn known(&self, placed: &Placed) -> impl Iterator<Item = (u64, u32)> {
        let all = placed.addrs.into_iter().zip(placed.lens);
        all.take(usize::from(self.messages))
    }

    /// Takes the first of them.
    fn next_message(&mut self, placed: &mut Placed) -> Option<(u64, u32)> {
        let next = self.known(placed).next()?;
        placed.addrs.copy_within(1.., 0);
        placed.lens.copy_within(1.., 0);
        self.messages -= 1;
        Some(next)
    }

    /// Appends one; `false` without room.
    fn learn(&mut self, placed: &mut Placed, addr: u64, len: u32) -> bool {
        let at = usize::from(self.messages);
        let (Some(to), Some(of)) = (placed.addrs.get_mut(at), placed.lens.get_mut(at)) else {
            return false;
        };
        (*to, *of) = (addr, len);
        self.messages += 1;
        true
    }

    pub fn check(&self, placed: &Placed, selective: bool, message: MessageKind) -> Result<(), BadField> {
        let seen = u32::from(self.seen);
        let most = if selective { PsnSet::REACH } else { 0 };
        BadField::unless(
            seen <= most,
            "resp.early.seen",
            seen,
            "0 to 256, and 0 unless agreed on",
        )?;
        if seen == 0 {
            let none = self.messages == 0;
            return BadField::unless(
                none,
                "resp.early.messages",
                self.messages,
                "0 when nothing is missing",
            );
        }
        let within = placed.received.is_below(seen);
        BadField::unless(within, "resp.early.received", !within, "below what was seen")?;
        let few = usize::from(self.messages) <= MESSAGES;
        BadField::unless(few, "resp.early.messages", self.messages, "at most 4")?;
        let empty = placed.received.is_empty() && self.messages == 0;
        BadField::unless(
            empty || message == MessageKind::Write,
            "resp.early.messages",
            self.messages,
            "behind a WRITE",
        )?;
        let short = self.known(placed).all(|(_, len)| len <= MAX_MESSAGE);
        BadField::unless(short, "resp.early.lens", !short, "at most 2^31 bytes")
    }
}

record! {
    /// At the requester: what the peer has of what was sent.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Resend {
        /// The next probe. Looked at by every [`RcQp::poll_timeout`].
        pub probe_at: Time,
        /// The oldest PSN not acknowledged, as far as [`Cold::arrived`] knows.
        base: Psn,
        /// What is missing before this was sent again, or is about to be: a cursor that was put back goes no further.
        scan: Psn,
        /// The oldest PSN not acknowledged was sent again just before this one was sent the first time.
        mark: Psn,
        /// The packet whose round trip is measured.
        sample: Psn,
        sampled_at: Time,
        /// Nanoseconds of a round trip; 0 before the first was measured.
        rtt: u32,
        /// Probes since the last progress.
        probes: u8,
        /// The peer has any of what lies behind the oldest PSN not acknowledged: [`Cold::arrived`] says which.
        beyond: bool,
        /// `mark` means something.
        resent: bool,
        /// `sample` does.
        sampling: bool,
    }
}

impl Resend {
    pub const fn new() -> Self {
        Resend {
            beyond: false,
            base: Psn::ZERO,
            scan: Psn::ZERO,
            mark: Psn::ZERO,
            sample: Psn::ZERO,
            sampled_at: Time(0),
            probe_at: Time::NEVER,
            rtt: 0,
            probes: 0,
            resent: false,
            sampling: false,
        }
    }

    /// Sets the first PSN.
    pub fn start(&mut self, psn: Psn) {
        (self.base, self.scan) = (psn, psn);
    }

    /// Whether [`Cold::arrived`] is in use.
    pub fn is_beyond(&self) -> bool {
        self.beyond
    }

    /// No probes.
    pub fn stop(&mut self) {
        self.probe_at = Time::NEVER;
    }

    /// The ACK timer came up: what was heard is not relied on any more.
    pub fn forget(&mut self) {
        self.beyond = false;
    }

    /// Everything before `end` is about to be sent again.
    #[inline]
    pub fn all(&mut self, end: Psn) {
        self.scan = end;
        self.resent = false;
        self.sampling = false;
    }

    /// The last packet sent was none.
    pub fn end_at(&mut self, max: Psn) {
        if self.scan.is_after(max) {
            self.scan = max;
        }
    }

    pub fn check(&self, arrived: &PsnSet, selective: bool, una: Psn, max: Psn) -> Result<(), BadField> {
        if !selective {
            let unused = !self.beyond && self.probe_at == Time::NEVER;
            return BadField::unless(unused, "req.resend", !unused, "unused unless agreed on");
        }
        for (field, psn) in [
            ("req.resend.scan", self.scan),
            ("req.resend.mark", self.mark),
            ("req.resend.sample", self.sample),
        ] {
            BadField::unless(psn.get() <= Psn::MAX.get(), field, psn.get(), "24 bits")?;
        }
        let base = self.base;
        BadField::unless(base == una, "req.resend.base", base.get(), "una")?;
        let window = max.diff(una);
        let inside = (0..=window).contains(&self.scan.diff(una));
        BadField::unless(inside, "req.resend.scan", self.scan.get(), "from una to max")?;
        let sent = !self.beyond || arrived.is_below(window.unsigned_abs());
        BadField::unless(sent, "req.resend.received", !sent, "before max")
    }
}

/// The responder.
impl RcQp {
    /// A request that is `ahead` of the one expected.
    #[cold]
    pub(crate) fn early<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
        ahead: u32,
    ) -> Received {
        if ahead > PsnSet::REACH {
            return self.out_of_order();
        }
        let seen = u32::from(self.resp.early.seen);
        if seen == 0 {
            ctx.cold.early.received = PsnSet::EMPTY;
        }
        let gap = seen == 0 || ahead > seen + 1;
        let taken = self.take_early(ctx, headers, payload, ahead);
        let resp = &mut self.resp;
        resp.early.seen = seen.max(ahead) as u16;
        // After an RNR NAK the sender waits, and is to be told nothing else.
        let tells = (gap || headers.bth.ack_req) && !resp.nak_stands;
        if tells {
            resp.ack();
        }
        match taken {
            Taken::Placed => Received::Early,
            Taken::Again => Received::Duplicate,
            Taken::Not if tells => Received::OutOfOrder,
            Taken::Not => Received::Dropped(DropReason::NakOutstanding),
        }
    }

    /// Places a packet before its turn, if it can be. Nothing is refused here: what is wrong will be when it is sent again.
    fn take_early<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
        ahead: u32,
    ) -> Taken {
        let resp = &self.resp;
        if ctx.cold.early.received.contains(ahead - 1) {
            return Taken::Again;
        }
        let opcode = headers.bth.opcode;
        let fit = opcode.is_write() && headers.imm.is_none() && resp.message == MessageKind::Write;
        if !fit || !self.attrs.access.contains(Access::REMOTE_WRITE) {
            return Taken::Not;
        }
        let mtu = self.attrs.mtu;
        // Where the message that it belongs to begins and ends; of the one under way, what is left of it.
        let mut start = 0;
        let mut end = mtu.packets(resp.write_len.saturating_sub(resp.received));
        let (mut addr, mut len, mut offset) = (resp.write_addr, resp.write_len, resp.received);
        for (next_addr, next_len) in resp.early.known(&ctx.cold.early) {
            if ahead < end {
                break;
            }
            (start, end) = (end, end + mtu.packets(next_len));
            (addr, len, offset) = (next_addr, next_len, 0);
        }
        let begins = ahead >= end;
        if begins {
            let Some(reth) = headers.reth.filter(|_| ahead == end) else {
                // It belongs to a message that nothing is known of.
                return Taken::Not;
            };
            (start, end) = (ahead, ahead.saturating_add(mtu.packets(reth.dma_len)));
            (addr, len, offset) = (reth.va, reth.dma_len, 0);
            if len > MAX_MESSAGE || reth.rkey != resp.write_rkey || self.overlaps(&ctx.cold.early, addr, len)
            {
                return Taken::Not;
            }
        }
        // 2^31 bytes at most, and all of them before the end.
        let offset = offset.saturating_add((ahead - start) << mtu.log2());
        let left = len.saturating_sub(offset) as usize;
        let sound = opcode.starts_message() == begins
            && opcode.ends_message() == (ahead + 1 == end)
            && payload.len() == left.min(mtu.bytes());
        if !sound {
            return Taken::Not;
        }
        let rkey = resp.write_rkey;
        if begins && len > 0 {
            let (bytes, access) = (u64::from(len), Access::REMOTE_WRITE);
            if ctx.host.check_remote(rkey, addr, bytes, access).is_err() {
                return Taken::Not;
            }
        }
        if begins && usize::from(self.resp.early.messages) == MESSAGES {
            return Taken::Not;
        }
        if !payload.is_empty() {
            let at = addr.wrapping_add(u64::from(offset));
            if ctx.host.write_remote(rkey, at, payload).is_err() {
                return Taken::Not;
            }
        }
        if begins && !self.resp.early.learn(&mut ctx.cold.early, addr, len) {
            return Taken::Not;
        }
        ctx.cold.early.received.insert(ahead - 1);
        Taken::Placed
    }

    /// Whether a WRITE shares memory with one that is not finished and comes before it: what that one still places must not
    /// replace what this one has placed.
    fn overlaps(&self, placed: &Placed, addr: u64, len: u32) -> bool {
        let resp = &self.resp;
        let shares = |(to, of): (u64, u32)| {
            let (apart, back) = (addr.wrapping_sub(to), to.wrapping_sub(addr));
            len > 0 && of > 0 && (apart < u64::from(of) || back < u64::from(len))
        };
        let under_way = core::iter::once((resp.write_addr, resp.write_len));
        under_way.chain(resp.early.known(placed)).any(shares) && !self.mutated(Mutation::PlaceOverlapping)
    }

    /// The PSN expected has moved on from `before`, while something was missing: passes over what has arrived.
    #[cold]
    pub(crate) fn close_up(&mut self, placed: &mut Placed, before: Psn) {
        let moved = self.resp.epsn.diff(before).unsigned_abs();
        let early = &mut self.resp.early;
        if moved == 0 {
            return;
        }
        if moved > u32::from(early.seen) {
            // Nothing behind it was seen.
            *early = Early::new();
            return;
        }
        early.seen -= moved as u16;
        let mut here = placed.received.contains(moved - 1);
        placed.received.lower(moved);
        let mut passed = false;
        while here || self.mutated(Mutation::PassOverMissing) && self.resp.early.seen > 0 && !passed {
            if !self.pass_over(placed) || self.resp.early.seen == 0 {
                self.resp.early = Early::new();
                break;
            }
            passed = true;
            let early = &mut self.resp.early;
            early.seen -= 1;
            here = placed.received.contains(0);
            placed.received.lower(1);
        }
        if self.resp.message != MessageKind::Write && self.resp.early.is_gap() && !placed.received.is_empty()
        {
            // What a peer sends that contradicts itself has to come again.
            self.resp.early = Early::new();
        }
        if (passed || self.resp.early.is_gap()) && self.state != QpState::Err {
            self.resp.ack();
        }
    }

    /// The PSN expected has arrived before: its turn is now. `false` when it belongs to no WRITE.
    fn pass_over(&mut self, placed: &mut Placed) -> bool {
        let mtu = self.attrs.mtu;
        let resp = &mut self.resp;
        if resp.message == MessageKind::None {
            let Some((addr, len)) = resp.early.next_message(placed) else {
                return false;
            };
            (resp.write_addr, resp.write_len, resp.received) = (addr, len, 0);
        } else if resp.message != MessageKind::Write {
            return false;
        }
        let left = resp.write_len.saturating_sub(resp.received);
        resp.received += left.min(mtu.bytes() as u32);
        resp.taken = resp.epsn;
        resp.epsn = resp.epsn.next();
        resp.message = MessageKind::Write;
        if left <= mtu.bytes() as u32 {
            resp.message = MessageKind::None;
            resp.msn = next_msn(resp.msn);
        }
        true
    }

    /// The acknowledgement while something is missing.
    #[cold]
    pub(crate) fn say_missing(&self, emit: &mut Emit) {
        emit.begin(Bth::new(Opcode::SELECTIVE_ACK, self.dest_qpn, self.resp.epsn));
        emit.headers.aeth = Some(Aeth {
            syndrome: Syndrome::Nak(NakCode::PsnSequenceError),
            msn: self.resp.msn(),
        });
        emit.source = Source::Missing;
    }

    /// The payload of the selective acknowledgement that [`RcQp::poll_transmit`] has just returned ([`Source::Missing`]).
    pub fn selective_ack(&self, cold: &Cold) -> [u8; SELECTIVE_ACK_LEN] {
        let seen = u32::from(self.resp.early.seen);
        let mut received = match self.resp.early.is_gap() {
            true => cold.early.received,
            false => PsnSet::EMPTY,
        };
        if self.mutated(Mutation::AcknowledgeMissing)
            && let Some(missing) = (0..seen).find(|at| !received.contains(*at))
        {
            received.insert(missing);
        }
        SelectiveAck { seen, received }.to_bytes()
    }
}

/// The requester.
impl RcQp {
    /// Packets sent and not acknowledged, at most: with selective retransmission no more than a responder keeps account of.
    #[inline]
    pub(crate) fn window(&self) -> u32 {
        if self.attrs.selective {
            self.limits.max_unacked.min(PsnSet::REACH)
        } else {
            self.limits.max_unacked
        }
    }

    /// Takes a selective acknowledgement.
    #[cold]
    pub(crate) fn selectively_acknowledged<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        if !self.state.sends() {
            return Received::Dropped(DropReason::State);
        }
        let psn = headers.bth.psn;
        let (Some(aeth), Some(bytes)) = (headers.aeth, payload.selective_ack()) else {
            return Received::Dropped(DropReason::UnexpectedResponse);
        };
        if aeth.syndrome != Syndrome::Nak(NakCode::PsnSequenceError) {
            return Received::Dropped(DropReason::ReservedSyndrome);
        }
        if !psn.is_before(self.req.max) {
            return Received::Dropped(DropReason::UnexpectedResponse);
        }
        if psn.is_before(self.req.una) {
            return Received::Dropped(DropReason::StaleResponse);
        }
        let reached = self.complete_before(ctx, psn);
        if !self.state.sends() {
            return Received::Accepted;
        }
        let ack = SelectiveAck::from_bytes(&bytes);
        let req = &mut self.req;
        let (at, sent) = (
            psn.diff(req.una).unsigned_abs(),
            req.max.diff(req.una).unsigned_abs(),
        );
        if !req.resend.beyond && !ack.received.is_empty() {
            (req.resend.beyond, ctx.cold.arrived) = (true, PsnSet::EMPTY);
        }
        for number in ack.received.iter().map(|number| at + 1 + number) {
            if number < sent {
                ctx.cold.arrived.insert(number);
            }
        }
        if !reached {
            return self.response_missing(ctx);
        }
        if psn == self.req.una && !self.req.rnr_wait {
            self.resend_missing(ctx, ack.seen);
        }
        Received::Accepted
    }

    /// The peer misses the oldest PSN, and has seen what lies up to `seen` behind it.
    fn resend_missing<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, seen: u32) {
        let req = &mut self.req;
        let una = req.una;
        let sent = req.max.diff(una).unsigned_abs();
        let end = seen.saturating_add(1).min(sent);
        let resend = &mut req.resend;
        if resend.resent && (una + end).is_after(resend.mark) {
            // What was sent after its retransmission has arrived.
            (resend.scan, resend.resent) = (una, false);
        }
        let from = resend.scan.diff(una).max(0).unsigned_abs();
        let has = |number| resend.beyond && ctx.cold.arrived.contains(number);
        let Some(missing) = (from..end).find(|number| !has(*number)) else {
            return;
        };
        if end > from {
            resend.scan = una + end;
        }
        let first = una + missing;
        let turns_back = req.next == req.max || first.is_before(req.next);
        self.hear(Signal::SequenceError, ctx.now);
        if turns_back {
            self.point_to(ctx, first);
        }
    }

    /// Puts the send cursor to a PSN that was sent before, or to the first that was not. Within a READ it is the first whose
    /// response is missing.
    fn point_to<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, mut psn: Psn) {
        let (mut index, mut rd_atomics) = (self.req.head, 0u8);
        while index != self.req.fresh {
            let wr = ctx.wr(index);
            if !wr.last.is_before(psn) {
                if wr.is_rd_atomic() {
                    let before = wr.first.is_before(self.req.una);
                    psn = if before { self.req.una } else { wr.first };
                }
                break;
            }
            rd_atomics = rd_atomics.saturating_add(u8::from(wr.is_rd_atomic()));
            index = index.wrapping_add(1);
        }
        let req = &mut self.req;
        (req.next, req.cur, req.rd_atomics) = (psn, index, rd_atomics);
        req.blocked = false;
    }

    /// Brings a cursor that was put back over what the peer has, and to the end when nothing more is missing.
    #[cold]
    pub(crate) fn skip_received<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        while self.req.next != self.req.max && self.state.sends() {
            let next = self.req.next;
            if !next.is_before(self.req.resend.scan) {
                return self.point_to(ctx, self.req.max);
            }
            let wr = *ctx.wr(self.req.cur);
            let number = next.diff(self.req.una).max(0).unsigned_abs();
            let has = self.req.resend.beyond && ctx.cold.arrived.contains(number);
            let there = has && !wr.is_rd_atomic();
            if !there || self.mutated(Mutation::ResendReceived) {
                return;
            }
            self.advance(next.next(), next == wr.last);
        }
    }

    /// A packet was sent for the first time, and asks for an acknowledgement, which shows how long one takes.
    #[inline]
    pub(crate) fn note_first(&mut self, psn: Psn, now: Time) {
        let resend = &mut self.req.resend;
        if !resend.sampling {
            resend.sampling = true;
            (resend.sample, resend.sampled_at) = (psn, now);
        }
    }

    /// A request packet goes out.
    pub(crate) fn note_sent(&mut self, bth: &Bth, again: bool, now: Time) {
        if !again {
            if bth.ack_req {
                self.note_first(bth.psn, now);
            }
            return;
        }
        let req = &mut self.req;
        // Nobody could tell which of the two was answered.
        req.resend.sampling = false;
        if req.resend.scan.is_before(req.next) {
            // A READ, of which the peer has seen no more than the request.
            req.resend.scan = req.next;
        }
        if bth.psn == req.una {
            (req.resend.resent, req.resend.mark) = (true, req.max);
            self.arm_probe(now);
        }
    }

    /// The oldest PSN not acknowledged has changed.
    pub(crate) fn follow(&mut self, cold: &mut Cold, now: Time) {
        let (una, max) = (self.req.una, self.req.max);
        let resend = &mut self.req.resend;
        if resend.beyond {
            cold.arrived.lower(una.diff(resend.base).unsigned_abs());
            resend.beyond = !cold.arrived.is_empty();
        }
        resend.base = una;
        resend.resent = false;
        resend.probes = 0;
        if resend.scan.is_before(una) {
            resend.scan = una;
        }
        if resend.sampling && una.is_after(resend.sample) {
            resend.sampling = false;
            let took = now.0.saturating_sub(resend.sampled_at.0);
            let took = u32::try_from(took).unwrap_or(u32::MAX).max(1);
            resend.rtt = match resend.rtt {
                0 => took,
                rtt => rtt - rtt / 8 + took / 8,
            };
        }
        if una == max {
            resend.stop();
        }
    }

    /// A probe is due some round trips from now, unless the ACK timer comes first.
    pub(crate) fn arm_probe(&mut self, now: Time) {
        let ack_deadline = self.req.ack_deadline;
        let never = self.mutated(Mutation::NeverProbe);
        let resend = &mut self.req.resend;
        let wait = (u64::from(resend.rtt) * ROUND_TRIPS + SLACK) << resend.probes.min(MAX_PROBES);
        let at = now.saturating_add(wait);
        let due = resend.rtt != 0 && at < ack_deadline && !never;
        resend.probe_at = if due { at } else { Time::NEVER };
    }

    /// Nothing was heard of the oldest PSN for long: it is sent again, alone. What else is missing the answer will tell.
    #[cold]
    pub(crate) fn probe<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) {
        if self.req.resend.probe_at == Time::NEVER {
            return;
        }
        self.req.resend.probes = self.req.resend.probes.saturating_add(1);
        self.arm_probe(ctx.now);
        let req = &self.req;
        let outstanding = req.una != req.max && self.state.sends() && !req.rnr_wait;
        // A cursor that was put back will come by; and the responses of a READ may be on their way.
        if !outstanding || req.next != req.max || ctx.wr(req.head).is_rd_atomic() {
            return;
        }
        let una = req.una;
        self.req.resend.scan = una.next();
        self.point_to(ctx, una);
    }
}
