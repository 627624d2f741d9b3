//! An engine with driven cores, a client's region and memory, and connections whose ends are both on one core.
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use rnic_abi::{Handle, RegionLayout};
use rnic_engine::{
    CoreConfig, DrivenCore, Engine, EngineConfig, Limits,
    command::{Command, Message, Path, QpChange, Token},
    core::{ClientDoorbells, CqInit, Idle, QpInit, Receives},
    mem::{ClientMem, FaultCell, MrDescriptor},
    port::OpenPort,
    view::{Kind, Leaf, Publisher},
};
use rnic_transport::{Access, Congestion, QpAttr, QpAttrMask, QpState, QpType};

use crate::{
    args::Mode,
    lane::{AH, CQS, Connection, End, KEY, Lane, Memory, QKEY, qpn},
    plan::Plan,
    queue::WorkQueue,
};

const PD: u32 = 1;
const EVERY_RIGHT: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_ATOMIC);
const FIRST_SLOT: u32 = 2;

/// Everything of one run.
pub struct Rig {
    plan: Plan,
    engine: Engine,
    memory: Memory,
    /// The cores with their connections.
    pub lanes: Vec<Lane>,
    macs: [[u8; 6]; 2],
    token: u64,
}

/// How the region is divided.
struct Sizes {
    /// Slots of QPs, those that no connection has among them.
    slots: u32,
    sq: usize,
    rq: usize,
    cq: usize,
}

impl Sizes {
    fn of(plan: &Plan, slots: u32) -> Self {
        Sizes {
            slots,
            sq: rnic_abi::work_queue_size(plan.sq_depth()).next_multiple_of(128),
            rq: rnic_abi::work_queue_size(plan.rq_depth()).next_multiple_of(128),
            cq: rnic_abi::completion_queue_size(plan.cq_depth(), plan.cores).next_multiple_of(4096),
        }
    }

    fn qp(&self) -> usize {
        self.sq + self.rq
    }
}

impl Rig {
    /// Starts an engine over the two ports and connects everything.
    pub fn new(plan: Plan, ports: Vec<OpenPort>) -> Result<Self> {
        let slots = slots(&plan);
        let last = slots.iter().flatten().max();
        let sizes = Sizes::of(&plan, last.map_or(FIRST_SLOT, |slot| slot + 1));
        let limits = Limits {
            clients: 1,
            qps: sizes.slots,
            cqs: 2,
            srqs: 1,
            mrs: 4,
            ahs: 2,
        };
        let macs = [ports[0].mac, ports[1].mac];
        let core = CoreConfig {
            cpu: None,
            idle: Idle::Spin,
        };
        let config = EngineConfig {
            cores: vec![core; plan.cores as usize],
            limits,
            ports,
        };
        let (engine, cores) = Engine::start_driven(config)?;
        let memory = memory(&plan, &sizes, &engine)?;
        let lanes = (0..)
            .zip(cores)
            .map(|(index, core): (u32, DrivenCore)| Lane::new(plan, index, core, memory.clone()));
        let mut rig = Rig {
            lanes: lanes.collect::<Result<_>>()?,
            plan,
            engine,
            memory,
            macs,
            token: 0,
        };
        for core in 0..plan.cores {
            rig.add_client(core, &sizes)?;
        }
        if plan.mode == Mode::UdSend {
            let path = path(FIRST_SLOT, [0, 1], macs);
            let valid = rig.engine.ahs().validate(AH, PD, &path);
            ensure!(valid, "the address handle was refused");
            rig.engine.addresses().set(0, [(path.local_ip, None)]);
            rig.engine.addresses().set(1, [(path.remote_ip, None)]);
        }
        for (core, mut slots) in (0..).zip(slots.into_iter().map(Vec::into_iter)) {
            for connection in plan.connections(core) {
                let mut make = |end: u32| -> Result<End> {
                    let slot = slots.next().context("a QP without a slot")?;
                    rig.make_qp(core, slot, end, 2 * connection + end, &sizes)
                };
                let (initiator, target) = (make(0)?, make(1)?);
                rig.join(core, &initiator, &target)?;
                rig.lanes[core as usize].add(Connection::new(initiator, target));
            }
        }
        rig.engine.commit();
        rig.settle()?;
        Ok(rig)
    }

    /// Makes a core known to the client: its doorbells, and its parts of the CQs.
    fn add_client(&mut self, core: u32, sizes: &Sizes) -> Result<()> {
        let Memory {
            region, layout, cqs, ..
        } = &self.memory;
        let (_ours, theirs) = std::os::unix::net::UnixDatagram::pair()?;
        let doorbells = ClientDoorbells::new(region.clone(), layout, core, theirs.into())?;
        let (client, token) = (0, Token(0));
        let command = Command::AddClient {
            client,
            doorbells,
            token,
        };
        self.engine.submit(core as usize, command);
        for cq in CQS {
            let init = CqInit {
                handle: sizes.slots + cq,
                client: 0,
                number: cq,
                region: region.clone(),
                offset: cqs[cq as usize] as u64,
                depth: self.plan.cq_depth(),
                subring: core,
                channel: None,
            };
            let queue = self.engine.make_cq(init)?;
            self.engine
                .submit(core as usize, Command::AddCq { cq, queue, token });
        }
        Ok(())
    }

    fn token(&mut self) -> Token {
        self.token += 1;
        Token(self.token)
    }

    /// Lets the cores carry out what they were told, and looks at the results.
    fn settle(&mut self) -> Result<()> {
        let mut refused = None;
        for _ in 0..8 {
            self.lanes.iter_mut().for_each(Lane::pass);
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

    /// A QP of a core, whose queues are the region's number `index`.
    fn make_qp(&mut self, core: u32, slot: u32, end: u32, index: u32, sizes: &Sizes) -> Result<End> {
        let plan = self.plan;
        let region = &self.memory.region;
        let sq = self.memory.layout.queues + 2 * sizes.cq + index as usize * sizes.qp();
        let rq = sq + sizes.sq;
        let end_of = End {
            slot,
            sq: WorkQueue::new(region, sq, plan.sq_depth())?,
            rq: WorkQueue::new(region, rq, plan.rq_depth())?,
        };
        let init = QpInit {
            qpn: qpn(slot),
            handle: Handle::new(slot, 1).0,
            client: 0,
            pd: PD,
            send_cq: CQS[end as usize],
            recv_cq: CQS[end as usize],
            region: Some(region.clone()),
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
        let command = Command::AddQp {
            slot,
            qp,
            change,
            token,
        };
        self.engine.submit(core as usize, command);
        let leaf = Leaf::new(qpn(slot), core as u16, slot);
        self.engine.publisher().add(Kind::Qp, qpn(slot), leaf);
        Ok(end_of)
    }

    /// Joins the two ends of a connection.
    fn join(&mut self, core: u32, initiator: &End, target: &End) -> Result<()> {
        if self.plan.mode == Mode::UdSend {
            self.activate(core, initiator)?;
            return self.activate(core, target);
        }
        self.connect(core, initiator, target, [0, 1])?;
        self.connect(core, target, initiator, [1, 0])
    }

    /// Brings a UD QP to RTS.
    fn activate(&mut self, core: u32, me: &End) -> Result<()> {
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
            self.modify(core, me, attr, mask, None);
        }
        self.settle()
    }

    fn modify(&mut self, core: u32, me: &End, attr: QpAttr, mask: QpAttrMask, path: Option<Path>) {
        let change = Box::new(QpChange { attr, mask, path });
        let (slot, token) = (me.slot, self.token());
        self.engine
            .submit(core as usize, Command::ModifyQp { slot, change, token });
    }

    fn connect(&mut self, core: u32, me: &End, peer: &End, ends: [u16; 2]) -> Result<()> {
        let path = path(me.slot, ends, self.macs);
        let mut attr = QpAttr {
            state: QpState::Init,
            port: 1,
            access: EVERY_RIGHT,
            path_mtu: self.plan.mtu,
            dest_qpn: qpn(peer.slot),
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
            self.modify(core, me, attr, mask, path);
        }
        self.settle()
    }

    /// The buffers of both sides.
    pub fn data(&self) -> &ClientMem {
        &self.memory.data
    }

    /// Ends the engine.
    pub fn stop(self) {
        let cores = self.lanes.into_iter().map(Lane::into_core).collect();
        self.engine.stop_driven(cores);
    }
}

/// The slots of the QPs of each core: the first that the engine spreads to it.
fn slots(plan: &Plan) -> Vec<Vec<u32>> {
    let cores = plan.cores as usize;
    let mut slots = vec![Vec::new(); cores];
    let mut missing = 2 * plan.qps;
    let mut slot = FIRST_SLOT;
    while missing > 0 {
        let core = Publisher::spread(qpn(slot), cores);
        let own = &mut slots[usize::from(core)];
        if own.len() < 2 * plan.connections(u32::from(core)).len() {
            own.push(slot);
            missing -= 1;
        }
        slot += 1;
    }
    slots
}

/// The client's region, with all queues, and the data of both sides, which the engine knows.
fn memory(plan: &Plan, sizes: &Sizes, engine: &Engine) -> Result<Memory> {
    let queues = 2 * sizes.cq + 2 * plan.qps as usize * sizes.qp();
    let layout = RegionLayout::new(sizes.slots, plan.cores, queues);
    let fault = Arc::new(FaultCell::default());
    let (region, _) = ClientMem::create("testpmd-queues", layout.size, fault.clone())?;
    let data_bytes = usize::try_from(2 * plan.side())?.next_multiple_of(4096);
    let (data, _) = ClientMem::create("testpmd-data", data_bytes, fault)?;
    let data = Arc::new(data);
    let whole = MrDescriptor {
        mem: &data,
        pd: PD,
        access: EVERY_RIGHT,
        iova: 0,
        len: data_bytes as u64,
        invalidatable: false,
    };
    ensure!(
        engine.mrs().validate(KEY, &whole),
        "the memory region was refused"
    );
    Ok(Memory {
        data,
        region: Arc::new(region),
        cqs: CQS.map(|cq| layout.queues + cq as usize * sizes.cq),
        layout,
    })
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
