//! Errors at the responder: what the peer, the application and the receive WQE in use are told (9.9.3).

use crate::host::{Completion, Host, KeyError};
use crate::mutation::Mutation;
use crate::qp::{Ctx, RcQp, Received};
use crate::responder::Answer;
use crate::types::{Cause, Check, CompletionFlags, Event, EventKind, Queue, WcOpcode, WcStatus};
use rnic_wire::{NakCode, Psn, Syndrome};

/// Why a request is refused: what the peer is told, what completes in error, what event is raised.
pub(crate) struct Refusal {
    pub nak: NakCode,
    pub check: Check,
    pub event: EventKind,
    /// Status of the receive WQE in use, if there is one.
    pub status: WcStatus,
}

impl Refusal {
    pub const fn invalid(check: Check) -> Self {
        Refusal {
            nak: NakCode::InvalidRequest,
            check,
            event: EventKind::QpReqErr,
            status: WcStatus::RemInvReqErr,
        }
    }

    /// A key, range or right of a remote operation.
    pub const fn access(err: KeyError) -> Self {
        match err {
            KeyError::Alignment => Refusal::invalid(err.check()),
            KeyError::MemoryFault => Refusal::local(err.check(), WcStatus::LocAccessErr),
            _ => Refusal {
                nak: NakCode::RemoteAccessError,
                check: err.check(),
                event: EventKind::QpAccessErr,
                status: WcStatus::LocAccessErr,
            },
        }
    }

    /// The responder's own fault.
    pub const fn local(check: Check, status: WcStatus) -> Self {
        Refusal {
            nak: NakCode::RemoteOperationalError,
            check,
            event: EventKind::QpFatal,
            status,
        }
    }
}

impl RcQp {
    /// A fatal NAK (none on an unreliable QP): the WQE in use completes in error, an event says why, and the QP goes to ERR.
    pub(crate) fn refuse<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        psn: Psn,
        opcode: u8,
        refusal: &Refusal,
    ) -> Received {
        let answers = self.qp_type.is_reliable();
        let syndrome = Syndrome::Nak(refusal.nak);
        let cause = Cause {
            psn: psn.get(),
            check: refusal.check,
            opcode,
            syndrome: if answers { syndrome.to_u8() } else { 0 },
        };
        if answers {
            self.nak(psn, syndrome);
        }
        if !self.mutated(Mutation::StayUpAfterRefusal) {
            self.enter_err(answers);
        }
        if self.resp.take_wqe() {
            let completion = Completion {
                wr_id: self.resp.wqe.wr_id,
                status: refusal.status,
                opcode: WcOpcode::Recv,
                queue: Queue::Recv,
                flags: CompletionFlags::NONE,
                src_qpn: self.dest_qpn,
                byte_len: 0,
                imm_or_rkey: 0,
                cause,
            };
            self.complete(ctx, &completion);
        }
        if !self.mutated(Mutation::ForgetEvent) {
            ctx.host.event(&Event {
                kind: refusal.event,
                cause,
            });
        }
        Received::Refused(refusal.check)
    }

    /// Memory of a READ could not be read when its response was due.
    pub(crate) fn response_gather_failed<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        psn: Psn,
        opcode: u8,
        again: bool,
        err: KeyError,
    ) {
        let refusal = Refusal::access(err);
        if again && self.state.receives() {
            // The requester may have had its data long ago, and be free to have the key invalidated since.
            self.resp.responses.abandon(&ctx.cold.jobs, psn);
            return self.nak_again(psn, refusal.nak);
        }
        self.resp.responses.clear();
        if self.state.receives() {
            self.refuse(ctx, psn, opcode, &refusal);
        } else if matches!(self.resp.answer, Answer::Nak { .. }) {
            // In ERR the event was raised already, with the first cause. But the NAK due is for a later request: the
            // peer would wait for the responses before it, and ask for them again, in vain.
            self.nak(psn, Syndrome::Nak(refusal.nak));
        }
    }
}
