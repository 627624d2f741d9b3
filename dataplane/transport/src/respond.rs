//! What the responder sends: READ responses and atomic ACKs, then the acknowledgement due (9.7.5.1).

use crate::cold::Cold;
use crate::host::Host;
use crate::mutation::Mutation;
use crate::qp::{Ctx, Emit, RcQp, Source};
use crate::replay::ResponseJob;
use crate::responder::Answer;
use rnic_wire::{Aeth, AtomicAckEth, Operation, Syndrome};

impl RcQp {
    /// The responder's next packet. READs and atomics are answered in PSN order, and before anything
    /// that acknowledges beyond them.
    #[inline]
    pub(crate) fn poll_response<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &mut Emit) -> bool {
        if self.resp.invalidating {
            self.finish_invalidation(ctx);
        }
        let overtakes = self.mutated(Mutation::AckOvertakesResponses) && self.resp.answer != Answer::Nothing;
        if self.resp.responses.is_empty() || overtakes {
            self.poll_answer(emit)
        } else {
            self.poll_job(ctx.cold, emit)
        }
    }

    #[inline]
    fn poll_answer(&mut self, emit: &mut Emit) -> bool {
        let (psn, syndrome) = match core::mem::replace(&mut self.resp.answer, Answer::Nothing) {
            Answer::Nothing => return false,
            Answer::Ack if self.resp.early.is_gap() => {
                self.say_missing(emit);
                return true;
            }
            Answer::Ack => (self.resp.taken, Syndrome::ACK),
            Answer::Nak { psn, syndrome } => (psn, Syndrome::from_u8(syndrome)),
        };
        emit.begin(self.bth(Operation::Acknowledge, psn));
        emit.headers.aeth = Some(Aeth {
            syndrome,
            msn: self.resp.msn(),
        });
        true
    }

    fn poll_job(&mut self, cold: &mut Cold, emit: &mut Emit) -> bool {
        let mtu = self.attrs.mtu;
        let Some(job) = self.resp.responses.current(&mut cold.jobs) else {
            return false;
        };
        if job.atomic {
            let job = *job;
            self.resp.responses.pop(&cold.jobs);
            self.atomic_ack(&job, emit);
            return true;
        }
        let offset = job.sent << mtu.log2();
        let len = (job.len - offset).min(mtu.bytes() as u32);
        let psn = job.first + job.sent;
        let first = job.sent == 0;
        job.sent += 1;
        job.told = true;
        let last = job.sent == job.packets;
        let (msn, srqn, retransmitted) = (job.msn, job.srqn, job.again);
        let source = match len {
            0 => Source::None,
            _ => Source::Remote {
                rkey: job.rkey,
                addr: job.addr_or_original.wrapping_add(u64::from(offset)),
                len,
                srqn,
            },
        };
        if last {
            self.resp.responses.pop(&cold.jobs);
        }
        let operation = match (first, last) {
            (true, true) => Operation::ReadResponseOnly,
            (true, false) => Operation::ReadResponseFirst,
            (false, false) => Operation::ReadResponseMiddle,
            (false, true) => Operation::ReadResponseLast,
        };
        emit.begin(self.bth(operation, psn));
        if first || last {
            emit.headers.aeth = Some(Aeth {
                syndrome: Syndrome::ACK,
                msn,
            });
        }
        emit.source = source;
        emit.retransmitted = retransmitted;
        true
    }

    fn atomic_ack(&self, job: &ResponseJob, emit: &mut Emit) {
        emit.begin(self.bth(Operation::AtomicAcknowledge, job.first));
        emit.headers.aeth = Some(Aeth {
            syndrome: Syndrome::ACK,
            msn: job.msn,
        });
        emit.headers.atomic_ack = Some(AtomicAckEth {
            original: job.addr_or_original,
        });
        emit.retransmitted = job.again;
    }
}
