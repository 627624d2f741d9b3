//! What must hold of the packets themselves, seen where they are sent.

use crate::check::Verdict;
use crate::node::{Node, Packet};
use crate::operation::{Kind, carries, is_fetching};
use crate::scenario::{Plan, Scenario};
use rnic_transport::{QpState, Received, SendFlags, Time};
use rnic_wire::{Mtu, NakCode, Opcode, Psn, RnrTimer, SelectiveAck, Syndrome};
use std::collections::BTreeSet;

/// Watches what one node sends and receives.
pub(crate) struct Watch {
    mtu: Mtu,
    /// First PSN of each operation, and one past the last.
    firsts: Vec<Psn>,
    /// A sequence-error NAK was sent, and the PSN it waits for has not been accepted since.
    nak: bool,
    /// The last ACK sent.
    acked: Option<(Psn, u32)>,
    /// The last MSN sent, by whatever answer.
    told: u32,
    /// No request may be sent before this, after an RNR NAK.
    quiet_until: Time,
    /// The PSN which that RNR NAK was for.
    waits: Psn,
    /// One past the highest PSN sent.
    sent: Psn,
    /// What has arrived before its turn.
    early: BTreeSet<u32>,
}

impl Watch {
    pub fn new(scenario: &Scenario, side: usize) -> Self {
        let mut psn = Psn::new(scenario.psns[side]);
        let mut firsts = vec![psn];
        for op in &scenario.plans[side].ops {
            psn += op.packets(scenario.mtu);
            firsts.push(psn);
        }
        let (sent, quiet_until) = (firsts[0], Time(0));
        Watch {
            mtu: scenario.mtu,
            firsts,
            nak: false,
            acked: None,
            told: 0,
            quiet_until,
            waits: sent,
            sent,
            early: BTreeSet::new(),
        }
    }

    /// A packet that this node sends.
    pub fn sent(&mut self, plan: &Plan, node: &Node, packet: &Packet) -> Verdict {
        if packet.headers.bth.opcode.is_request() {
            return self.request(plan, node, packet);
        }
        let Some((_, syndrome, msn)) = packet.aeth() else {
            return Ok(());
        };
        if msn_before(msn, self.told) {
            return Err(format!("MSN {msn} after {}", self.told));
        }
        self.told = msn;
        if packet.headers.bth.opcode == Opcode::SELECTIVE_ACK {
            return self.selective_ack(node, packet);
        }
        match syndrome {
            Syndrome::Nak(NakCode::PsnSequenceError) => {
                let second = std::mem::replace(&mut self.nak, true);
                return if second {
                    Err("a second NAK while one is outstanding".into())
                } else {
                    Ok(())
                };
            }
            Syndrome::Ack { .. } if packet.name() == "ACK" => {
                let psn = packet.headers.bth.psn;
                if self
                    .acked
                    .is_some_and(|(last, count)| psn.is_before(last) || msn_before(msn, count))
                {
                    return Err(format!("ACK {psn} MSN {msn} goes back behind {:?}", self.acked));
                }
                self.acked = Some((psn, msn));
            }
            _ => {}
        }
        Ok(())
    }

    /// A selective acknowledgement says what has arrived, and nothing else.
    fn selective_ack(&self, node: &Node, packet: &Packet) -> Verdict {
        let psn = packet.headers.bth.psn;
        let Ok(bytes) = packet.payload.as_slice().try_into() else {
            return Err(format!("a selective ACK of {} bytes", packet.payload.len()));
        };
        if psn.get() != node.qp.query().rq_psn {
            return Err(format!("a selective ACK of {psn}, which is not expected"));
        }
        let said = SelectiveAck::from_bytes(bytes).received;
        let arrived = |number: &u32| self.early.contains(&(psn + (number + 1)).get());
        match said.iter().find(|number| !arrived(number)) {
            Some(number) => Err(format!(
                "a selective ACK of PSN {}, which has not arrived",
                psn + (number + 1)
            )),
            None => Ok(()),
        }
    }

    /// Every request packet is exactly the part of the plan that its PSN names.
    fn request(&mut self, plan: &Plan, node: &Node, packet: &Packet) -> Verdict {
        let psn = packet.headers.bth.psn;
        let wrong = |what: &str| Err(format!("{} {psn}: {what}", packet.name()));
        if node.now < self.quiet_until {
            return wrong("sent before the RNR timer ended");
        }
        // PSNs ascend from the first, so the operation is the last one that does not begin after.
        let at = self.firsts.partition_point(|first| !first.is_after(psn));
        let Some(op) = at.checked_sub(1).and_then(|at| plan.ops.get(at)) else {
            return wrong("no such PSN");
        };
        let first = self.firsts[at - 1];
        if packet.headers.xrceth.map_or(0, |xrceth| xrceth.srqn) != op.srqn {
            return wrong("names another XRC SRQ");
        }
        if op.flags.contains(SendFlags::FENCE)
            && psn == first
            && !psn.is_before(self.sent)
            && is_fetching(&plan.ops[..at - 1], &node.host)
        {
            return wrong("sent before an earlier READ or atomic is done, in spite of its fence");
        }
        if psn.is_after(self.sent) {
            return wrong("skips PSNs");
        }
        if node.qp.state() == QpState::Sqd && psn == first && psn == self.sent {
            return wrong("begins a request in SQD");
        }
        let offset = (psn.diff(first) as usize) << self.mtu.log2();
        if !carries(op, offset, self.mtu, packet) {
            return wrong("carries or asks for something else");
        }
        // A READ takes the PSNs of its responses.
        self.note(match op.kind() {
            Kind::Read => self.firsts[at],
            _ => psn.next(),
        });
        Ok(())
    }

    fn note(&mut self, end: Psn) {
        if end.is_after(self.sent) {
            self.sent = end;
        }
    }

    /// A packet that this node received, and what became of it.
    pub fn received(&mut self, node: &Node, packet: &Packet, outcome: Received) {
        let request = packet.headers.bth.opcode.is_request();
        match outcome {
            Received::Early => drop(self.early.insert(packet.psn())),
            Received::Accepted | Received::NotReady if request => self.nak = false,
            Received::Accepted => {
                let psn = packet.headers.bth.psn;
                self.quiet_until = match packet.aeth() {
                    // Another NAK for the PSN that waits neither ends nor restarts the wait.
                    Some((_, Syndrome::RnrNak { .. } | Syndrome::Nak(_), _))
                        if psn == self.waits && node.now <= self.quiet_until =>
                    {
                        self.quiet_until
                    }
                    Some((_, Syndrome::RnrNak { timer }, _)) => {
                        self.waits = psn;
                        node.now.saturating_add(RnrTimer::new(timer).nanos())
                    }
                    _ => Time(0),
                };
            }
            // An answer to something behind the request that waits says that it was taken.
            Received::OutOfOrder if !request && packet.headers.bth.psn.is_after(self.waits) => {
                self.quiet_until = Time(0);
            }
            _ => {}
        }
    }
}

/// Whether an MSN lies before another, modulo 2^24.
fn msn_before(msn: u32, other: u32) -> bool {
    Psn::new(msn).is_before(Psn::new(other))
}
