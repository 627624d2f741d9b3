//! An engine with one driven core, a client's region and memory, and connections whose ends are both on that core.
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use rnic_abi::{Handle, RegionLayout, Sge, Wqe, wqe_flags};
use rnic_engine::{
    CoreConfig, DrivenCore, Engine, EngineConfig, Limits,
    command::{Command, Message, Path, QpChange, Token},
    core::{ClientDoorbells, CoreCounters, CqInit, Idle, QpInit, Receives},
    mem::{ClientMem, FaultCell, MrDescriptor, MrTable},
    port::OpenPort,
    view::{Kind, Leaf, number},
};
use rnic_transport::{Access, Congestion, QpAttr, QpAttrMask, QpState, QpType};

use crate::{
    args::Mode,
    plan::{Operation, Plan},
    queue::{CompletionQueue, WorkQueue},
    report::Account,
};

const PD: u32 = 1;
const KEY: u32 = MrTable::key(1, 1, 0x5a);
const EVERY_RIGHT: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_ATOMIC);
const FIRST_SLOT: u32 = 2;
/// Entries of the initiator's and of the target's CQ are told apart by it.
const CQS: [u32; 2] = [0, 1];
const QKEY: u32 = 0x1111_1111;
/// Address handle from the initiators to the targets.
const AH: u32 = number(1, 1);

struct End {
    slot: u32,
    sq: WorkQueue,
    rq: WorkQueue,
}

struct Connection {
    initiator: End,
    target: End,
    posted: u32,
    received: u32,
}

/// Everything of one run.
pub struct Rig {
    plan: Plan,
    engine: Engine,
    cores: Vec<DrivenCore>,
    region: Arc<ClientMem>,
    layout: RegionLayout,
    data: Arc<ClientMem>,
    connections: Vec<Connection>,
    cqs: [CompletionQueue; 2],
    token: u64,
    /// Connections with a completion, kept for its capacity.
    done: Vec<u32>,
    /// Messages posted.
    posted: u64,
    /// Messages that took a receive.
    arrived: u64,
    /// Messages completed.
    pub messages: u64,
    /// Completions that were errors.
    pub errors: u64,
}

impl Rig {
    /// Starts an engine over the two ports and connects everything.
    pub fn new(plan: Plan, ports: Vec<OpenPort>) -> Result<Self> {
        let slots = FIRST_SLOT + 2 * plan.qps;
        let limits = Limits {
            clients: 1,
            qps: slots,
            cqs: 2,
            srqs: 1,
            mrs: 4,
            ahs: 2,
        };
        let macs = [ports[0].mac, ports[1].mac];
        let config = EngineConfig {
            cores: vec![CoreConfig {
                cpu: None,
                idle: Idle::Spin,
            }],
            limits,
            ports,
        };
        let (mut engine, cores) = Engine::start_driven(config)?;
        let sq_bytes = rnic_abi::work_queue_size(plan.sq_depth()).next_multiple_of(128);
        let rq_bytes = rnic_abi::work_queue_size(plan.rq_depth()).next_multiple_of(128);
        let cq_bytes = rnic_abi::completion_queue_size(plan.cq_depth(), 1).next_multiple_of(4096);
        let qp_bytes = sq_bytes + rq_bytes;
        let layout = RegionLayout::new(slots, 1, 2 * cq_bytes + 2 * plan.qps as usize * qp_bytes);
        let fault = Arc::new(FaultCell::default());
        let (region, _) = ClientMem::create("testpmd-queues", layout.size, fault.clone())?;
        let data_bytes = usize::try_from(2 * plan.side())?.next_multiple_of(4096);
        let (data, _) = ClientMem::create("testpmd-data", data_bytes, fault)?;
        let (region, data) = (Arc::new(region), Arc::new(data));
        let whole = MrDescriptor {
            mem: &data,
            pd: PD,
            access: EVERY_RIGHT,
            iova: 0,
            len: data.len() as u64,
            invalidatable: false,
        };
        ensure!(
            engine.mrs().validate(KEY, &whole),
            "the memory region was refused"
        );
        let (_ours, theirs) = std::os::unix::net::UnixDatagram::pair()?;
        let doorbells = ClientDoorbells::new(region.clone(), &layout, 0, theirs.into())?;
        let cq_at = CQS.map(|cq| layout.queues + cq as usize * cq_bytes);
        let cqs = [
            CompletionQueue::new(&region, cq_at[0], plan.cq_depth())?,
            CompletionQueue::new(&region, cq_at[1], plan.cq_depth())?,
        ];
        engine.submit(
            0,
            Command::AddClient {
                client: 0,
                doorbells,
                token: Token(0),
            },
        );
        for cq in CQS {
            let init = CqInit {
                handle: slots + cq,
                client: 0,
                number: cq,
                region: region.clone(),
                offset: cq_at[cq as usize] as u64,
                depth: plan.cq_depth(),
                subring: 0,
                channel: None,
            };
            let queue = engine.make_cq(init)?;
            let token = Token(0);
            engine.submit(0, Command::AddCq { cq, queue, token });
        }
        let mut rig = Rig {
            plan,
            engine,
            cores,
            region,
            layout,
            data,
            connections: Vec::new(),
            cqs,
            token: 0,
            done: Vec::new(),
            posted: 0,
            arrived: 0,
            messages: 0,
            errors: 0,
        };
        if plan.mode == Mode::UdSend {
            let path = path(FIRST_SLOT, [0, 1], macs);
            let valid = rig.engine.ahs().validate(AH, PD, &path);
            ensure!(valid, "the address handle was refused");
            rig.engine.addresses().set(0, [(path.local_ip, None)]);
            rig.engine.addresses().set(1, [(path.remote_ip, None)]);
        }
        let queues = layout.queues + 2 * cq_bytes;
        for connection in 0..plan.qps {
            let mut make = |end: u32| -> Result<End> {
                let index = 2 * connection + end;
                let at = queues + index as usize * qp_bytes;
                rig.make_qp(FIRST_SLOT + index, end, [at, at + sq_bytes])
            };
            let (initiator, target) = (make(0)?, make(1)?);
            if plan.mode == Mode::UdSend {
                rig.activate(&initiator)?;
                rig.activate(&target)?;
            } else {
                rig.connect(&initiator, &target, [0, 1], macs)?;
                rig.connect(&target, &initiator, [1, 0], macs)?;
            }
            rig.connections.push(Connection {
                initiator,
                target,
                posted: 0,
                received: 0,
            });
        }
        rig.engine.commit();
        rig.settle()?;
        Ok(rig)
    }

    fn token(&mut self) -> Token {
        self.token += 1;
        Token(self.token)
    }

    /// Lets the core carry out what it was told, and looks at the results.
    fn settle(&mut self) -> Result<()> {
        let mut refused = None;
        for _ in 0..8 {
            self.cores[0].pass();
            self.engine.poll(|_, message| match message {
                Message::Modified { result, .. } if !matches!(result, Some(Ok(_))) => refused = Some(result),
                _ => {}
            });
        }
        match refused {
            Some(result) => bail!("a QP was not connected: {result:?}"),
            None => Ok(()),
        }
    }

    fn make_qp(&mut self, slot: u32, end: u32, [sq, rq]: [usize; 2]) -> Result<End> {
        let plan = self.plan;
        let end_of = End {
            slot,
            sq: WorkQueue::new(&self.region, sq, plan.sq_depth())?,
            rq: WorkQueue::new(&self.region, rq, plan.rq_depth())?,
        };
        let init = QpInit {
            qpn: number(slot, 1),
            handle: Handle::new(slot, 1).0,
            client: 0,
            pd: PD,
            send_cq: CQS[end as usize],
            recv_cq: CQS[end as usize],
            region: Some(self.region.clone()),
            sq_offset: sq as u64,
            sq_depth: plan.sq_depth(),
            receives: Receives::Own {
                offset: rq as u64,
                depth: plan.rq_depth(),
            },
            sig_all: false,
            qp_type: match plan.mode {
                Mode::UdSend => QpType::Ud,
                _ => QpType::Rc,
            },
            port: end as u16,
            mtu: plan.mtu,
            congestion: Congestion::Off,
            xrcd: 0,
        };
        let qp = self.engine.make_qp(init)?;
        let (token, change) = (self.token(), None);
        self.engine.submit(
            0,
            Command::AddQp {
                slot,
                qp,
                change,
                token,
            },
        );
        let qpn = number(slot, 1);
        self.engine
            .publisher()
            .add(Kind::Qp, qpn, Leaf::new(qpn, 0, slot));
        Ok(end_of)
    }

    /// Brings a UD QP to RTS.
    fn activate(&mut self, me: &End) -> Result<()> {
        use QpAttrMask as M;
        let steps = [
            (QpState::Init, M::STATE | M::PKEY_INDEX | M::PORT | M::QKEY),
            (QpState::Rtr, M::STATE),
            (QpState::Rts, M::STATE | M::SQ_PSN),
        ];
        for (state, mask) in steps {
            let attr = QpAttr {
                state,
                port: 1,
                qkey: QKEY,
                ..QpAttr::default()
            };
            self.modify(me, attr, mask, None);
        }
        self.settle()
    }

    fn modify(&mut self, me: &End, attr: QpAttr, mask: QpAttrMask, path: Option<Path>) {
        let change = Box::new(QpChange { attr, mask, path });
        let (slot, token) = (me.slot, self.token());
        self.engine.submit(0, Command::ModifyQp { slot, change, token });
    }

    fn connect(&mut self, me: &End, peer: &End, ends: [u16; 2], macs: [[u8; 6]; 2]) -> Result<()> {
        let path = path(me.slot, ends, macs);
        let mut attr = QpAttr {
            state: QpState::Init,
            port: 1,
            access: EVERY_RIGHT,
            path_mtu: self.plan.mtu,
            dest_qpn: number(peer.slot, 1),
            max_rd_atomic: 16,
            max_dest_rd_atomic: 16,
            min_rnr_timer: 1,
            timeout: self.plan.timeout,
            retry_cnt: 7,
            rnr_retry: 7,
            ..QpAttr::default()
        };
        use QpAttrMask as M;
        let steps = [
            (
                QpState::Init,
                M::STATE | M::PKEY_INDEX | M::PORT | M::ACCESS_FLAGS,
                None,
            ),
            (
                QpState::Rtr,
                M::STATE
                    | M::AV
                    | M::PATH_MTU
                    | M::DEST_QPN
                    | M::RQ_PSN
                    | M::MAX_DEST_RD_ATOMIC
                    | M::MIN_RNR_TIMER,
                Some(path),
            ),
            (
                QpState::Rts,
                M::STATE | M::SQ_PSN | M::TIMEOUT | M::RETRY_CNT | M::RNR_RETRY | M::MAX_QP_RD_ATOMIC,
                None,
            ),
        ];
        for (state, mask, path) in steps {
            attr.state = state;
            self.modify(me, attr, mask, path);
        }
        self.settle()
    }

    /// Fills what is read from, and clears what is written to.
    pub fn fill(&self) {
        let plan = self.plan;
        for connection in 0..plan.qps {
            for index in 0..plan.buffers {
                for target in [false, true] {
                    let source = match plan.operation(index) {
                        Operation::Write | Operation::Send => !target,
                        Operation::Read => target,
                        Operation::FetchAdd => false,
                    };
                    let bytes: Vec<u8> = match source {
                        true => pattern(connection, index).take(plan.size as usize).collect(),
                        false => vec![0; plan.size as usize],
                    };
                    self.data
                        .copy_in(plan.buffer(connection, index, target) as usize, &bytes);
                }
            }
        }
    }

    /// Whether every byte is where it belongs.
    pub fn verify(&self) -> bool {
        let plan = self.plan;
        let mut bytes = vec![0; plan.size as usize];
        (0..plan.qps).all(|connection| {
            (0..plan.buffers).all(|index| {
                let operation = plan.operation(index);
                let at = plan.buffer(connection, index, operation != Operation::Read) as usize;
                let expected: Vec<u8> = match operation {
                    // One word each, counted up by every message.
                    Operation::FetchAdd if index != plan.counter() => return true,
                    Operation::FetchAdd => {
                        let every = if plan.mode == Mode::Mixed { 4 } else { 1 };
                        let adds = u64::from(self.connections[connection as usize].posted) / every;
                        adds.to_le_bytes().into()
                    }
                    _ => pattern(connection, index).take(bytes.len()).collect(),
                };
                let found = &mut bytes[..expected.len()];
                self.data.copy_out(at, found) && *found == expected
            })
        })
    }

    /// Posts what may be in flight on every connection, in the order of a random permutation.
    pub fn begin(&mut self) {
        let count = self.connections.len();
        let mut order: Vec<usize> = (0..count).collect();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for i in (1..count).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(i, (state % (i as u64 + 1)) as usize);
        }
        for &connection in &order {
            if self.plan.receives() {
                self.post_receives(connection, self.plan.rq_depth());
            }
            for _ in 0..self.plan.outstanding / self.plan.signal_every {
                self.post(connection);
            }
        }
    }

    /// One turn: a pass of the core; then what has completed is posted again, unless this is the end.
    #[inline]
    pub fn turn(&mut self, again: bool) {
        self.cores[0].pass();
        let mut done = std::mem::take(&mut self.done);
        for side in CQS {
            self.cqs[side as usize].poll(|cqe| match cqe.status {
                0 => done.push(cqe.wr_id as u32),
                _ => self.errors += 1,
            });
            for connection in done.drain(..) {
                let connection = connection as usize;
                if side == CQS[0] {
                    self.messages += u64::from(self.plan.signal_every);
                    if again {
                        self.post(connection);
                    }
                } else {
                    self.received(connection);
                }
            }
        }
        self.done = done;
    }

    /// A message came at the target.
    #[inline]
    fn received(&mut self, connection: usize) {
        let state = &mut self.connections[connection];
        self.arrived += 1;
        state.received += 1;
        if state.received == self.plan.signal_every {
            state.received = 0;
            self.post_receives(connection, self.plan.signal_every);
        }
    }

    /// Posts a batch with one doorbell; its last request is signalled.
    #[inline]
    fn post(&mut self, connection: usize) {
        let plan = self.plan;
        self.posted += u64::from(plan.signal_every);
        let state = &mut self.connections[connection];
        for i in 0..plan.signal_every {
            let index = state.posted;
            state.posted = index.wrapping_add(1);
            let mut wqe = Wqe {
                wr_id: connection as u64,
                opcode: match plan.operation(index) {
                    Operation::Write => 0,
                    Operation::Send => 2,
                    Operation::Read => 4,
                    Operation::FetchAdd => 6,
                },
                flags: if i + 1 == plan.signal_every {
                    wqe_flags::SIGNALED
                } else {
                    0
                },
                num_sge: 1,
                units: 1,
                remote_addr: plan.buffer(connection as u32, index, true),
                rkey: KEY,
                ..Wqe::default()
            };
            wqe.sges[0] = Sge {
                addr: plan.buffer(connection as u32, index, false),
                length: plan.size,
                lkey: KEY,
            };
            if plan.mode == Mode::UdSend {
                wqe = wqe.to(AH, number(state.target.slot, 1), QKEY);
            }
            if plan.operation(index) == Operation::FetchAdd {
                wqe.remote_addr = plan.buffer(connection as u32, plan.counter(), true);
                wqe.sges[0].length = 8;
                wqe.sges[1] = rnic_abi::AtomicOperands {
                    compare_add: 1,
                    swap: 0,
                }
                .into();
            }
            state.initiator.sq.push(&wqe);
        }
        if state.initiator.sq.publish() {
            let slot = Handle::new(state.initiator.slot, 1).slot();
            self.ring(slot);
        }
    }

    fn post_receives(&mut self, connection: usize, count: u32) {
        let plan = self.plan;
        let state = &mut self.connections[connection];
        for _ in 0..count {
            let index = plan.receiver(state.target.rq.posted());
            let mut wqe = Wqe {
                wr_id: connection as u64,
                num_sge: 1,
                units: 1,
                ..Wqe::default()
            };
            wqe.sges[0] = Sge {
                addr: plan.buffer(connection as u32, index, true) - plan.headroom(),
                length: plan.size + plan.headroom() as u32,
                lkey: KEY,
            };
            state.target.rq.push(&wqe);
        }
        state.target.rq.publish_receives();
    }

    fn ring(&self, slot: u32) {
        let doorbell = &self.layout.doorbell;
        let block = self.layout.doorbells;
        let level0 = self
            .region
            .u64(block + doorbell.level0() + slot as usize / 64 * 8);
        let level1 = self
            .region
            .u64(block + rnic_abi::DoorbellLayout::LEVEL1 + slot as usize / 4096 * 8);
        if let (Some(level0), Some(level1), Some(sleeping)) = (level0, level1, self.region.u32(block)) {
            // A driven core does not sleep.
            let _ = rnic_abi::protocol::ring_doorbell(&level0, &level1, slot, &sleeping);
        }
    }

    /// Messages that were posted and are not done.
    pub fn unfinished(&self) -> u64 {
        self.posted.saturating_sub(self.messages)
    }

    /// Whether everything that was posted is done.
    pub fn is_drained(&self) -> bool {
        self.unfinished() == 0
    }

    /// Whether every datagram has arrived.
    pub fn has_all(&self) -> bool {
        self.plan.mode != Mode::UdSend || self.arrived >= self.posted
    }

    /// Counts datagrams that have not arrived as errors.
    pub fn count_lost(&mut self) {
        if self.plan.mode == Mode::UdSend {
            self.errors += self.posted.saturating_sub(self.arrived);
        }
    }

    /// Where the core's cycles went; `None` where the build does not look.
    pub fn spent(&self) -> Option<Account> {
        self.cores[0].spent()
    }

    /// The buffers of both sides.
    pub fn data(&self) -> &ClientMem {
        &self.data
    }

    pub fn counters(&self) -> CoreCounters {
        self.cores[0].counters()
    }

    /// Ends the engine.
    pub fn stop(self) {
        let Rig { engine, cores, .. } = self;
        engine.stop_driven(cores);
    }
}

/// The path from one host to the other, for the QP in a slot.
fn path(slot: u32, [from, to]: [u16; 2], macs: [[u8; 6]; 2]) -> Path {
    let address = |port: u16| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, port as u8 + 1];
    Path {
        port: from,
        local_ip: address(from),
        remote_ip: address(to),
        local_mac: macs[usize::from(from)],
        remote_mac: macs[usize::from(to)],
        vlan: None,
        hop_limit: 64,
        traffic_class: 0,
        flow_label: 0,
        udp_source: 0xc000 | (slot & 0x3fff) as u16,
        direct: false,
    }
}

fn pattern(connection: u32, index: u32) -> impl Iterator<Item = u8> {
    let seed = connection
        .wrapping_mul(31)
        .wrapping_add(index.wrapping_mul(7))
        .wrapping_add(1);
    (0u32..).map(move |i| (seed.wrapping_add(i.wrapping_mul(13)) >> (i & 3)) as u8)
}
