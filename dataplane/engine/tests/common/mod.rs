//! A client played by hand: a region, two QPs and their queues, over an engine without a control thread.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod hold;
pub mod port;

use std::{
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rnic_abi::{Cqe, Handle, RegionLayout, RingIndices, Sge, Wqe, protocol};
use rnic_engine::{
    CoreConfig, Engine, EngineConfig, Limits,
    command::{Command, Message, ObjectEvent, Path, QpChange, QpStatus, Token},
    core::{ClientDoorbells, CqInit, Idle, QpInit, Receives, SrqInit},
    mem::{ClientMem, FaultCell, MrDescriptor, MrTable},
    port::OpenPort,
    view::{Kind, Leaf, number, slot_of},
};
use rnic_transport::{Access, Congestion, ModifyError, QpAttr, QpAttrMask, QpState, QpType};
use rnic_wire::Mtu;

pub const DEPTH: u32 = 64;
pub const PD: u32 = 7;
pub const EVERY_RIGHT: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_ATOMIC);
pub const KEY: u32 = MrTable::key(3, 1, 0x55);

pub struct Rig {
    pub engine: Engine,
    pub region: Arc<ClientMem>,
    pub layout: RegionLayout,
    pub data: Arc<ClientMem>,
    pub key: u32,
    /// The memfds of `region` and `data`.
    pub files: [OwnedFd; 2],
    /// Local ACK timeout of QPs that are connected from now on.
    pub timeout: u8,
    /// Type of QPs that are made from now on.
    pub qp_type: QpType,
    /// Port of their device.
    pub port: u16,
    /// Daemon's end of the completion channel of CQs that are made from now on.
    pub channel: Option<Arc<OwnedFd>>,
    /// Of QPs made from now on.
    pub congestion: Congestion,
    pub qps: Vec<ClientQp>,
    pub srqs: Vec<ClientSrq>,
    pub events: Vec<ObjectEvent>,
    pub frames: usize,
    answers: Vec<Message>,
    next_token: u64,
    wakes: Vec<UnixDatagram>,
}

/// The client's side of an SRQ.
#[derive(Copy, Clone)]
pub struct ClientSrq {
    pub number: u32,
    pub handle: u32,
    pub core: usize,
    pub offset: u64,
    pub pd: u32,
    pub stride: u32,
    tail: u32,
}

/// The client's side of one QP and of its CQ.
pub struct ClientQp {
    pub qpn: u32,
    pub handle: u32,
    pub core: usize,
    pub sq: u64,
    pub rq: u64,
    pub cq: u64,
    pub cq_depth: u32,
    sq_tail: u32,
    rq_tail: u32,
    cq_heads: Vec<u32>,
}

impl Rig {
    pub fn new(cores: usize, ports: Vec<OpenPort>) -> Self {
        Self::with_idle(
            cores,
            ports,
            Idle::Sleep {
                spin_for_ns: 200_000,
                max_sleep_ns: 1_000_000,
            },
        )
    }

    pub fn with_idle(cores: usize, ports: Vec<OpenPort>, idle: Idle) -> Self {
        Self::sized(Self::config(cores, ports, idle), 16)
    }

    /// With room for the queues of so many QPs.
    pub fn sized(config: EngineConfig, qps: usize) -> Self {
        let (slots, cores) = (config.limits.qps, config.cores.len());
        let engine = Engine::start(config).unwrap();
        let layout = RegionLayout::new(slots, cores as u32, qps * (256 << 10));
        let fault = Arc::new(FaultCell::default());
        let (region, region_fd) = ClientMem::create("region", layout.size, fault.clone()).unwrap();
        let (data, data_fd) = ClientMem::create("data", 8 << 20, fault).unwrap();
        let (region, data) = (Arc::new(region), Arc::new(data));
        let key = KEY;
        let access = EVERY_RIGHT;
        let descriptor = MrDescriptor {
            mem: &data,
            pd: PD,
            access,
            iova: 0,
            len: data.len() as u64,
            invalidatable: false,
        };
        assert!(engine.mrs().validate(key, &descriptor));
        let mut rig = Self::over(engine, [region, data], layout, [region_fd, data_fd]);
        rig.admit();
        rig
    }

    pub fn config(cores: usize, ports: Vec<OpenPort>, idle: Idle) -> EngineConfig {
        let limits = Limits {
            clients: 4,
            qps: 64,
            cqs: 64,
            srqs: 8,
            mrs: 64,
            ahs: 64,
        };
        EngineConfig {
            cores: vec![CoreConfig { cpu: None, idle }; cores],
            limits,
            ports,
        }
    }

    /// The client of a running engine, without QPs.
    pub fn over(
        engine: Engine,
        [region, data]: [Arc<ClientMem>; 2],
        layout: RegionLayout,
        files: [OwnedFd; 2],
    ) -> Self {
        Rig {
            engine,
            region,
            layout,
            data,
            key: KEY,
            files,
            timeout: 10,
            qp_type: QpType::Rc,
            port: 0,
            channel: None,
            congestion: Congestion::Off,
            qps: Vec::new(),
            srqs: Vec::new(),
            events: Vec::new(),
            frames: 0,
            answers: Vec::new(),
            next_token: 1,
            wakes: Vec::new(),
        }
    }

    /// Hands the client's doorbells to every core.
    pub fn admit(&mut self) {
        let rig = self;
        for core in 0..rig.engine.core_count() {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            rig.wakes.push(ours);
            let doorbells =
                ClientDoorbells::new(rig.region.clone(), &rig.layout, core as u32, theirs.into()).unwrap();
            let token = rig.token();
            rig.engine.submit(
                core,
                Command::AddClient {
                    client: 0,
                    doorbells,
                    token,
                },
            );
            rig.answer(token);
        }
    }

    /// The client's side of a QP that [`Rig::create_qp`] made first, second, ...: what the client itself knows.
    pub fn find_qp(&mut self, slot: u32) {
        let base = self.layout.queues as u64 + self.qps.len() as u64 * (256 << 10);
        let (sq, rq, cq) = (base, base + (64 << 10), base + (128 << 10));
        let word = |offset: usize| self.region.u32(offset).unwrap().load(Ordering::Acquire);
        let qpn = number(slot, 5);
        let heads = (0..self.engine.core_count() as u32)
            .map(|i| word(cq as usize + rnic_abi::cq_subring_offset(DEPTH, i) + RingIndices::HEAD));
        let qp = ClientQp {
            qpn,
            handle: Handle::new(slot, 1).0,
            core: (qpn as usize & 0xff) % self.engine.core_count(),
            sq,
            rq,
            cq,
            cq_depth: DEPTH,
            sq_tail: word(sq as usize + RingIndices::TAIL),
            rq_tail: word(rq as usize + RingIndices::TAIL),
            cq_heads: heads.collect(),
        };
        self.qps.push(qp);
    }

    pub fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// Waits until the answer with this token is there.
    pub fn answer(&mut self, token: Token) -> Message {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.poll();
            let found = self.answers.iter().position(|m| match m {
                Message::Done { token: t }
                | Message::Removed { token: t, .. }
                | Message::Modified { token: t, .. }
                | Message::Flushed { token: t, .. }
                | Message::Queried { token: t, .. } => *t == token,
                _ => false,
            });
            if let Some(i) = found {
                return self.answers.remove(i);
            }
            assert!(Instant::now() < deadline, "no answer to {token:?}");
            std::thread::yield_now();
        }
    }

    pub fn poll(&mut self) {
        let Rig {
            engine,
            events,
            answers,
            frames,
            ..
        } = self;
        engine.poll(|_, message| match message {
            Message::Event(event) => events.push(event),
            Message::Frame { .. } => *frames += 1,
            other => answers.push(other),
        });
    }

    /// Makes an SRQ on a core, of a protection domain.
    pub fn create_srq(&mut self, slot: u32, core: u32, pd: u32, stride: u32) -> usize {
        self.find_srq(slot, core, pd, stride);
        let srq = self.srqs[self.srqs.len() - 1];
        let init = SrqInit {
            number: srq.number,
            core,
            handle: srq.handle,
            client: 0,
            pd,
            region: self.region.clone(),
            offset: srq.offset,
            depth: DEPTH,
            stride,
            xrc: None,
        };
        let made = self.engine.make_srq(init).unwrap();
        let token = self.token();
        self.engine
            .submit(core as usize, Command::AddSrq { srq: made, token });
        self.answer(token);
        self.srqs.len() - 1
    }

    /// The client's side of an SRQ that [`Rig::create_srq`] made: what the client itself knows.
    pub fn find_srq(&mut self, slot: u32, core: u32, pd: u32, stride: u32) {
        // Behind what the QP of the same count has.
        let offset = self.layout.queues as u64 + self.srqs.len() as u64 * (256 << 10) + (192 << 10);
        let tail = self.region.u32(offset as usize + RingIndices::TAIL).unwrap();
        self.srqs.push(ClientSrq {
            number: number(slot, 1),
            handle: Handle::new(60 + slot, 1).0,
            core: core as usize,
            offset,
            pd,
            stride,
            tail: tail.load(Ordering::Acquire),
        });
    }

    pub fn arm_srq(&mut self, srq: usize, limit: u32) {
        let token = self.token();
        let ClientSrq { core, number, .. } = self.srqs[srq];
        let slot = slot_of(number);
        self.engine.submit(core, Command::ArmSrq { slot, limit, token });
        self.answer(token);
    }

    /// Posts a receive of one unit's entries.
    pub fn post_srq_recv(&mut self, srq: usize, wr_id: u64, sges: &[Sge]) {
        let mut wqe = Wqe {
            wr_id,
            units: self.srqs[srq].stride as u8,
            num_sge: sges.len() as u8,
            ..Wqe::default()
        };
        wqe.sges[..sges.len()].copy_from_slice(sges);
        self.post_srq_wqe(srq, wqe);
    }

    pub fn post_srq_wqe(&mut self, srq: usize, wqe: Wqe) {
        let q = &mut self.srqs[srq];
        let at = q.offset as usize + rnic_abi::RING_ENTRIES + (q.tail & (DEPTH - 1)) as usize * 64;
        assert!(self.region.write(at, &wqe));
        q.tail = q.tail.wrapping_add(q.stride);
        let tail = self.region.u32(q.offset as usize + RingIndices::TAIL).unwrap();
        tail.store(q.tail, Ordering::Release);
    }

    /// Makes a QP with a CQ of its own, published, in RESET.
    pub fn create_qp(&mut self, slot: u32) -> usize {
        self.create_qp_on(slot, None)
    }

    /// The same, on an SRQ.
    pub fn create_qp_on(&mut self, slot: u32, srq: Option<usize>) -> usize {
        let cores = self.engine.core_count() as u32;
        let index = self.qps.len() as u64;
        let base = self.layout.queues as u64 + index * (256 << 10);
        let (sq, rq, cq) = (base, base + (64 << 10), base + (128 << 10));
        let handle = Handle::new(slot, 1).0;
        for core in 0..cores {
            let queue = self.engine.make_cq(self.cq_init(slot, core, cq)).unwrap();
            let token = self.token();
            self.engine.submit(
                core as usize,
                Command::AddCq {
                    cq: slot,
                    queue,
                    token,
                },
            );
            self.answer(token);
        }
        let need_kick = self.region.u32(sq as usize + RingIndices::NEED_KICK).unwrap();
        need_kick.store(1, Ordering::Release);
        let qpn = number(slot, 5);
        let init = QpInit {
            qpn,
            handle,
            client: 0,
            pd: PD,
            send_cq: slot,
            recv_cq: slot,
            region: Some(self.region.clone()),
            sq_offset: sq,
            sq_depth: DEPTH,
            receives: match srq {
                Some(srq) => Receives::Shared {
                    srq: slot_of(self.srqs[srq].number),
                    pd: self.srqs[srq].pd,
                },
                None => Receives::Own {
                    offset: rq,
                    depth: DEPTH,
                },
            },
            sig_all: true,
            qp_type: self.qp_type,
            port: self.port,
            mtu: Mtu::M1024,
            congestion: self.congestion,
            xrcd: 0,
        };
        let qp = self.engine.make_qp(init).unwrap();
        let core = self.engine.publisher().owner(qpn);
        let token = self.token();
        let change = None;
        self.engine.submit(
            core.into(),
            Command::AddQp {
                slot,
                qp,
                change,
                token,
            },
        );
        self.answer(token);
        self.engine
            .publisher()
            .add(Kind::Qp, qpn, Leaf::new(qpn, core, slot));
        self.engine.commit();
        self.qps.push(ClientQp {
            qpn,
            handle,
            core: core.into(),
            sq,
            rq,
            cq,
            cq_depth: DEPTH,
            sq_tail: 0,
            rq_tail: 0,
            cq_heads: vec![0; cores as usize],
        });
        self.qps.len() - 1
    }

    /// The sub-ring of CQ `slot`, at `offset` of the region, for one core.
    pub fn cq_init(&self, slot: u32, core: u32, offset: u64) -> CqInit {
        CqInit {
            handle: 1000 + slot,
            client: 0,
            number: slot,
            region: self.region.clone(),
            offset,
            depth: DEPTH,
            subring: core,
            channel: self.channel.clone(),
        }
    }

    pub fn modify(
        &mut self,
        qp: usize,
        attr: QpAttr,
        mask: QpAttrMask,
        path: Option<Path>,
    ) -> Result<QpState, ModifyError> {
        let token = self.submit_modify(qp, attr, mask, path);
        match self.answer(token) {
            Message::Modified { result, .. } => result.expect("a QP that is there"),
            other => panic!("{other:?}"),
        }
    }

    /// Asks for a modification, without waiting for it.
    pub fn submit_modify(&mut self, qp: usize, attr: QpAttr, mask: QpAttrMask, path: Option<Path>) -> Token {
        let token = self.token();
        let (core, slot) = (self.qps[qp].core, slot_of(self.qps[qp].qpn));
        let change = Box::new(QpChange { attr, mask, path });
        self.engine
            .submit(core, Command::ModifyQp { slot, change, token });
        token
    }

    pub fn query(&mut self, qp: usize) -> QpStatus {
        let token = self.token();
        let (core, slot) = (self.qps[qp].core, slot_of(self.qps[qp].qpn));
        self.engine.submit(core, Command::query_qp(slot, token));
        match self.answer(token) {
            Message::Queried { state, .. } => state.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Brings `a` and `b` to RTS over these paths.
    pub fn connect(&mut self, a: usize, b: usize, path_a: Path, path_b: Path, mtu: Mtu) {
        self.connect_one(a, b, path_a, mtu);
        self.connect_one(b, a, path_b, mtu);
    }

    /// Brings `me` to RTS towards `peer`.
    pub fn connect_one(&mut self, me: usize, peer: usize, path: Path, mtu: Mtu) {
        let mut attr = QpAttr {
            state: QpState::Init,
            port: 1,
            access: EVERY_RIGHT.union(Access::FLUSH_GLOBAL),
            path_mtu: mtu,
            dest_qpn: self.qps[peer].qpn,
            rq_psn: 0xfffff0,
            sq_psn: 0xfffff0,
            max_rd_atomic: 4,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 1,
            timeout: self.timeout,
            retry_cnt: 7,
            rnr_retry: 7,
            ..QpAttr::default()
        };
        use QpAttrMask as M;
        let init = M::STATE | M::PKEY_INDEX | M::PORT | M::ACCESS_FLAGS;
        let mut rtr = M::STATE | M::AV | M::PATH_MTU | M::DEST_QPN | M::RQ_PSN;
        let mut rts = M::STATE | M::SQ_PSN;
        if self.qp_type == QpType::Rc {
            rtr = rtr | M::MAX_DEST_RD_ATOMIC | M::MIN_RNR_TIMER;
            rts = rts | M::TIMEOUT | M::RETRY_CNT | M::RNR_RETRY | M::MAX_QP_RD_ATOMIC;
        }
        self.modify(me, attr, init, None).unwrap();
        attr.state = QpState::Rtr;
        self.modify(me, attr, rtr, Some(path)).unwrap();
        attr.state = QpState::Rts;
        self.modify(me, attr, rts, None).unwrap();
    }

    /// Posts a send WQE with one SGE and rings.
    pub fn post_send(&mut self, qp: usize, wqe: Wqe) {
        let q = &mut self.qps[qp];
        let at = q.sq as usize + rnic_abi::RING_ENTRIES + (q.sq_tail & (DEPTH - 1)) as usize * 64;
        assert!(self.region.write(at, &wqe));
        q.sq_tail = q.sq_tail.wrapping_add(1);
        let (sq, tail, handle, core) = (q.sq as usize, q.sq_tail, q.handle, q.core);
        self.publish(sq, tail, handle, core);
    }

    pub fn publish(&self, sq: usize, tail: u32, handle: u32, core: usize) {
        let word = |o| self.region.u32(sq + o).unwrap();
        if protocol::publish_tail(&word(RingIndices::TAIL), tail, &word(RingIndices::NEED_KICK)) {
            self.ring(handle, core);
        }
    }

    pub fn ring(&self, handle: u32, core: usize) {
        let block = self.layout.doorbells + core * self.layout.doorbell.size();
        let slot = Handle(handle).slot();
        let level0 = self
            .region
            .u64(block + self.layout.doorbell.level0() + slot as usize / 64 * 8)
            .unwrap();
        let level1 = self
            .region
            .u64(block + rnic_abi::DoorbellLayout::LEVEL1 + slot as usize / 4096 * 8)
            .unwrap();
        let sleeping = self.region.u32(block).unwrap();
        if protocol::ring_doorbell(&level0, &level1, slot, &sleeping) {
            let _ = self.wakes[core].send(&[1]);
        }
    }

    pub fn post_recv(&mut self, qp: usize, wr_id: u64, sges: &[Sge]) {
        assert!(sges.len() <= 2);
        let q = &mut self.qps[qp];
        let mut wqe = Wqe {
            wr_id,
            units: 1,
            num_sge: sges.len() as u8,
            ..Wqe::default()
        };
        wqe.sges[..sges.len()].copy_from_slice(sges);
        let at = q.rq as usize + rnic_abi::RING_ENTRIES + (q.rq_tail & (DEPTH - 1)) as usize * 64;
        assert!(self.region.write(at, &wqe));
        q.rq_tail = q.rq_tail.wrapping_add(1);
        let word = |o| self.region.u32(q.rq as usize + o).unwrap();
        let (tail, handle, core) = (q.rq_tail, q.handle, q.core);
        if protocol::publish_tail(&word(RingIndices::TAIL), tail, &word(RingIndices::NEED_KICK)) {
            self.ring(handle, core);
        }
    }

    /// The sub-ring of a QP's CQ for one core: where it stands, and where the client has come to in it.
    pub fn subring(&self, qp: usize, core: usize) -> (usize, u32) {
        let q = &self.qps[qp];
        let offset = rnic_abi::cq_subring_offset(q.cq_depth, core as u32);
        (q.cq as usize + offset, q.cq_heads[core])
    }

    pub fn poll_cq(&mut self, qp: usize) -> Option<Cqe> {
        for core in 0..self.engine.core_count() {
            let (ring, head) = self.subring(qp, core);
            let word = |offset| self.region.u32(ring + offset).unwrap();
            if word(RingIndices::TAIL).load(Ordering::Acquire) != head {
                let cqe = self.cqe_at(qp, ring, head);
                word(RingIndices::HEAD).store(head.wrapping_add(1), Ordering::Release);
                self.qps[qp].cq_heads[core] = head.wrapping_add(1);
                return Some(cqe);
            }
        }
        None
    }

    fn cqe_at(&self, qp: usize, ring: usize, index: u32) -> Cqe {
        let entry = (index & (self.qps[qp].cq_depth - 1)) as usize * 64;
        self.region.read(ring + rnic_abi::RING_ENTRIES + entry).unwrap()
    }

    /// Has a QP's CQ go on at `offset` of the region. What was left in the old place, in the order of the sub-rings.
    pub fn resize_cq(&mut self, qp: usize, offset: u64, depth: u32) -> Vec<Cqe> {
        let cq = slot_of(self.qps[qp].qpn);
        let place = rnic_abi::completion_queue_size(depth, self.engine.core_count() as u32);
        assert!(self.region.copy_in(offset as usize, &vec![0; place]));
        for core in 0..self.engine.core_count() {
            let token = self.token();
            let command = Command::ResizeCq {
                cq,
                offset,
                depth,
                token,
            };
            self.engine.submit(core, command);
            self.answer(token);
        }
        let mut left = Vec::new();
        for core in 0..self.engine.core_count() {
            let (ring, mut head) = self.subring(qp, core);
            let tail = self.region.u32(ring + RingIndices::TAIL).unwrap();
            while tail.load(Ordering::Acquire) != head {
                left.push(self.cqe_at(qp, ring, head));
                head = head.wrapping_add(1);
            }
            self.qps[qp].cq_heads[core] = head;
        }
        (self.qps[qp].cq, self.qps[qp].cq_depth) = (offset, depth);
        left
    }

    pub fn wait_cqe(&mut self, qp: usize) -> Cqe {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(cqe) = self.poll_cq(qp) {
                return cqe;
            }
            self.poll();
            if Instant::now() > deadline {
                let state = self.query(qp);
                let counters: Vec<_> = (0..self.engine.core_count())
                    .flat_map(|c| {
                        self.engine
                            .core_status(c)
                            .counters
                            .named()
                            .filter(|c| c.1 > 0)
                            .collect::<Vec<_>>()
                    })
                    .collect();
                panic!("no completion; {state:?} {counters:?}");
            }
            std::thread::yield_now();
        }
    }

    pub fn sge(&self, addr: u64, length: u32) -> Sge {
        Sge {
            addr,
            length,
            lkey: self.key,
        }
    }

    pub fn fill(&self, at: usize, len: usize, seed: u8) -> Vec<u8> {
        let bytes: Vec<u8> = (0..len)
            .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
            .collect();
        assert!(self.data.copy_in(at, &bytes));
        bytes
    }

    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        assert!(self.data.copy_out(at, &mut out));
        out
    }

    /// Removes a QP in the order of a destroy: when this returns it is freed.
    pub fn destroy_qp(&mut self, qp: usize) {
        let (qpn, core) = (self.qps[qp].qpn, self.qps[qp].core);
        self.engine.publisher().remove(Kind::Qp, qpn).unwrap();
        self.engine.commit();
        let token = self.token();
        self.engine.submit(
            core,
            Command::RemoveQp {
                slot: slot_of(qpn),
                token,
            },
        );
        let Message::Removed { found: true, .. } = self.answer(token) else {
            panic!("the core had no such QP")
        };
        let epoch = self.engine.start_grace();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.engine.passed(epoch) {
            assert!(Instant::now() < deadline, "the grace period does not end");
            std::thread::yield_now();
        }
    }
}

fn mapped(last: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last]
}

/// The path from host `from` (on port `from - 1`) to host `to`.
pub fn path(from: u8, to: u8, direct: bool) -> Path {
    Path {
        port: u16::from(from - 1),
        local_ip: mapped(from),
        remote_ip: mapped(to),
        local_mac: [2, 0, 0, 0, 0, from],
        remote_mac: [2, 0, 0, 0, 0, to],
        vlan: None,
        hop_limit: 64,
        traffic_class: 0,
        flow_label: 0,
        udp_source: 0xc000,
        direct,
    }
}

/// Paths of the second host that differ from the right one in an address, in the VLAN, in the port.
pub fn strange_paths() -> [Path; 4] {
    let (right, other) = (path(2, 1, false), path(3, 3, false));
    [
        Path {
            remote_ip: other.remote_ip,
            ..right
        },
        Path {
            local_ip: other.local_ip,
            ..right
        },
        Path {
            vlan: Some(5),
            ..right
        },
        Path { port: 0, ..right },
    ]
}

/// A send WQE with one entry.
pub fn wqe(wr_id: u64, opcode: u8, sge: Sge, remote_addr: u64, rkey: u32) -> Wqe {
    Wqe {
        wr_id,
        opcode,
        flags: rnic_abi::wqe_flags::SIGNALED,
        num_sge: 1,
        units: 1,
        remote_addr,
        rkey,
        sges: [sge, Sge::default()],
        ..Wqe::default()
    }
}
