//! Carrying out the control thread's commands.
use rnic_transport::{QpAttrMask, QpState};

use super::{
    doorbell::NO_QP,
    qp::Qp,
    run::Core,
    shared::{Handoff, RESERVED},
};
use crate::{
    command::{Command, Message, QpChange, Sent, Token},
    frame::Frame,
    retire::Retired,
};

/// Commands carried out in one pass.
pub(super) const BUDGET: usize = 64;

impl Core {
    /// Carries out commands while their answers have room.
    pub(super) fn commands(&mut self) -> usize {
        for count in 0..BUDGET {
            if !self.messages.has_room(RESERVED / 2 + self.parting.len()) {
                return count;
            }
            let Some(command) = self.orders.pop() else {
                return count;
            };
            if let Some(answer) = self.carry_out(command) {
                // Cannot fail: this core is the only producer, and room was seen.
                let _ = self.messages.push(answer);
                self.control_called = true;
            }
        }
        BUDGET
    }

    /// At the end of a pass: gives up what commands asked for, and what only a quiescent state lets go.
    #[inline]
    pub(super) fn part(&mut self) {
        if self.parting.is_empty() {
            return;
        }
        for answer in self.parting.drain(..) {
            // Cannot fail: room was seen for each.
            let _ = self.messages.push(answer);
        }
        self.control_called = true;
        self.tell_control();
    }

    fn carry_out(&mut self, command: Command) -> Option<Sent> {
        Some(Sent::Message(match command {
            Command::AddClient {
                client,
                doorbells,
                token,
            } => {
                let replaced = self.clients[client as usize].replace(doorbells);
                match replaced {
                    Some(old) => self.retire(Retired::Client(old)),
                    None => self.client_list.push(client),
                }
                Message::Done { token }
            }
            Command::RemoveClient { client, token } => {
                self.client_list.retain(|c| *c != client);
                let what = self.clients[client as usize].take();
                return self.give_up(what.map(Retired::Client), token);
            }
            Command::AddCq { cq, mut queue, token } => {
                queue.listed = queue.is_touched();
                if queue.listed {
                    self.env.touched.push(cq);
                }
                if let Some(old) = self.env.cqs[cq as usize].replace(queue) {
                    self.retire(Retired::Cq(old));
                }
                Message::Done { token }
            }
            Command::RemoveCq { cq, token } => {
                let what = self.env.cqs[cq as usize].take();
                self.env.touched.retain(|c| *c != cq);
                return self.give_up(what.map(Retired::Cq), token);
            }
            Command::ResizeCq {
                cq,
                offset,
                depth,
                token,
            } => {
                if let Some(Some(cq)) = self.env.cqs.get_mut(cq as usize) {
                    cq.resize(offset, depth);
                }
                Message::Done { token }
            }
            Command::ModerateCq {
                cq,
                count,
                period,
                token,
            } => {
                if let Some(Some(cq)) = self.env.cqs.get_mut(cq as usize) {
                    cq.moderate(count, period);
                }
                Message::Done { token }
            }
            Command::AddSrq { srq, token } => {
                let slot = srq.slot();
                if let Some(old) = self.env.srqs[slot as usize].replace(srq) {
                    self.retire(Retired::Srq(old));
                }
                self.look_at_srq(slot);
                Message::Done { token }
            }
            Command::RemoveSrq { slot, token } => {
                let what = self.env.srqs.get_mut(slot as usize).and_then(Option::take);
                self.env.eventful_srqs.retain(|s| *s != slot);
                return self.give_up(what.map(Retired::Srq), token);
            }
            Command::ArmSrq { slot, limit, token } => {
                if let Some(Some(srq)) = self.env.srqs.get_mut(slot as usize) {
                    srq.arm(limit);
                }
                self.look_at_srq(slot);
                Message::Done { token }
            }
            Command::AddQp {
                slot,
                qp,
                change,
                token,
            } => {
                self.bind_doorbell(&qp, slot);
                if let Some(old) = self.qps[slot as usize].replace(qp) {
                    self.retire(Retired::Qp(old));
                }
                match change {
                    Some(change) => self.modify_qp(slot, change, token),
                    None => Message::Done { token },
                }
            }
            Command::Begin { token } => {
                for slot in 0..self.qps.len() as u32 {
                    if let Some(mut qp) = self.qps[slot as usize].take() {
                        self.look_at(slot, &mut qp);
                        self.qps[slot as usize] = Some(qp);
                    }
                }
                Message::Done { token }
            }
            Command::RemoveQp { slot, token } => {
                let what = self.remove_qp(slot);
                let answer = self.give_up(what.map(Retired::Qp), token);
                // Never more than the commands of one pass.
                self.parting.extend(answer);
                return None;
            }
            Command::ModifyQp { slot, change, token } => self.modify_qp(slot, change, token),
            Command::Repath { slot, path } => {
                let qp = self.qps.get_mut(slot as usize).and_then(Option::as_mut);
                if let Some(qp) = qp
                    && qp.path().is_some_and(|now| now.over(path.remote_mac) == *path)
                {
                    qp.set_path(*path);
                }
                Message::Repathed { path }
            }
            Command::QueryQp {
                slot,
                mut state,
                token,
            } => {
                let qp = self.qps.get(slot as usize).and_then(Option::as_ref);
                *state = qp.map(|qp| qp.status());
                Message::Queried { token, state }
            }
            Command::FailQp { slot, cause, token } => {
                if let Some(mut qp) = self.qps[slot as usize].take() {
                    qp.with(&mut self.env, |rc, ctx| rc.fatal(ctx, cause));
                    // Another way has to be given before it sends again; this one may be gone.
                    qp.forget_path();
                    self.after(slot, &mut qp);
                    self.qps[slot as usize] = Some(qp);
                }
                Message::Done { token }
            }
            Command::FlushQp { slot, token } => {
                let more = self.flush_qp(slot);
                Message::Flushed { token, slot, more }
            }
            Command::AddPort { port, part, token } | Command::RemovePort { port, part, token } => {
                let replaced = self.exchange_port(port, part);
                return self.give_up(Some(Retired::Port(replaced)), token);
            }
            Command::DropFrames { port, token } => {
                self.drop_inbound(port);
                Message::Done { token }
            }
            Command::Transmit { port, frame } => {
                self.send_slow(port, frame);
                return None;
            }
            Command::Stop => {
                self.stopping = true;
                return None;
            }
        }))
    }

    /// Gives up what a command asked for in the answer; nothing there is an answer too.
    fn give_up(&mut self, what: Option<Retired>, token: Token) -> Option<Sent> {
        Some(match what {
            Some(what) => Sent::GivenUp { token, what },
            None => Sent::Message(Message::Removed { token, found: false }),
        })
    }

    /// Lists an SRQ that has events to be told.
    fn look_at_srq(&mut self, slot: u32) {
        if let Some(Some(srq)) = self.env.srqs.get_mut(slot as usize)
            && srq.is_eventful()
            && !srq.listed
        {
            srq.listed = true;
            self.env.eventful_srqs.push(slot);
        }
    }

    fn bind_doorbell(&mut self, qp: &Qp, slot: u32) {
        let bit = rnic_abi::Handle(qp.rec.id.handle).slot() as usize;
        let client = self
            .clients
            .get_mut(qp.rec.id.client as usize)
            .and_then(Option::as_mut);
        if let Some(entry) = client.and_then(|c| c.qps.get_mut(bit)) {
            *entry = slot;
        }
    }

    /// Step 3 of destroy: no work request, timer or event of the QP is left on this core.
    fn remove_qp(&mut self, slot: u32) -> Option<Box<Qp>> {
        let qp = self.qps.get_mut(slot as usize)?.take()?;
        // A newer view than this pass began with takes nothing from what the pass will report.
        debug_assert!(
            self.view.refresh().qp(qp.qpn()).is_none(),
            "QP {:#x} is to be stopped and can still be found",
            qp.qpn()
        );
        self.timers.cancel(slot);
        let bit = rnic_abi::Handle(qp.rec.id.handle).slot() as usize;
        if let Some(client) = self
            .clients
            .get_mut(qp.rec.id.client as usize)
            .and_then(Option::as_mut)
            && let Some(entry) = client.qps.get_mut(bit)
            && *entry == slot
        {
            *entry = NO_QP;
        }
        if qp.active {
            self.active.retain(|s| *s != slot);
        }
        if qp.listed {
            self.eventful.retain(|s| *s != slot);
        }
        Some(qp)
    }

    fn modify_qp(&mut self, slot: u32, change: Box<QpChange>, token: Token) -> Message {
        let Some(mut qp) = self.qps.get_mut(slot as usize).and_then(Option::take) else {
            let result = None;
            return Message::Modified {
                token,
                result,
                change,
            };
        };
        let result = qp.with(&mut self.env, |rc, ctx| rc.modify(ctx, &change.attr, change.mask));
        if result.is_ok() {
            if change.mask.contains(QpAttrMask::AV)
                && let Some(path) = change.path
            {
                qp.set_path(path);
            }
            if qp.rec.rc.state() == QpState::Reset {
                qp.forget_queues();
            }
        }
        self.look_at(slot, &mut qp);
        let result = Some(result.map(|()| qp.rec.rc.state()));
        self.qps[slot as usize] = Some(qp);
        Message::Modified {
            token,
            result,
            change,
        }
    }

    /// What was posted before RTS, or is to be flushed, is looked at now; the doorbell was rung long ago.
    fn look_at(&mut self, slot: u32, qp: &mut Qp) {
        if qp.rec.rc.state().sends() || qp.flushes_sends() {
            qp.sq.keep();
            if !qp.active {
                qp.active = true;
                qp.idle_passes = 0;
                self.active.push_back(slot);
            }
        }
        self.after(slot, qp);
    }

    /// Queues a frame of the slow path, on the core that has a queue of its port.
    pub(super) fn send_slow(&mut self, port: u16, frame: Frame) {
        let Some(state) = self.ports.get_mut(usize::from(port)) else {
            return;
        };
        if !state.is_there() {
            // Removed meanwhile.
            self.env.counters.slow_path_tx_dropped += 1;
            return;
        }
        if state.queue.is_none() {
            let owner = &self.cores[usize::from(state.owner)];
            if owner.inbound.push(Handoff::Send { port, frame }).is_err() {
                self.env.counters.handoff_dropped += 1;
            }
            owner.kick();
            return;
        }
        if state.tx.is_full() {
            state.flush(&mut self.env);
        }
        if state.tx.try_push(frame).is_err() {
            self.env.counters.slow_path_tx_dropped += 1;
        }
    }
}
