//! What the owner of the QP does while it is under fire.

use super::{BAD_AH, Siege};
use crate::common::{BASE, KEY};
use crate::frames::{INVALIDATE, INVALIDATES, MTU, SRQ, WINDOW, headers};
use crate::siege::REGION;
use rnic_sim::{Packet, QKEY};
use rnic_transport::{QpState, QpType, Queue, SendFlags, SendWr, WrOpcode};
use rnic_wire::{Mtu, Opcode, Operation};

impl Siege {
    /// What the QP's owner does meanwhile.
    pub(super) fn own_work(&mut self) {
        if self
            .rng
            .chance(if self.qp_type == QpType::Ud { 900 } else { 400 })
        {
            self.post_recv();
        }
        if self
            .rng
            .chance(if self.qp_type == QpType::XrcIni { 900 } else { 200 })
        {
            self.post_send();
        }
        if self.rng.chance(20) {
            let nanos = self.rng.below(9_000_000);
            self.node.wait(nanos);
        }
        let burst = self.rng.below(4);
        for _ in 0..burst {
            let Some(packet) = self.node.transmit() else { break };
            self.tally.sent += 1;
            self.check_sent(&packet);
            self.answer(&packet);
        }
        self.wait_for_timer();
        match self.node.qp.state() {
            QpState::Rts if self.rng.chance(4) => self.set_state(QpState::Sqd),
            QpState::Sqd if self.rng.chance(300) && !self.node.qp.query().sq_draining => {
                self.set_state(QpState::Rts);
            }
            QpState::Sqe => {
                self.node.flush_all();
                while self.node.with(|qp, ctx| qp.flush(ctx, 3)) {}
                self.model.check_completions(&self.node);
                self.set_state(QpState::Rts);
                self.model.revive(&[Queue::Send]);
            }
            _ => {}
        }
        self.model.check_completions(&self.node);
    }

    /// A QP that is paced, or has lost an answer, goes on when its timer says so. Time hardly moves otherwise, so it would
    /// spend the rest of the siege at that.
    fn wait_for_timer(&mut self) {
        let stuck = self.answers.is_empty() && !self.node.qp.has_work();
        if stuck
            && let Some(at) = self.node.qp.poll_timeout()
            && self.rng.chance(700)
        {
            self.node.wait(at.0.saturating_sub(self.node.now.0));
        }
    }

    pub(super) fn set_state(&mut self, state: QpState) {
        self.node.set_state(state).expect("the transition is legal");
    }

    fn post_recv(&mut self) {
        // On UC and UD one that is too small stays, for a message that fits.
        let (often, sizes) = match self.qp_type {
            QpType::Uc | QpType::Ud => (200, [100, 200, 300]),
            _ => (10, [0, 1, 300]),
        };
        let small = self.rng.chance(often);
        let capacity = if small { self.rng.pick(&sizes) } else { 2_048 };
        if self.rng.chance(2) {
            self.node
                .host
                .bad_recv
                .push(self.node.host.recv_bufs.len() as u32);
        }
        match self.qp_type {
            QpType::XrcIni => return,
            QpType::XrcTgt => self.node.host.post_srq_recv(SRQ, self.received, capacity),
            _ => self.node.host.post_recv(self.received, capacity),
        }
        self.received += 1;
    }

    fn post_send(&mut self) {
        if self.qp_type == QpType::XrcTgt {
            return;
        }
        use WrOpcode::{
            AtomicWrite, BindMw, CompSwap, FetchAdd, Flush, LocalInv, Read, Send, SendImm, SendInv, Write,
            WriteImm,
        };
        let rng = &mut self.rng;
        let opcode = match self.qp_type {
            QpType::Uc => rng.pick(&[Send, SendImm, Write, WriteImm, BindMw]),
            QpType::Ud => rng.pick(&[Send, SendImm]),
            _ => rng.pick(&[
                Send,
                SendImm,
                SendInv,
                Write,
                WriteImm,
                Read,
                Read,
                Read,
                CompSwap,
                FetchAdd,
                LocalInv,
                BindMw,
                AtomicWrite,
                Flush,
            ]),
        };
        let length = match opcode {
            FetchAdd | CompSwap | AtomicWrite => 8,
            LocalInv | BindMw | Flush => 0,
            _ => rng.below(700) as u32,
        };
        let mut wr = SendWr {
            wr_id: self.posted,
            opcode,
            flags: rng.pick(&[
                SendFlags::SIGNALED,
                SendFlags::SIGNALED.union(SendFlags::FENCE),
                SendFlags::SIGNALED.union(SendFlags::SOLICITED),
            ]),
            length,
            ..SendWr::default()
        };
        if opcode == LocalInv {
            if self.invalidated == INVALIDATES {
                return;
            }
            wr.imm_or_rkey = INVALIDATE + self.invalidated;
        }
        if opcode == BindMw {
            (wr.imm_or_rkey, wr.rkey, wr.remote_addr) = (WINDOW, KEY, BASE);
            // Rights: none, WRITE, READ, both and atomics, FLUSH too.
            (wr.compare_add, wr.swap) = (rng.below(REGION), rng.pick(&[0, 2, 4, 14, 0x10E]));
        }
        if opcode == Flush {
            // Global visibility, persistence or both, of a range or a region.
            (wr.compare_add, wr.swap) = (rng.below(REGION), rng.pick(&[1, 2, 3, 0x101]));
        }
        if self.qp_type == QpType::Ud {
            let ah = if rng.chance(10) { BAD_AH } else { 1 };
            wr = wr.to(ah, 0x22, rng.pick(&[QKEY, 0x8000_0000]));
        }
        let bad = rng.chance(3);
        wr.data = self.node.host.add_send_buf(vec![3; length as usize]);
        if bad {
            self.node.host.bad_send.push(wr.data);
        }
        if self.node.post(wr).is_ok() {
            self.invalidated += u32::from(opcode == LocalInv);
            self.posted += 1;
        } else {
            self.node.host.take_send_buf();
        }
    }

    /// What a QP sends is of its class; an unreliable one answers nothing and asks for no answer.
    fn check_sent(&self, packet: &Packet) {
        let bth = &packet.headers.bth;
        if bth.opcode == Opcode::CNP || bth.opcode == Opcode::SELECTIVE_ACK && self.selective {
            return;
        }
        assert_eq!(bth.opcode.transport, self.qp_type.transport(), "{packet:?}");
        assert!(packet.payload.len() <= MTU, "{packet:?}");
        let quiet = bth.opcode.is_request() && !bth.ack_req;
        assert!(quiet || self.reliable(), "{packet:?}");
    }

    /// Notes the right answers to a request of the QP.
    fn answer(&mut self, packet: &Packet) {
        let opcode = packet.headers.bth.opcode;
        let psn = packet.headers.bth.psn;
        if !self.reliable() {
            return;
        }
        let transport = self.qp_type.transport();
        let mut push = |operation, psn, len| {
            self.answers.push_back((headers(transport, operation, psn), len));
        };
        if opcode.operation == Operation::ReadRequest {
            let len = packet.headers.reth.map_or(0, |reth| reth.dma_len);
            let packets = Mtu::M256.packets(len);
            for at in 0..packets {
                let operation = match (at == 0, at + 1 == packets) {
                    (true, true) => Operation::ReadResponseOnly,
                    (true, false) => Operation::ReadResponseFirst,
                    (false, false) => Operation::ReadResponseMiddle,
                    (false, true) => Operation::ReadResponseLast,
                };
                push(operation, psn + at, (len as usize - at as usize * MTU).min(MTU));
            }
        } else if matches!(opcode.operation, Operation::AtomicWrite | Operation::Flush) {
            push(Operation::ReadResponseOnly, psn, 0);
        } else if opcode.is_atomic() {
            push(Operation::AtomicAcknowledge, psn, 0);
        } else if opcode.is_request() && opcode.ends_message() {
            push(Operation::Acknowledge, psn, 0);
        }
    }
}
