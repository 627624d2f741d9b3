//! A session whose memory is written by hand.
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rnic_abi::{
    Av, Cqe, CreateCq, CreateCqReply, CreateQp, CreateQpReply, DeviceArg, Empty, HandleReply, ModifyQp, Op,
    QpAttrs, RING_ENTRIES, RegMr, RegMrReply, RegionHeader, RegionLayout, RingIndices, WQE_UNIT, Wqe,
    cq_subring_offset, qp_mask,
};
use rustix::net::{SendFlags, send};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Line, Memory, Reply};
use crate::poll_until;

/// A session, greeted, with its region mapped.
#[derive(Debug)]
pub struct Verbs {
    /// The control socket.
    pub line: Line,
    /// The context region.
    pub region: Memory,
    /// What stands where in it.
    pub layout: RegionLayout,
    /// Its descriptor.
    pub region_fd: OwnedFd,
    /// Wakes each poll core.
    pub wakes: Vec<OwnedFd>,
    /// Where events are announced.
    pub events: OwnedFd,
    /// Device used.
    pub device: u32,
    /// QPs made so far.
    pub qps: Vec<QueuePair>,
    cq: CreateCqReply,
    heads: Vec<u32>,
    pd: u32,
}

/// Where the words of a queue stand in the region.
#[derive(Copy, Clone, Debug)]
pub struct Words {
    /// Offset of its [`RingIndices`].
    pub offset: usize,
    /// Units or entries.
    pub depth: u32,
}

/// A QP made by hand.
#[derive(Copy, Clone, Debug)]
pub struct QueuePair {
    /// What the daemon said.
    pub made: CreateQpReply,
    /// The send queue.
    pub sq: Words,
    /// The receive queue.
    pub rq: Words,
}

/// The GID of an IPv4 address.
pub fn ipv4_gid(address: &str) -> [u8; 16] {
    address
        .parse::<Ipv4Addr>()
        .expect("an IPv4 address")
        .to_ipv6_mapped()
        .octets()
}

impl Verbs {
    /// Opens a session and makes a PD and a CQ with room for `depth` completions, on a device by its number.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn open(socket: &Path, device: u32, depth: u32) -> Verbs {
        let (mut line, hello, fds) = Line::greet(socket);
        let mut fds = fds.into_iter();
        let region_fd = fds.next().expect("the region comes first");
        let events = fds.next().expect("then the socket for events");
        let region = Memory::map(&region_fd, hello.region_size as usize).expect("mapping the region");
        let mut header = RegionHeader::new_zeroed();
        region.read(0, header.as_mut_bytes());
        let layout = RegionLayout::from_header(&header).expect("a header of this version");
        let pd: HandleReply = line
            .request(Op::AllocPd, &DeviceArg { device, reserved: 0 }, &[])
            .body();
        let body = CreateCq {
            device,
            depth,
            ..CreateCq::default()
        };
        let cq: CreateCqReply = line.request(Op::CreateCq, &body, &[]).body();
        let heads = vec![0; cq.subrings as usize];
        let wakes = fds.collect();
        Verbs {
            line,
            region,
            layout,
            region_fd,
            wakes,
            events,
            device,
            qps: Vec::new(),
            cq,
            heads,
            pd: pd.handle,
        }
    }

    /// The PD.
    pub fn pd(&self) -> u32 {
        self.pd
    }

    /// The CQ's handle.
    pub fn cq_handle(&self) -> u32 {
        self.cq.handle
    }

    /// QPs made from now on complete to this CQ, which is then polled.
    pub fn use_cq(&mut self, cq: CreateCqReply) {
        self.heads = vec![0; cq.subrings as usize];
        self.cq = cq;
    }

    /// Sub-ring `index` of the CQ.
    pub fn subring(&self, index: u32) -> Words {
        Words {
            offset: self.cq.offset as usize + cq_subring_offset(self.cq.depth, index),
            depth: self.cq.depth,
        }
    }

    /// Offset of the CQ's arm word.
    pub fn arm_word(&self) -> usize {
        self.cq.offset as usize
    }

    /// Registers `length` bytes of `file` at `iova`, with every right.
    pub fn reg_mr(&mut self, file: impl AsFd, fd_offset: u64, length: u64, iova: u64) -> Reply {
        let body = RegMr {
            pd: self.pd,
            access: 15,
            fd_offset,
            length,
            iova,
        };
        self.line.request(Op::RegMr, &body, &[file.as_fd()])
    }

    /// Registers, and expects success.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn mr(&mut self, file: impl AsFd, length: u64, iova: u64) -> RegMrReply {
        self.reg_mr(file, 0, length, iova).body()
    }

    /// Makes a QP of so many units.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn qp(&mut self, units: u32) -> QueuePair {
        let body = CreateQp {
            pd: self.pd,
            send_cq: self.cq.handle,
            recv_cq: self.cq.handle,
            qp_type: 2,
            sq_units: units,
            rq_units: units,
            ..CreateQp::default()
        };
        let made: CreateQpReply = self.line.request(Op::CreateQp, &body, &[]).body();
        let qp = QueuePair {
            made,
            sq: Words {
                offset: made.sq_offset as usize,
                depth: made.sq_depth,
            },
            rq: Words {
                offset: made.rq_offset as usize,
                depth: made.rq_depth,
            },
        };
        self.qps.push(qp);
        qp
    }

    /// Brings a QP to RTS, connected to a QP number at an address. Both sides start at PSN 100.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn connect(&mut self, qp: &QueuePair, dest_qpn: u32, dgid: [u8; 16]) {
        for body in rts(qp.made.handle, dest_qpn, dgid) {
            let _: Empty = self.line.request(Op::ModifyQp, &body, &[]).body();
        }
    }

    /// Writes a WQE of one unit at the tail of a queue, publishes it and rings, whatever it is.
    pub fn post(&self, qp: &QueuePair, queue: Words, wqe: &Wqe) {
        self.post_unpublished(queue, wqe);
        let tail = self.region.load(queue.offset + RingIndices::TAIL).wrapping_add(1);
        self.region.store(queue.offset + RingIndices::TAIL, tail);
        self.ring(qp);
    }

    /// Writes a WQE of one unit at the tail of a queue.
    pub fn post_unpublished(&self, queue: Words, wqe: &Wqe) {
        let tail = self.region.load(queue.offset + RingIndices::TAIL);
        let at = queue.offset + RING_ENTRIES + (tail & (queue.depth - 1)) as usize * WQE_UNIT;
        self.region.write(at, wqe.as_bytes());
    }

    /// Sets the doorbell bit of a QP and wakes its core.
    pub fn ring(&self, qp: &QueuePair) {
        self.ring_bit(qp.made.doorbell_block, rnic_abi::Handle(qp.made.handle).slot());
    }

    /// Sets any doorbell bit inside the layout, and wakes the core.
    pub fn ring_bit(&self, block: u32, slot: u32) {
        let doorbell = &self.layout.doorbell;
        let base = self.layout.doorbells + block as usize * doorbell.size();
        let set = |level: usize, bit: u32| {
            let at = base + level + (bit / 32) as usize * 4;
            self.region.store(at, self.region.load(at) | 1 << (bit % 32));
        };
        set(doorbell.level0(), slot);
        set(rnic_abi::DoorbellLayout::LEVEL1, slot / 64);
        self.wake(block);
    }

    /// Wakes a core.
    pub fn wake(&self, block: u32) {
        let _ = send(
            &self.wakes[block as usize],
            &[1],
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
    }

    /// The next completion.
    ///
    /// # Panics
    /// When there is none in 20 seconds.
    pub fn completion(&mut self) -> Cqe {
        poll_until(Duration::from_secs(20), || self.poll()).expect("a completion")
    }

    /// The next completion, if there is one.
    pub fn poll(&mut self) -> Option<Cqe> {
        for index in 0..self.heads.len() {
            let ring = self.subring(index as u32);
            let head = &mut self.heads[index];
            if self.region.load(ring.offset + RingIndices::TAIL) == *head {
                continue;
            }
            let at = ring.offset + RING_ENTRIES + (*head & (ring.depth - 1)) as usize * size_of::<Cqe>();
            let mut bytes = [0; size_of::<Cqe>()];
            self.region.read(at, &mut bytes);
            *head = head.wrapping_add(1);
            self.region.store(ring.offset + RingIndices::HEAD, *head);
            return Some(Cqe::read_from_bytes(&bytes).expect("any bytes are a CQE"));
        }
        None
    }
}

/// The transitions RESET → INIT → RTR → RTS of a QP, in the attributes the specification demands.
pub fn rts(handle: u32, dest_qp_num: u32, dgid: [u8; 16]) -> [ModifyQp; 3] {
    let init = QpAttrs {
        qp_state: 1,
        port_num: 1,
        qp_access_flags: 15,
        ..QpAttrs::default()
    };
    let rtr = QpAttrs {
        qp_state: 2,
        path_mtu: 3,
        dest_qp_num,
        rq_psn: 100,
        max_dest_rd_atomic: 4,
        min_rnr_timer: 12,
        ah_attr: Av {
            dgid,
            ..Av::default()
        },
        ..QpAttrs::default()
    };
    let rts = QpAttrs {
        qp_state: 3,
        sq_psn: 100,
        timeout: 13,
        retry_cnt: 7,
        rnr_retry: 7,
        max_rd_atomic: 4,
        ..QpAttrs::default()
    };
    use qp_mask::*;
    [
        (PKEY_INDEX | PORT | ACCESS_FLAGS, init),
        (
            AV | PATH_MTU | DEST_QPN | RQ_PSN | MAX_DEST_RD_ATOMIC | MIN_RNR_TIMER,
            rtr,
        ),
        (SQ_PSN | TIMEOUT | RETRY_CNT | RNR_RETRY | MAX_QP_RD_ATOMIC, rts),
    ]
    .map(|(mask, attrs)| ModifyQp {
        handle,
        mask: mask | STATE,
        attrs,
    })
}

/// Two sessions with a QP each, connected: one on device 0 (10.0.0.1), one on device 1 (10.0.0.2).
///
/// # Panics
/// When the daemon refuses.
pub fn pair(socket: &Path, units: u32) -> [(Verbs, QueuePair); 2] {
    let [mut a, mut b] = [0, 1].map(|device| Verbs::open(socket, device, 4 * units));
    let (qa, qb) = (a.qp(units), b.qp(units));
    a.connect(&qa, qb.made.qpn, ipv4_gid("10.0.0.2"));
    b.connect(&qb, qa.made.qpn, ipv4_gid("10.0.0.1"));
    [(a, qa), (b, qb)]
}

/// A signalled RDMA WRITE of `length` bytes at `addr` of the region `lkey`.
pub fn write(wr_id: u64, addr: u64, length: u32, lkey: u32, remote_addr: u64, rkey: u32) -> Wqe {
    let mut wqe = Wqe {
        wr_id,
        flags: rnic_abi::wqe_flags::SIGNALED,
        num_sge: 1,
        units: 1,
        ..Wqe::default()
    };
    (wqe.remote_addr, wqe.rkey) = (remote_addr, rkey);
    wqe.sges[0] = rnic_abi::Sge { addr, length, lkey };
    wqe
}
