//! Atomics: the request, its execution, and the results kept for duplicates (9.4.5, 9.7.5.1.4).

use crate::attr::MAX_RD_ATOMIC;
use crate::cold::Cold;
use crate::host::Host;
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, Emit, RcQp, Received};
use crate::record::record;
use crate::refusal::Refusal;
use crate::replay::ResponseJob;
use crate::types::{Access, Check};
use crate::work::{SendWr, WrOpcode};
use rnic_wire::{AtomicEth, Headers, Operation, Psn};

/// Bytes an atomic works on: neither more nor less, at a multiple of as many.
pub(crate) const ATOMIC_LEN: u32 = 8;

/// What to do with 8 bytes of memory, in host order. Its result is what stood there before.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    /// CMP_SWP.
    CompareSwap {
        /// Swap only if this stands there.
        compare: u64,
        /// What to put there.
        swap: u64,
    },
    /// FETCH_ADD, modulo 2^64.
    FetchAdd {
        /// What to add.
        add: u64,
    },
}

impl AtomicOp {
    /// What an AtomicETH asks for.
    pub(crate) const fn of(operation: Operation, eth: &AtomicEth) -> Self {
        match operation {
            Operation::CompareSwap => AtomicOp::CompareSwap {
                compare: eth.compare,
                swap: eth.swap_or_add,
            },
            _ => AtomicOp::FetchAdd { add: eth.swap_or_add },
        }
    }
}

record! {
    /// Where in [`Cold`] the results of the last atomics executed lie (and that FLUSHes and ATOMIC WRITEs were), so that a
    /// duplicate is answered and not executed again.
    ///
    /// As many as a requester may have outstanding, READs included: whatever it may still ask for is here.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct AtomicResults {
        /// Where the next one goes; before it lie the older ones.
        next: u8,
        len: u8,
        /// Bits of those that brought nothing back: FLUSH and ATOMIC WRITE.
        bare: u16,
    }
}

impl AtomicResults {
    pub const fn new() -> Self {
        AtomicResults {
            next: 0,
            len: 0,
            bare: 0,
        }
    }

    /// Notes that a FLUSH or ATOMIC WRITE was executed.
    pub fn keep_bare(&mut self, cold: &mut Cold, psn: Psn) {
        let bit = 1 << self.next;
        self.keep(cold, psn, 0);
        self.bare |= bit;
    }

    /// Whether the latest request at a PSN was a FLUSH or ATOMIC WRITE.
    pub fn has_bare(&self, cold: &Cold, psn: Psn) -> bool {
        self.at(cold, psn).is_some_and(|at| self.bare >> at & 1 != 0)
    }

    #[inline]
    pub fn keep(&mut self, cold: &mut Cold, psn: Psn, original: u64) {
        let at = usize::from(self.next);
        self.bare &= !(1 << at);
        (cold.originals[at], cold.psns[at]) = (original, psn);
        self.next = (self.next + 1) % MAX_RD_ATOMIC;
        self.len = (self.len + 1).min(MAX_RD_ATOMIC);
    }

    /// The latest result of an atomic at a PSN.
    fn find(&self, cold: &Cold, psn: Psn) -> Option<u64> {
        self.at(cold, psn)
            .filter(|at| self.bare >> at & 1 == 0)
            .map(|at| cold.originals[at])
    }

    /// Where the latest at a PSN lies.
    fn at(&self, cold: &Cold, psn: Psn) -> Option<usize> {
        (1..=self.len)
            .map(|back| usize::from((self.next + MAX_RD_ATOMIC - back) % MAX_RD_ATOMIC))
            .find(|at| cold.psns[*at] == psn)
    }

    /// Results kept, as the record says, and where the next one goes.
    pub fn cursors(&self) -> (u8, u8) {
        (self.len, self.next)
    }
}

/// Whether an atomic is for memory at a multiple of as many bytes as it works on.
#[inline]
pub(crate) const fn is_aligned(eth: &AtomicEth) -> bool {
    eth.va & (ATOMIC_LEN as u64 - 1) == 0
}

impl SendWr {
    /// What an atomic is on the wire.
    #[inline]
    pub(crate) fn atomic_eth(&self) -> (Operation, AtomicEth) {
        let (operation, swap_or_add, compare) = match self.opcode {
            WrOpcode::CompSwap => (Operation::CompareSwap, self.swap, self.compare_add),
            _ => (Operation::FetchAdd, self.compare_add, 0),
        };
        let eth = AtomicEth {
            va: self.remote_addr,
            rkey: self.rkey,
            swap_or_add,
            compare,
        };
        (operation, eth)
    }
}

impl RcQp {
    /// The request of an atomic.
    pub(crate) fn atomic_request(&mut self, wr: &SendWr, emit: &mut Emit) {
        let psn = self.req.next;
        let (operation, eth) = wr.atomic_eth();
        let mut bth = self.bth(operation, psn);
        bth.ack_req = true;
        emit.begin(bth);
        emit.headers.atomic = Some(eth);
        emit.headers.xrceth = self.xrceth(wr);
        self.req.rd_atomics += 1;
        self.advance(psn.next(), true);
    }

    /// Executes an atomic in sequence, keeps its result, and has it answered after everything before it.
    pub(crate) fn atomic_in<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        len: usize,
    ) -> Result<(), Refusal> {
        self.may_respond(ctx.cold, Access::REMOTE_ATOMIC)?;
        let eth = match headers.atomic {
            Some(eth) if len == 0 => eth,
            _ => return Err(Refusal::invalid(Check::Length)),
        };
        if !is_aligned(&eth) {
            return Err(Refusal::invalid(Check::Alignment));
        }
        let op = AtomicOp::of(headers.bth.opcode.operation, &eth);
        let original = ctx.host.atomic(eth.rkey, eth.va, op).map_err(Refusal::access)?;
        let psn = self.resp.expected();
        self.resp.atomics.keep(ctx.cold, psn, original);
        self.respond_from(ctx.cold, psn, 1, |msn| ResponseJob::atomic(psn, original, msn));
        Ok(())
    }

    /// An atomic seen before: the result kept is said again. One that is no longer kept was acknowledged long ago
    /// and is nobody's concern.
    pub(crate) fn duplicate_atomic<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        len: usize,
    ) -> Received {
        const REFUSED: Received = Received::Dropped(DropReason::ReplayRefused);
        let psn = headers.bth.psn;
        let (Some(eth), Some(mut original), 0) = (headers.atomic, self.resp.atomics.find(ctx.cold, psn), len)
        else {
            return REFUSED;
        };
        if self.mutated(Mutation::ReexecuteDuplicateAtomic) {
            let op = AtomicOp::of(headers.bth.opcode.operation, &eth);
            original = ctx.host.atomic(eth.rkey, eth.va, op).unwrap_or(original);
        }
        let job = ResponseJob {
            again: true,
            ..ResponseJob::atomic(psn, original, self.resp.msn())
        };
        if self.resp.responses.replay(&mut ctx.cold.jobs, job) {
            Received::Duplicate
        } else {
            REFUSED
        }
    }
}
