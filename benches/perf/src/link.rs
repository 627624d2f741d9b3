//! The QPs and buffers of one side, connected to the other.
use anyhow::{Context as _, Result, ensure};
use rnic::exchange::Exchange;
use rnic::{
    Access, AddressVector, Ah, Batch, ConnectOptions, Context, Cq, Endpoint, Mr, MrSlice, Mtu, Qp, QpConfig,
    RemoteAddr, RemoteMr, Srq, Wr, op,
};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

use crate::args::{Args, AtomicType, Connection, Op, Plan};
use crate::pattern::Pattern;
use crate::run::Run;

/// The Q_Key of UD QPs.
const QKEY: u32 = 0x1111_1111;

/// One side of a test.
pub struct Link {
    pub qps: Vec<Qp>,
    /// Where the datagrams of each go.
    targets: Vec<(Ah, u32)>,
    /// All queues complete here.
    pub cq: Cq,
    /// What all QPs draw their receives from, if they share them.
    pub srq: Option<Srq>,
    /// First QP's.
    pub local: Endpoint,
    pub remote: Endpoint,
    pub mtu: Mtu,
    /// What this side sends or WRITEs from and READs into.
    own: Mr,
    /// What this side receives into and the peer WRITEs to and READs from.
    open: Mr,
    /// The peer's `open`.
    peer: RemoteMr,
    /// Bytes of either for a QP.
    area: usize,
}

/// What the two sides tell each other.
#[derive(Serialize, Deserialize)]
struct Hello {
    endpoints: Vec<Endpoint>,
    open: RemoteMr,
}

impl Link {
    /// Makes QPs and buffers for the plan and connects them to the peer's.
    pub fn open(args: &Args, device: &str, plan: &Plan, peer: &mut Exchange) -> Result<Link> {
        let context = Context::open(&args.socket, device)?;
        let runs: Vec<Run> = plan.sizes.iter().map(|size| Run::new(plan, *size)).collect();
        let area = runs.iter().map(Run::bytes).max().context("no sizes to measure")?;
        let receives = runs.iter().map(|run| run.receives).max().unwrap_or(0) as u32;
        let total = area
            .checked_mul(plan.qps as usize)
            .context("too much memory: fewer QPs or smaller messages")?;

        let pd = context.alloc_pd()?;
        let cq = context.create_cq((plan.tx_depth + receives) * plan.qps)?;
        let own = pd.alloc_mr(total, Access::LOCAL_WRITE)?;
        let open = pd.alloc_mr(
            total,
            Access::LOCAL_WRITE | Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC,
        )?;
        let options = ConnectOptions {
            gid_index: args.gid_index,
            mtu: args.mtu,
            timeout: args.timeout,
            selective_retransmit: plan.selective,
            ..ConnectOptions::default()
        };
        let srq = plan
            .use_srq
            .then(|| pd.create_srq(receives * plan.qps, 1))
            .transpose()?;
        let mut config = QpConfig::new(&cq, &cq)
            .max_send_wr(plan.tx_depth)
            .max_recv_wr(receives)
            .qp_type(plan.connection.qp_type());
        if let Some(srq) = &srq {
            config = config.srq(srq);
        }
        let qps = (0..plan.qps)
            .map(|_| pd.create_qp(config.clone()).context("making a QP"))
            .collect::<Result<Vec<_>>>()?;
        let ours = Hello {
            endpoints: qps
                .iter()
                .map(|qp| qp.endpoint(&options))
                .collect::<Result<_, _>>()?,
            open: open.remote(),
        };
        let theirs = peer.swap(&ours).context("exchanging endpoints")?;
        ensure!(
            theirs.endpoints.len() == qps.len(),
            "the peer has {} QPs",
            theirs.endpoints.len()
        );
        let mut targets = Vec::new();
        for (qp, endpoint) in qps.iter().zip(&theirs.endpoints) {
            if plan.connection == Connection::Ud {
                qp.activate(QKEY)?;
                let vector = AddressVector::to(endpoint.gid).gid_index(args.gid_index);
                targets.push((pd.create_ah(&vector)?, endpoint.qpn));
            } else {
                qp.connect(endpoint, &options)?;
            }
        }
        let mtu = ours.endpoints[0].mtu.min(theirs.endpoints[0].mtu);
        ensure!(
            plan.connection != Connection::Ud || plan.max_size() <= u64::from(mtu.bytes()),
            "a datagram of {} bytes is longer than the path MTU, {mtu}",
            plan.max_size()
        );
        let link = Link {
            targets,
            cq,
            srq,
            local: ours.endpoints[0],
            remote: theirs.endpoints[0],
            mtu,
            own,
            open,
            peer: theirs.open,
            area,
            qps,
        };
        if let Some(run) = runs.first() {
            for qp in 0..link.qps.len() {
                link.receive(run, qp, 0, run.receives)?;
            }
        }
        Ok(link)
    }

    /// A SEND of QP `qp` in its batch.
    pub fn send<'b, 'q>(&self, batch: &'b mut Batch<'q>, qp: usize, local: MrSlice) -> Wr<'b, 'q, op::Send> {
        match self.targets.get(qp) {
            Some((ah, qpn)) => batch.send_to(local, ah, *qpn, QKEY),
            None => batch.send(local),
        }
    }

    /// What QP `qp` sends from and READs into.
    pub fn own(&self, qp: usize) -> MrSlice {
        self.own.slice(qp * self.area..(qp + 1) * self.area)
    }

    /// Which of the QPs this is.
    pub fn index_of(&self, qpn: u32) -> Result<usize> {
        let found = self.qps.iter().position(|qp| qp.qpn() == qpn);
        found.with_context(|| format!("a completion of QP {qpn:#x}, which is not ours"))
    }

    /// What QP `qp` receives into and its peer reaches.
    pub fn open_to_peer(&self, qp: usize) -> MrSlice {
        self.open.slice(qp * self.area..(qp + 1) * self.area)
    }

    /// The place of message `n` at the peer.
    pub fn remote(&self, run: &Run, qp: usize, n: u64) -> RemoteAddr {
        self.peer.at((qp * self.area + run.place(n)) as u64)
    }

    /// Appends atomic number `n` of QP `qp`: it counts the QP's word at the peer from `n` to `n + 1`.
    pub fn atomic<'b, 'q>(
        &self,
        run: &Run,
        batch: &'b mut Batch<'q>,
        qp: usize,
        n: u64,
    ) -> Wr<'b, 'q, op::Atomic> {
        let local = self.own(qp).slice(run.place(n)..run.place(n) + run.size);
        let word = self.peer.at((qp * self.area) as u64);
        match run.atomic_type {
            AtomicType::FetchAndAdd => batch.fetch_add(local, word, 1),
            AtomicType::CmpAndSwap => batch.compare_swap(local, word, n, n + 1),
        }
    }

    /// What atomic number `n` of QP `qp` found.
    pub fn found(&self, run: &Run, qp: usize, n: u64) -> u64 {
        self.own(qp).load_u64(run.place(n), Ordering::Acquire)
    }

    /// What the peer's atomics have made of the word of QP `qp`.
    pub fn counted(&self, qp: usize) -> u64 {
        self.open_to_peer(qp).load_u64(0, Ordering::Acquire)
    }

    /// Posts `count` receives for QP `qp`, or whoever shares them, of which the first is the `from`-th ever.
    pub fn receive(&self, run: &Run, qp: usize, from: u64, count: u64) -> rnic::Result<()> {
        let area = self.open_to_peer(qp);
        let receives = (from..from + count).map(|n| {
            let place = run.receive_place(n);
            (area.slice(place..place + run.stride()), tag(qp, n))
        });
        match &self.srq {
            Some(srq) => srq.post_recv(|batch| {
                receives.for_each(|(local, tag)| {
                    batch.recv(local).wr_id(tag);
                });
            }),
            None => self.qps[qp].post_recv(|batch| {
                receives.for_each(|(local, tag)| {
                    batch.recv(local).wr_id(tag);
                });
            }),
        }?;
        Ok(())
    }

    /// Fills what the client sends, or clears what it READs into.
    pub fn prepare_client(&self, run: &Run) {
        for qp in 0..self.qps.len() {
            let own = self.own(qp);
            match run.op {
                Op::Read | Op::Atomic => own.write_at(0, &vec![0; run.slots as usize * run.size]),
                Op::Send | Op::Write => Pattern::new(run.size).fill(&own, run.slots),
            }
        }
        self.clear_flag(run);
    }

    /// Fills what the client READs, or clears what it WRITEs to or counts with.
    pub fn prepare_server(&self, run: &Run) {
        for qp in 0..self.qps.len() {
            let pattern = Pattern::new(run.size);
            pattern.fill(&self.own(qp), run.slots);
            match run.op {
                Op::Read => pattern.fill(&self.open_to_peer(qp), run.slots),
                Op::Write => self
                    .open_to_peer(qp)
                    .write_at(0, &vec![0; run.slots as usize * run.size]),
                Op::Atomic => self.open_to_peer(qp).store_u64(0, 0, Ordering::Release),
                Op::Send => {}
            }
        }
        self.clear_flag(run);
    }

    /// Clears the byte that tells the arrival of a WRITE in latency tests: the last of the first place.
    fn clear_flag(&self, run: &Run) {
        if run.op == Op::Write {
            self.open_to_peer(0).write_at(run.size - 1, &[0]);
        }
    }
}

/// A work request's number: QP and message.
pub fn tag(qp: usize, n: u64) -> u64 {
    (qp as u64) << 48 | n
}

/// QP and message of a work request's number.
pub fn untag(wr_id: u64) -> (usize, u64) {
    ((wr_id >> 48) as usize, wr_id & ((1 << 48) - 1))
}
