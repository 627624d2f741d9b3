//! What the responder sends: READ responses and atomic ACKs, then the acknowledgement due (9.7.5.1).

use crate::host::Host;
use crate::mutation::Mutation;
use crate::qp::{Ctx, Emit, RcQp, Source};
use crate::replay::ResponseJob;
use crate::responder::Answer;
use rnic_wire::{Aeth, AtomicAckEth, Headers, Operation, Syndrome};

impl RcQp {
    /// The responder's next packet. READs and atomics are answered in PSN order, and before anything
    /// that acknowledges beyond them.
    #[inline]
    pub(crate) fn poll_response<H: Host>(&mut self, ctx: &mut Ctx<'_, H>) -> Option<Emit> {
        if self.resp.invalidating {
            self.finish_invalidation(ctx);
        }
        let overtakes = self.mutated(Mutation::AckOvertakesResponses) && self.resp.answer != Answer::Nothing;
        if self.resp.responses.is_empty() || overtakes {
            self.poll_answer()
        } else {
            self.poll_job()
        }
    }

    #[inline]
    fn poll_answer(&mut self) -> Option<Emit> {
        let (psn, syndrome) = match core::mem::replace(&mut self.resp.answer, Answer::Nothing) {
            Answer::Nothing => return None,
            Answer::Ack => (self.resp.taken, Syndrome::ACK),
            Answer::Nak { psn, syndrome } => (psn, Syndrome::from_u8(syndrome)),
        };
        let mut headers = Headers::new(self.bth(Operation::Acknowledge, psn));
        headers.aeth = Some(Aeth {
            syndrome,
            msn: self.resp.msn(),
        });
        Some(Emit {
            headers,
            source: Source::None,
            ah: None,
            retransmitted: false,
        })
    }

    fn poll_job(&mut self) -> Option<Emit> {
        let mtu = self.attrs.mtu;
        let job = self.resp.responses.current()?;
        if job.atomic {
            let job = *job;
            self.resp.responses.pop();
            return Some(self.atomic_ack(&job));
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
            self.resp.responses.pop();
        }
        let operation = match (first, last) {
            (true, true) => Operation::ReadResponseOnly,
            (true, false) => Operation::ReadResponseFirst,
            (false, false) => Operation::ReadResponseMiddle,
            (false, true) => Operation::ReadResponseLast,
        };
        let mut headers = Headers::new(self.bth(operation, psn));
        if first || last {
            headers.aeth = Some(Aeth {
                syndrome: Syndrome::ACK,
                msn,
            });
        }
        Some(Emit {
            headers,
            source,
            ah: None,
            retransmitted,
        })
    }

    fn atomic_ack(&self, job: &ResponseJob) -> Emit {
        let mut headers = Headers::new(self.bth(Operation::AtomicAcknowledge, job.first));
        headers.aeth = Some(Aeth {
            syndrome: Syndrome::ACK,
            msn: job.msn,
        });
        headers.atomic_ack = Some(AtomicAckEth {
            original: job.addr_or_original,
        });
        Emit {
            headers,
            source: Source::None,
            ah: None,
            retransmitted: job.again,
        }
    }
}
