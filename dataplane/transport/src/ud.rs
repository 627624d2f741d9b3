//! Unreliable datagrams (9.8.3): messages of one packet, to any QP that an address handle leads to.

use crate::host::{Host, Payload};
use crate::mutation::Mutation;
use crate::qp::{Ctx, DropReason, Emit, RcQp, Received, Source};
use crate::refusal::Refusal;
use crate::types::{Cause, Check, CompletionFlags, QpType, WcOpcode, WcStatus};
use crate::work::{SendFlags, SendWr, WrOpcode};
use rnic_wire::{Bth, Deth, Headers, Mtu, Opcode, Operation, Transport};

/// Bytes at the beginning of every datagram's receive buffer (11.4.1.2): the GRH, which in RoCEv2 is the IPv6 header
/// received, or the IPv4 header in the last 20 of them.
pub const GRH_AREA: usize = 40;

/// Of the Q_Key in a work request: the QP's own is meant (10.2.5).
const OWN_QKEY: u32 = 1 << 31;
const BITS_24: u64 = 0xFF_FFFF;

impl SendWr {
    /// Number of the address handle, of a datagram.
    #[inline]
    pub const fn ah(&self) -> u32 {
        (self.remote_addr >> 32) as u32
    }

    /// QP that a datagram is for, 24 bits.
    #[inline]
    pub const fn remote_qpn(&self) -> u32 {
        (self.remote_addr & BITS_24) as u32
    }

    /// Q_Key of a datagram.
    #[inline]
    pub const fn remote_qkey(&self) -> u32 {
        self.rkey
    }

    /// The same, to be sent as a datagram.
    #[must_use]
    pub const fn to(mut self, ah: u32, remote_qpn: u32, remote_qkey: u32) -> Self {
        self.remote_addr = (ah as u64) << 32 | remote_qpn as u64 & BITS_24;
        self.rkey = remote_qkey;
        self
    }
}

impl RcQp {
    /// A UD QP in RESET, over a port of this path MTU.
    pub const fn new_ud(qpn: u32, mtu: Mtu) -> Self {
        let mut qp = RcQp::new(qpn).with_type(QpType::Ud);
        qp.attrs.mtu = mtu;
        qp
    }

    /// The next packet of a UD requester.
    ///
    /// A message longer than the path MTU is never sent and completes with success (C10-93.1.1).
    #[inline]
    pub(crate) fn poll_ud<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &mut Emit) -> bool {
        loop {
            self.complete_sent(ctx);
            let Some(index) = self.sendable() else {
                return false;
            };
            self.start_request(ctx, index);
            let slot = index & (ctx.sq.len() as u32).wrapping_sub(1);
            let wr = &*ctx.wr(index);
            if wr.length > self.attrs.mtu.bytes() as u32 {
                self.req.cur = index.wrapping_add(1);
                continue;
            }
            self.datagram(wr, slot, emit);
            return true;
        }
    }

    #[inline]
    fn datagram(&mut self, wr: &SendWr, slot: u32, emit: &mut Emit) {
        let (operation, imm) = match wr.opcode {
            WrOpcode::SendImm => (Operation::SendOnlyImm, Some(wr.imm_or_rkey)),
            _ => (Operation::SendOnly, None),
        };
        let opcode = Opcode::new(Transport::Ud, operation);
        emit.begin(Bth::new(opcode, wr.remote_qpn(), wr.first));
        let headers = &mut emit.headers;
        headers.bth.solicited = wr.flags.contains(SendFlags::SOLICITED);
        let given = wr.remote_qkey();
        headers.deth = Some(Deth {
            qkey: if given & OWN_QKEY == 0 {
                given
            } else {
                self.attrs.qkey
            },
            src_qpn: self.qpn,
        });
        headers.imm = imm;
        self.advance(wr.first.next(), true);
        emit.ah = Some(wr.ah());
        if wr.length > 0 {
            emit.source = Source::Send {
                wr_index: slot,
                data: wr.data,
                offset: 0,
                len: wr.length,
            };
        }
    }

    /// The address handle of the datagram given last is not valid: its work request fails, and the send queue goes to SQE.
    pub fn address_failed<H: Host>(&mut self, ctx: &mut Ctx<'_, H>, emit: &Emit) {
        if emit.ah.is_none() || !self.state.sends() || !self.has_sent() {
            return;
        }
        let bth = &emit.headers.bth;
        let cause = Cause {
            psn: bth.psn.get(),
            opcode: bth.opcode.to_u8(),
            ..Cause::of(Check::AddressHandle)
        };
        // Its PSN was never used.
        (self.req.next, self.req.max) = (bth.psn, bth.psn);
        self.fail_oldest(ctx, WcStatus::LocQpOpErr, cause);
    }

    /// Takes a datagram. What is wrong with it costs nobody anything; an error of our own buffers or queues ends the QP.
    #[inline]
    pub(crate) fn ud_request<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        payload: H::Payload<'_>,
    ) -> Received {
        if !self.state.receives() {
            return Received::Dropped(DropReason::State);
        }
        let any = self.mutated(Mutation::SkipQkeyCheck);
        let Some(deth) = headers.deth.filter(|deth| any || deth.qkey == self.attrs.qkey) else {
            return Received::Dropped(DropReason::Qkey);
        };
        match self.datagram_in(ctx, headers, deth.src_qpn, payload) {
            Ok(None) => Received::Accepted,
            Ok(Some(reason)) => Received::Dropped(reason),
            Err(refusal) => {
                let bth = &headers.bth;
                self.refuse(ctx, bth.psn, bth.opcode.to_u8(), &refusal)
            }
        }
    }

    #[inline]
    fn datagram_in<H: Host>(
        &mut self,
        ctx: &mut Ctx<'_, H>,
        headers: &Headers,
        src_qpn: u32,
        payload: H::Payload<'_>,
    ) -> Result<Option<DropReason>, Refusal> {
        if !self.take_recv(ctx)? {
            return Ok(Some(DropReason::NoReceiveWqe));
        }
        let (wqe, len) = (self.resp.wqe, payload.len() as u32);
        if len > wqe.capacity {
            // The WQE is used for the next one.
            return Ok(Some(DropReason::Refused(Check::MessageTooLong)));
        }
        ctx.host
            .scatter_recv(&wqe, 0, payload)
            .map_err(|err| Refusal::local(err.check(), WcStatus::LocProtErr))?;
        self.resp.received = len;
        // Of a datagram it is the sender that the completion names.
        self.dest_qpn = src_qpn;
        let (flags, value) = match headers.imm {
            Some(imm) => (CompletionFlags::WITH_IMM, imm),
            None => (CompletionFlags::NONE, 0),
        };
        let flags = flags.union(CompletionFlags::GRH);
        self.complete_recv(ctx, WcOpcode::Recv, flags, value, headers.bth.solicited);
        self.dest_qpn = 0;
        Ok(None)
    }
}
