//! A QP by hand: its two rings, and account of every work request.
use std::collections::VecDeque;

use anyhow::{Context as _, Result, ensure};
use rnic_abi::{
    Av, Cqe, CreateQpReply, Handle, ModifyQp, QpAttrs, RING_ENTRIES, RingIndices, Sge, WQE_UNIT, Wqe,
    cqe_flags, qp_mask,
};
use rnic_tests::raw::Memory;
use zerocopy::IntoBytes;

use crate::session::Events;

/// `enum ibv_wc_status` of a success.
pub const SUCCESS: u8 = 0;
/// Of a flushed request.
pub const FLUSHED: u8 = 5;
/// Of one whose peer says nothing.
pub const RETRY_EXCEEDED: u8 = 12;
/// Units of both queues.
pub const UNITS: u32 = 16;

/// A ring of work requests.
#[derive(Copy, Clone, Debug)]
pub struct Ring {
    pub offset: usize,
    pub depth: u32,
    pub tail: u32,
}

/// A request that has not completed.
#[derive(Copy, Clone, Debug)]
struct Posted {
    wr_id: u64,
    /// Bytes its completion must tell, for receives, READs and atomics.
    len: Option<u32>,
}

/// A queue pair.
#[derive(Debug)]
pub struct Qp {
    pub handle: u32,
    pub qpn: u32,
    /// PSN it sends first.
    pub psn: u32,
    pub block: u32,
    pub pd: u32,
    pub send_cq: u32,
    pub recv_cq: u32,
    pub sq: Ring,
    pub rq: Ring,
    sends: VecDeque<Posted>,
    recvs: VecDeque<Posted>,
    /// Status of the first send that failed.
    pub send_failure: Option<u8>,
    /// Status of the first receive that failed.
    pub recv_failure: Option<u8>,
    /// Its completions go to a CQ that is to overflow: some will be missing.
    pub lossy: bool,
    pub events: Events,
}

impl Qp {
    pub fn new(made: &CreateQpReply, pd: u32, send_cq: u32, recv_cq: u32, psn: u32) -> Qp {
        let ring = |offset: u64, depth| Ring {
            offset: offset as usize,
            depth,
            tail: 0,
        };
        Qp {
            handle: made.handle,
            qpn: made.qpn,
            psn,
            block: made.doorbell_block,
            pd,
            send_cq,
            recv_cq,
            sq: ring(made.sq_offset, made.sq_depth),
            rq: ring(made.rq_offset, made.rq_depth),
            sends: VecDeque::new(),
            recvs: VecDeque::new(),
            send_failure: None,
            recv_failure: None,
            lossy: false,
            events: Events::default(),
        }
    }

    /// Slot of its doorbell.
    pub fn slot(&self) -> u32 {
        Handle(self.handle).slot()
    }

    /// Requests that have not completed.
    pub fn outstanding(&self) -> usize {
        self.sends.len() + self.recvs.len()
    }

    /// Room of the send queue.
    pub fn send_room(&self) -> usize {
        self.sq.depth as usize - self.sends.len()
    }

    /// Whether any request has failed.
    pub fn failed(&self) -> bool {
        self.send_failure.is_some() || self.recv_failure.is_some()
    }

    /// Accounts for a completion: each request completes once, in order, and nothing succeeds after a failure.
    pub fn complete(&mut self, cqe: &Cqe) -> Result<()> {
        ensure!(cqe.qpn == self.qpn, "handle and QPN of different QPs: {cqe:?}");
        let recv = cqe.flags & cqe_flags::RECV != 0;
        let (queue, failure) = if recv {
            (&mut self.recvs, &mut self.recv_failure)
        } else {
            (&mut self.sends, &mut self.send_failure)
        };
        let name = if recv { "receive" } else { "send" };
        let posted = queue.pop_front().with_context(|| {
            format!(
                "QP {:#x}: a completion too many of the {name} queue: {cqe:?}",
                cqe.qpn
            )
        })?;
        ensure!(
            posted.wr_id == cqe.wr_id || self.lossy,
            "QP {:#x}: {name} {} was due: {cqe:?}",
            cqe.qpn,
            posted.wr_id
        );
        if cqe.status == SUCCESS {
            ensure!(
                failure.is_none(),
                "QP {:#x}: a {name} succeeded after another had failed: {cqe:?}",
                cqe.qpn
            );
            ensure!(
                posted.len.is_none_or(|len| len == cqe.byte_len),
                "QP {:#x}: {name} of {:?} bytes: {cqe:?}",
                cqe.qpn,
                posted.len
            );
        } else {
            failure.get_or_insert(cqe.status);
        }
        Ok(())
    }

    /// Writes a send WQE of one unit at the tail; [`Qp::publish`] shows it.
    pub fn put_send(&mut self, region: &Memory, wqe: &Wqe, len: Option<u32>) {
        put(region, &mut self.sq, wqe);
        self.sends.push_back(Posted {
            wr_id: wqe.wr_id,
            len,
        });
    }

    /// Posts a receive, and tells whether to ring: a QP in error flushes it.
    #[must_use]
    pub fn post_recv(&mut self, region: &Memory, wr_id: u64, sge: Sge, len: Option<u32>) -> bool {
        let wqe = Wqe {
            wr_id,
            num_sge: 1,
            units: 1,
            sges: [sge, Sge::default()],
            ..Wqe::default()
        };
        put(region, &mut self.rq, &wqe);
        self.recvs.push_back(Posted { wr_id, len });
        region.store(self.rq.offset + RingIndices::TAIL, self.rq.tail);
        region.load(self.rq.offset + RingIndices::NEED_KICK) != 0
    }

    /// Publishes the send queue's tail, and tells whether to ring.
    pub fn publish(&self, region: &Memory) -> bool {
        region.store(self.sq.offset + RingIndices::TAIL, self.sq.tail);
        region.load(self.sq.offset + RingIndices::NEED_KICK) != 0
    }

    /// Publishes a tail that cannot be: more than the queue holds.
    pub fn forge(&mut self, region: &Memory) {
        self.sq.tail = self.sq.tail.wrapping_add(self.sq.depth + 3);
        region.store(self.sq.offset + RingIndices::TAIL, self.sq.tail);
        // What was posted and is discarded with the ring has no completion.
        self.sends.clear();
    }

    /// The three transitions to RTS.
    pub fn transitions(&self, peer: Peer, mtu: u8) -> [ModifyQp; 3] {
        use qp_mask::*;
        let init = QpAttrs {
            qp_state: 1,
            port_num: 1,
            qp_access_flags: 15,
            ..QpAttrs::default()
        };
        let rtr = QpAttrs {
            qp_state: 2,
            path_mtu: mtu,
            dest_qp_num: peer.qpn,
            rq_psn: peer.psn,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 1,
            ah_attr: Av {
                dgid: peer.gid,
                ..Av::default()
            },
            ..QpAttrs::default()
        };
        let rts = QpAttrs {
            qp_state: 3,
            sq_psn: self.psn,
            // 134 ms, eight times: a machine that is away does not fail a QP.
            timeout: 15,
            retry_cnt: 7,
            rnr_retry: 2,
            max_rd_atomic: 4,
            ..QpAttrs::default()
        };
        [
            (PKEY_INDEX | PORT | ACCESS_FLAGS, init),
            (
                AV | PATH_MTU | DEST_QPN | RQ_PSN | MAX_DEST_RD_ATOMIC | MIN_RNR_TIMER,
                rtr,
            ),
            (SQ_PSN | TIMEOUT | RETRY_CNT | RNR_RETRY | MAX_QP_RD_ATOMIC, rts),
        ]
        .map(|(mask, attrs)| ModifyQp {
            handle: self.handle,
            mask: mask | STATE,
            attrs,
        })
    }

    /// The transition to ERR.
    pub fn to_error(&self) -> ModifyQp {
        self.to_state(6)
    }

    /// A transition that needs no attributes, by the state's number.
    pub fn to_state(&self, qp_state: u8) -> ModifyQp {
        ModifyQp {
            handle: self.handle,
            mask: qp_mask::STATE,
            attrs: QpAttrs {
                qp_state,
                ..QpAttrs::default()
            },
        }
    }
}

/// The other end, as a QP must know it.
#[derive(Copy, Clone, Debug)]
pub struct Peer {
    pub qpn: u32,
    pub psn: u32,
    pub gid: [u8; 16],
}

fn put(region: &Memory, ring: &mut Ring, wqe: &Wqe) {
    let at = ring.offset + RING_ENTRIES + (ring.tail & (ring.depth - 1)) as usize * WQE_UNIT;
    region.write(at, wqe.as_bytes());
    ring.tail = ring.tail.wrapping_add(1);
}
