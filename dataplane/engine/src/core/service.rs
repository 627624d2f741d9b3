//! Serving the QPs that have something to do: doorbells, send queues, timers, events.
use rnic_abi::{FlushOperands, Wqe, event_kind, wqe_flags};
use rnic_qsbr::spsc::Consumer;
use rnic_transport::{Cause, Check, Emit, Flush, QpType, SendFlags, SendWr, Time, WrOpcode};

use rnic_wire::Opcode;

use super::{
    host::Env,
    qp::{Qp, Route},
    queue::{Accepted, QueueError, Segments, suits},
    records::{BadWr, Pending},
    run::Core,
    shared::RESERVED,
};
use crate::{
    command::{Message, ObjectEvent, Sent},
    view::slot_of,
};

/// Packets one QP may send in one pass of the loop.
pub(super) const PACKET_BUDGET: usize = 32;
/// QPs served in one pass, and after how much work no other one is: whoever has thousands of them receives in between, and
/// what is sent finds room.
const QP_BUDGET: usize = 64;
const SERVE_BUDGET: usize = 2 * PACKET_BUDGET;
/// QPs that found no room at their port, after which no other one is asked in the pass: they would find none either.
const STUCK_BUDGET: u32 = 4;
/// Payload bytes one QP may move in one pass.
pub(super) const BYTE_BUDGET: usize = 64 << 10;
/// The same where they are copied without frames, which costs less than half as much a byte.
const STRETCH_BUDGET: usize = 2 * BYTE_BUDGET;
/// Work requests flushed in one pass.
const FLUSH_BUDGET: u32 = 32;
/// Passes without work after which a QP is left alone until its doorbell rings.
const IDLE_PASSES: u8 = 64;
/// Timers looked at in one pass.
const TIMER_BUDGET: usize = 256;

impl Core {
    /// Takes the doorbells of all clients.
    pub(super) fn doorbells(&mut self) -> usize {
        let mut rung = 0;
        for i in 0..self.client_list.len() {
            let client = self.client_list[i];
            let Some(doorbells) = self.clients[client as usize].take() else {
                continue;
            };
            doorbells.take(|slot| {
                rung += 1;
                if let Some(Some(qp)) = self.qps.get_mut(slot as usize) {
                    activate(slot, qp, &mut self.active);
                }
            });
            self.clients[client as usize] = Some(doorbells);
        }
        rung
    }

    /// Runs the timers that have come up.
    pub(super) fn timers(&mut self) -> usize {
        for count in 0..TIMER_BUDGET {
            let Some(slot) = self.timers.expire(self.env.now) else {
                return count;
            };
            let Some(mut qp) = self.qps[slot as usize].take() else {
                continue;
            };
            if qp.deadline().is_some_and(|t| t <= self.env.now) {
                qp.with(&mut self.env, |rc, ctx| rc.handle_timeout(ctx));
            }
            self.after(slot, &mut qp);
            self.qps[slot as usize] = Some(qp);
        }
        TIMER_BUDGET
    }

    /// Serves the QPs in the active list in turn, within the budget of a pass.
    pub(super) fn serve(&mut self) -> usize {
        let mut work = 0;
        let spread = self.is_spread();
        self.stuck = 0;
        for _ in 0..self.active.len().min(QP_BUDGET) {
            if work >= SERVE_BUDGET || self.stuck >= STUCK_BUDGET {
                break;
            }
            let Some(slot) = self.active.pop_front() else {
                break;
            };
            if spread {
                self.prefetch_next();
            }
            let Some(mut qp) = self.qps[slot as usize].take() else {
                continue;
            };
            let done = self.serve_one(&mut qp);
            work += done;
            qp.active = false;
            self.after(slot, &mut qp);
            if !qp.active && (done > 0 || !self.leave(&mut qp)) {
                qp.active = true;
                self.active.push_back(slot);
            }
            if done > 0 {
                qp.idle_passes = 0;
            }
            self.qps[slot as usize] = Some(qp);
            if let Some(peer) = self.asked.take() {
                self.answer_direct(peer);
            }
        }
        work
    }

    /// Begins to load the QPs that are served next, in the order in which one thing leads to the other.
    #[inline]
    fn prefetch_next(&self) {
        let ahead = |n: usize| self.qps[*self.active.get(n)? as usize].as_ref();
        if let Some(qp) = ahead(5) {
            qp.prefetch();
        }
        if let Some(qp) = ahead(3) {
            qp.prefetch_served();
        }
        if let Some(qp) = ahead(1) {
            qp.prefetch_sends();
        }
    }

    /// Whether an idle QP can be left alone until its doorbell rings.
    #[inline]
    fn leave(&mut self, qp: &mut Qp) -> bool {
        qp.idle_passes = qp.idle_passes.saturating_add(1);
        // Looking at one of many costs more than its doorbell.
        if qp.idle_passes < IDLE_PASSES && !self.is_crowded() {
            return false;
        }
        // In the error state receives posted later are flushed too.
        if qp.release_send() && (!qp.in_error() || qp.release_recv()) {
            return true;
        }
        qp.idle_passes = 0;
        qp.sq.keep();
        false
    }

    /// After anything was done with a QP: its timer, its place in the active list, its events.
    #[inline]
    pub(super) fn after(&mut self, slot: u32, qp: &mut Qp) {
        if let Some(deadline) = qp.deadline() {
            self.timers.arm(slot, deadline);
        }
        if qp.rec.pending.kinds != 0 && !qp.listed {
            qp.listed = true;
            self.eventful.push_back(slot);
        }
        if !qp.active && qp.has_work() {
            qp.idle_passes = 0;
            qp.active = true;
            self.active.push_back(slot);
        }
    }

    /// One turn of a QP in the error state; whether it was of use. Else nothing is posted that has no completion.
    pub(super) fn flush_qp(&mut self, slot: u32) -> bool {
        let Some(mut qp) = self.qps.get_mut(slot as usize).and_then(Option::take) else {
            return false;
        };
        let more = qp.in_error() && self.serve_one(&mut qp) > 0;
        self.after(slot, &mut qp);
        self.qps[slot as usize] = Some(qp);
        more
    }

    pub(super) fn serve_one(&mut self, qp: &mut Qp) -> usize {
        let mut work = 0;
        // Before requests that go the short way, which could fill the port each time.
        if qp.rec.rc.has_response() && qp.route.is_some_and(|route| !route.direct) {
            work += self.send_responses(qp);
            if qp.rec.rc.has_response() {
                work += self.transmit(qp);
            }
        }
        let (sent, waits) = self.send_short(qp);
        // Each was taken and sent.
        work += 2 * sent;
        if !waits {
            work += self.intake(qp);
        }
        if qp.flushes_sends() {
            let before = qp.outstanding();
            let more = qp.with(&mut self.env, |rc, ctx| rc.flush(ctx, FLUSH_BUDGET));
            work += usize::from(more) + (before - qp.outstanding()) as usize;
        }
        if qp.rec.rc.has_work() {
            work += self.transmit(qp);
        }
        work
    }

    /// Moves posted WQEs into the transport's ring, while there is room.
    #[inline]
    fn intake(&mut self, qp: &mut Qp) -> usize {
        if !qp.rec.rc.state().sends() && !qp.flushes_sends() {
            return 0;
        }
        for count in 0..PACKET_BUDGET {
            if qp.rec.bad.set {
                if qp.outstanding() > 0 {
                    return count;
                }
                let BadWr { wr_id, cause, .. } = std::mem::take(&mut qp.rec.bad);
                qp.with(&mut self.env, |rc, ctx| rc.refuse_send(ctx, wr_id, cause));
            }
            match qp.take_send() {
                Ok(None) => return count,
                Ok(Some(accepted)) => post(qp, &accepted),
                Err(QueueError::Malformed { wr_id }) => {
                    qp.rec.bad = BadWr {
                        set: true,
                        wr_id,
                        cause: Cause::of(Check::SendQueue),
                    };
                }
                Err(QueueError::Forged) => {
                    if !qp.in_error() {
                        let cause = Cause::of(Check::SendQueue);
                        qp.with(&mut self.env, |rc, ctx| rc.fatal(ctx, cause));
                    }
                    // Nothing in the ring can be trusted any more.
                    qp.discard_send();
                    return count + 1;
                }
            }
        }
        PACKET_BUDGET
    }

    /// Sends what the transport has, within the budgets and the room of the port.
    #[inline]
    fn transmit(&mut self, qp: &mut Qp) -> usize {
        if qp.rec.rc.qp_type() == QpType::Ud {
            return self.transmit_datagrams(qp);
        }
        let Some(Route { port, direct }) = qp.route else {
            return 0;
        };
        let port = usize::from(port);
        // Large: filled in place.
        let (mut emit, mut payload) = (Emit::EMPTY, Segments::new());
        // Where the last turn left off.
        let mut bytes = if direct {
            self.stretch(qp, STRETCH_BUDGET)
        } else {
            self.send_stretch(qp, BYTE_BUDGET)
        };
        let before = usize::from(bytes > 0);
        for count in 0..PACKET_BUDGET {
            if bytes >= BYTE_BUDGET {
                return before + count;
            }
            if !direct && !self.ports[port].ready(&mut self.env) {
                self.stuck += 1;
                return before + count;
            }
            if !qp.with(&mut self.env, |rc, ctx| rc.poll_transmit_into(ctx, &mut emit)) {
                return before + count;
            }
            if !self.gather(qp, &emit, &mut payload) {
                continue;
            }
            bytes += payload.iter().map(|r| r.len).sum::<usize>();
            if emit.retransmitted {
                self.env.counters.retransmitted += 1;
                qp.rec.counters.retries += 1;
            }
            if direct {
                self.deliver(qp, &emit, &payload);
                let opcode = emit.headers.bth.opcode;
                if opcode.is_write() && !opcode.ends_message() {
                    bytes += self.stretch(qp, STRETCH_BUDGET.saturating_sub(bytes));
                }
                continue;
            }
            let ident = qp.next_ident();
            if let Some(template) = &qp.template
                && self.queue(port, template, ident, &emit, &payload)
            {
                self.env.counters.tx_roce += 1;
                let opcode = emit.headers.bth.opcode;
                self.ports[port].congestion.np_cnp_sent += u64::from(opcode == Opcode::CNP);
                if opcode.is_write() && !opcode.ends_message() {
                    bytes += self.send_stretch(qp, BYTE_BUDGET.saturating_sub(bytes));
                }
            }
        }
        before + PACKET_BUDGET
    }

    /// Gives every port its frames.
    pub(super) fn flush_ports(&mut self) {
        for i in 0..self.port_list.len() {
            let port = self.port_list[i];
            let state = &mut self.ports[usize::from(port)];
            if state.tx.is_empty() {
                continue;
            }
            if state.queue.is_some() {
                state.flush(&mut self.env);
            } else {
                let owner = &self.cores[usize::from(state.owner)];
                let Env { crc, counters, .. } = &mut self.env;
                state.hand_over(port, owner, crc, &mut counters.handoff_dropped);
            }
        }
    }

    /// Wakes clients of CQs with fresh completions, and tells the control thread of events, as far as it has
    /// room; the rest waits here, an object at most once.
    pub(super) fn notify(&mut self) {
        let mut i = 0;
        self.wake_due = Time::NEVER;
        while i < self.env.touched.len() {
            let number = self.env.touched[i] as usize;
            let Some(cq) = self.env.cqs[number].as_mut() else {
                self.env.touched.swap_remove(i);
                continue;
            };
            let mut waits = false;
            if cq.is_fresh()
                && let Some(due) = cq.notify(self.env.now)
            {
                self.wake_due = self.wake_due.min(due);
                waits = true;
            }
            if cq.error_pending() {
                let event = ObjectEvent {
                    client: cq.client(),
                    handle: cq.handle(),
                    kinds: event_kind::CQ_ERR,
                    number: cq.number(),
                    cause: Cause::of(Check::CqOverflow),
                };
                if self.messages.push(Sent::Message(Message::Event(event))).is_err() {
                    i += 1;
                    continue;
                }
                self.control_called = true;
                cq.error_told();
            }
            if waits {
                i += 1;
                continue;
            }
            cq.listed = false;
            self.env.touched.swap_remove(i);
        }
        while let Some(&slot) = self.env.eventful_srqs.last() {
            if !self.messages.has_room(RESERVED + 1) {
                break;
            }
            self.env.eventful_srqs.pop();
            if let Some(Some(srq)) = self.env.srqs.get_mut(slot as usize) {
                srq.listed = false;
                let event = srq.take_event();
                // Cannot fail: room was seen.
                let _ = self.messages.push(Sent::Message(Message::Event(event)));
                self.control_called = true;
            }
        }
        while let Some(&slot) = self.eventful.front() {
            if !self.messages.has_room(RESERVED + 1) {
                break;
            }
            self.eventful.pop_front();
            if let Some(qp) = &mut self.qps[slot as usize]
                && let Some(event) = take_event(qp)
                && self.messages.push(Sent::Message(Message::Event(event))).is_ok()
            {
                self.control_called = true;
            }
        }
        self.tell_control();
    }

    /// Notes again, beside their objects, the events that the control thread was told of and has not heard. After the
    /// core's last pass.
    pub(crate) fn take_back_events(&mut self, messages: &mut Consumer<Sent>) {
        let mut told = Vec::new();
        while let Some(message) = messages.pop() {
            if let Sent::Message(Message::Event(event)) = message {
                told.push(event);
            }
        }
        // Backwards: what was told later is noted behind what was told before.
        for ObjectEvent {
            kinds, number, cause, ..
        } in told.into_iter().rev()
        {
            if kinds == event_kind::CQ_ERR {
                if let Some(Some(cq)) = self.env.cqs.get_mut(number as usize) {
                    cq.error_untold();
                }
                continue;
            }
            if kinds & (event_kind::SRQ_ERR | event_kind::SRQ_LIMIT_REACHED) != 0 {
                let srq = self.env.srqs.get_mut(slot_of(number) as usize);
                if let Some(srq) = srq.and_then(Option::as_mut).filter(|srq| srq.number() == number) {
                    srq.event_untold(kinds, cause);
                }
                continue;
            }
            let qp = self
                .qps
                .get_mut(slot_of(number) as usize)
                .and_then(Option::as_mut);
            if let Some(qp) = qp.filter(|qp| qp.qpn() == number) {
                let later = std::mem::replace(&mut qp.rec.pending, Pending { kinds, cause });
                qp.rec.pending.note(later.kinds, later.cause);
            }
        }
    }

    /// Sends what was given up and wakes the control thread if it sleeps and there is something for it. After commands
    /// too: their answers are waited for.
    pub(super) fn tell_control(&mut self) {
        self.flush_retired();
        if std::mem::take(&mut self.control_called) {
            self.me.control.ring();
        }
    }
}

/// Has the transport execute a WQE, or notes why it cannot be.
#[inline]
fn post(qp: &mut Qp, accepted: &Accepted) {
    let wqe = qp.sq.head(accepted.data);
    let bad = |check| BadWr {
        set: true,
        wr_id: wqe.wr_id,
        cause: Cause::of(check),
    };
    let Some(opcode) = WrOpcode::from_verbs(wqe.opcode) else {
        qp.rec.bad = bad(Check::UnsupportedOpcode);
        return;
    };
    // An XRC initiator says whom each request is for, and nobody else does.
    let addressed = accepted.remote_srqn.is_some() == (qp.rec.rc.qp_type() == QpType::XrcIni);
    if !suits(wqe, accepted.length, opcode) || !addressed {
        qp.rec.bad = bad(Check::SendQueue);
        return;
    }
    let always = qp.rec.id.always();
    let posted = qp.rec.rc.post_send_with(&mut qp.records, |wr| {
        fill(wr, wqe, accepted, opcode, always);
    });
    if let Err(error) = posted {
        use rnic_transport::PostError::*;
        qp.rec.bad = bad(match error {
            Unsupported { .. } => Check::UnsupportedOpcode,
            TooLong { .. } => Check::Length,
            AtomicLength { .. } => Check::Alignment,
            NoRdAtomicResources => Check::RdAtomicResources,
            Full | BadState { .. } | BadFlush { .. } => Check::SendQueue,
        });
    }
}

/// Makes `wr` the transport's record of a WQE; it has the flags `always` whatever the WQE says.
#[inline]
pub(super) fn fill(wr: &mut SendWr, wqe: &Wqe, accepted: &Accepted, opcode: WrOpcode, always: SendFlags) {
    wr.wr_id = wqe.wr_id;
    wr.remote_addr = wqe.remote_addr;
    wr.rkey = wqe.rkey;
    (wr.compare_add, wr.swap) = match opcode {
        WrOpcode::CompSwap | WrOpcode::FetchAdd => {
            let operands = wqe.atomic_operands();
            (operands.compare_add, operands.swap)
        }
        WrOpcode::BindMw => {
            let operands = wqe.bind_operands();
            (operands.length, operands.access.into())
        }
        WrOpcode::Flush => {
            let FlushOperands {
                length,
                placement,
                selectivity,
                ..
            } = wqe.flush_operands();
            (length.into(), Flush::to_bits(placement, selectivity))
        }
        _ => (0, 0),
    };
    wr.imm_or_rkey = wqe.imm_or_rkey;
    wr.length = accepted.length;
    wr.remote_srqn = accepted.remote_srqn.unwrap_or(0);
    wr.data = accepted.data;
    wr.opcode = opcode;
    let flags = SendFlags::from_bits(u32::from(wqe.flags & wqe_flags::ALL));
    wr.flags = flags.unwrap_or_default().union(always);
    (wr.has_entry, wr.reserved) = (false, 0);
}

/// Puts a QP whose doorbell rang into the active list.
#[inline]
fn activate(slot: u32, qp: &mut Qp, active: &mut std::collections::VecDeque<u32>) {
    qp.sq.keep();
    qp.idle_passes = 0;
    if !qp.active {
        qp.active = true;
        active.push_back(slot);
    }
}

/// The events of a QP that were not told yet.
pub(super) fn take_event(qp: &mut Qp) -> Option<ObjectEvent> {
    qp.listed = false;
    let pending = std::mem::take(&mut qp.rec.pending);
    (pending.kinds != 0).then_some(ObjectEvent {
        client: qp.rec.id.client,
        handle: qp.rec.id.handle,
        kinds: pending.kinds,
        number: qp.rec.id.qpn,
        cause: pending.cause,
    })
}

#[cfg(test)]
mod tests {
    use crate::{
        core::Idle,
        engine::{CoreConfig, Engine, EngineConfig, Limits},
    };

    #[test]
    fn timers_that_come_up_together_leave_the_rest_of_the_pass_its_turn() {
        const QPS: u32 = 1000;
        let limits = Limits {
            clients: 1,
            qps: QPS,
            cqs: 1,
            srqs: 1,
            mrs: 1,
            ahs: 1,
        };
        let cores = vec![CoreConfig {
            cpu: None,
            idle: Idle::Spin,
        }];
        let ports = Vec::new();
        let mut engine = Engine::start(EngineConfig { cores, limits, ports }).unwrap();
        let mut core = engine.halt().remove(0);
        let deadline = core.env.now;
        for slot in 0..QPS {
            core.timers.arm(slot, deadline);
        }
        core.env.now.0 += 1_000_000;
        let passes: Vec<usize> = std::iter::from_fn(|| Some(core.timers()).filter(|n| *n > 0)).collect();
        assert_eq!(passes.iter().sum::<usize>(), QPS as usize, "none is forgotten");
        assert!(passes.iter().all(|n| *n <= 256), "{passes:?}");
        engine.close(vec![core]);
    }
}
