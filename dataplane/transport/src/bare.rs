//! FLUSH and ATOMIC WRITE (A19): requests that bring nothing back and are all the same answered each by itself, by the
//! response to a READ of no bytes. They count as READs wherever READs and atomics are counted, and a duplicate is answered
//! and not executed again, as of an atomic.

use crate::atomic::ATOMIC_LEN;
use crate::cold::Cold;
use crate::host::{Host, Payload};
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, Emit, RcQp, Received, Source};
use crate::refusal::Refusal;
use crate::replay::ResponseJob;
use crate::types::{Access, Check};
use crate::work::{Flush, SendWr};
use rnic_wire::{Feth, Headers, Operation, Psn, Reth};

impl SendWr {
    /// The FETH of a FLUSH; `None` when no responder takes it.
    pub(crate) fn flush_eth(&self) -> Option<Feth> {
        Flush::feth(self.swap).filter(|_| u32::try_from(self.compare_add).is_ok())
    }
}

impl RcQp {
    /// The request of a FLUSH.
    pub(crate) fn flush_request(&mut self, wr: &SendWr, emit: &mut Emit) {
        self.bare_request(Operation::Flush, wr, wr.compare_add as u32, emit);
        emit.headers.feth = Some(wr.flush_eth().unwrap_or(Feth {
            placement: Feth::GLOBAL_VISIBILITY,
            selectivity: Feth::RANGE,
        }));
    }

    /// The request of an ATOMIC WRITE, which lies in `slot` of the ring.
    pub(crate) fn atomic_write_request(&mut self, wr: &SendWr, slot: u32, emit: &mut Emit) {
        self.bare_request(Operation::AtomicWrite, wr, ATOMIC_LEN, emit);
        emit.source = Source::Send {
            wr_index: slot,
            data: wr.data,
            offset: 0,
            len: ATOMIC_LEN,
        };
    }

    fn bare_request(&mut self, operation: Operation, wr: &SendWr, dma_len: u32, emit: &mut Emit) {
        let psn = self.req.next;
        let mut bth = self.bth(operation, psn);
        bth.ack_req = true;
        emit.begin(bth);
        emit.headers.reth = Some(Reth {
            va: wr.remote_addr,
            rkey: wr.rkey,
            dma_len,
        });
        emit.headers.xrceth = self.xrceth(wr);
        self.req.rd_atomics += 1;
        self.advance(psn.next(), true);
    }

    /// Executes an ATOMIC WRITE in sequence, and has it answered after everything before it. The rights it needs are those of
    /// a WRITE.
    pub(crate) fn atomic_write_in<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Result<(), Refusal> {
        self.may_respond(ctx.cold, Access::REMOTE_WRITE)?;
        let reth = match headers.reth {
            Some(reth) if reth.dma_len == ATOMIC_LEN && payload.len() == ATOMIC_LEN as usize => reth,
            _ => return Err(Refusal::invalid(Check::Length)),
        };
        if reth.va % u64::from(ATOMIC_LEN) != 0 {
            return Err(Refusal::invalid(Check::Alignment));
        }
        ctx.host
            .atomic_write(reth.rkey, reth.va, payload)
            .map_err(Refusal::access)?;
        self.answer_bare(ctx.cold);
        Ok(())
    }

    /// Executes a FLUSH in sequence: what came before it was placed before it.
    pub(crate) fn flush_in<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        len: usize,
    ) -> Result<(), Refusal> {
        let (reth, flush) = match (headers.reth, headers.feth.and_then(Flush::of)) {
            (Some(reth), Some(flush)) if len == 0 => (reth, flush),
            _ => return Err(Refusal::invalid(Check::Length)),
        };
        self.may_respond(ctx.cold, flush.placement)?;
        if !self.mutated(Mutation::FlushNothing) {
            ctx.host
                .flush(reth.rkey, reth.va, reth.dma_len, flush)
                .map_err(Refusal::access)?;
        }
        self.answer_bare(ctx.cold);
        Ok(())
    }

    fn answer_bare(&mut self, cold: &mut Cold) {
        let psn = self.resp.expected();
        self.resp.atomics.keep_bare(cold, psn);
        self.respond_from(cold, psn, 1, |msn| bare_job(psn, msn));
    }

    /// A FLUSH or ATOMIC WRITE seen before: answered again. One that is no longer kept was acknowledged long ago.
    pub(crate) fn duplicate_bare<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        const REFUSED: Received = Received::Dropped(DropReason::ReplayRefused);
        let psn = headers.bth.psn;
        if !self.resp.atomics.has_bare(ctx.cold, psn) {
            return REFUSED;
        }
        if let Some(reth) = headers.reth
            && !payload.is_empty()
            && self.mutated(Mutation::ReexecuteDuplicateAtomic)
        {
            let _ = ctx.host.atomic_write(reth.rkey, reth.va, payload);
        }
        let job = ResponseJob {
            again: true,
            ..bare_job(psn, self.resp.msn())
        };
        if self.resp.responses.replay(&mut ctx.cold.jobs, job) {
            Received::Duplicate
        } else {
            REFUSED
        }
    }
}

/// The response of a READ of no bytes, for which no key is looked at.
fn bare_job(psn: Psn, msn: u32) -> ResponseJob {
    let nothing = Reth {
        va: 0,
        rkey: 0,
        dma_len: 0,
    };
    ResponseJob::read(&nothing, 0, psn, 1, msn)
}
