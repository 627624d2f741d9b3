//! Our end: the client library on a device of `rnicd`.
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rnic::{
    Access, AddressVector, Ah, Completion, ConnectOptions, Context, Cq, Endpoint, Mr, Mtu, Pd, Qp, QpConfig,
    QpType, RemoteMr,
};
use rnic_tests::Appliance;
use rnic_tests::probe::{Op, Rng, cut};

use crate::end::{Atomic, AtomicWr, End, Image, QKEY, RecvWr, Resources, SendWr, Service, TIMEOUT};

/// A client of `rnicd`.
#[derive(Debug)]
pub struct Ours {
    context: Context,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    // In the order in which they are dropped.
    qp: Qp,
    memory: Mr,
    cq: Cq,
    pd: Pd,
    options: ConnectOptions,
    /// Where datagrams go: the path, and the QP.
    to: Option<(Ah, u32)>,
}

impl Ours {
    /// A client of this appliance's only port.
    pub fn new(appliance: &Appliance) -> Ours {
        Ours {
            context: appliance.open("rnic0"),
            open: None,
        }
    }

    fn get(&self) -> Result<&Open> {
        self.open.as_ref().context("no QP has been made")
    }
}

impl End for Ours {
    fn name(&self) -> &'static str {
        "rnic"
    }

    fn open(&mut self, resources: &Resources) -> Result<(Endpoint, RemoteMr)> {
        self.close()?;
        let pd = self.context.alloc_pd()?;
        let cq = self.context.create_cq(2 * resources.depth)?;
        let every = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        let memory = pd.alloc_mr(resources.memory, every)?;
        let qp_type = match resources.service {
            Service::Rc => QpType::Rc,
            Service::Uc => QpType::Uc,
            Service::Ud => QpType::Ud,
        };
        let config = QpConfig::new(&cq, &cq)
            .qp_type(qp_type)
            .max_send_wr(resources.depth)
            .max_recv_wr(resources.depth)
            .max_sge(3);
        let config = match resources.shared {
            true => config.srq(&pd.create_srq(resources.depth, 3)?),
            false => config,
        };
        let qp = pd.create_qp(config)?;
        let options = ConnectOptions {
            gid_index: resources.family.our_gid_index(),
            timeout: TIMEOUT,
            ..ConnectOptions::default()
        };
        if qp_type == QpType::Ud {
            qp.activate(QKEY)?;
        } else {
            qp.init(&options)?;
        }
        let answer = (qp.endpoint(&options)?, memory.remote());
        self.open = Some(Open {
            qp,
            memory,
            cq,
            pd,
            options,
            to: None,
        });
        Ok(answer)
    }

    fn connect(&mut self, peer: &Endpoint, mtu: Mtu) -> Result<()> {
        let open = self.open.as_mut().context("no QP has been made")?;
        let Open { qp, options, .. } = &*open;
        if qp.qp_type() == QpType::Ud {
            let path = AddressVector::to(peer.gid).gid_index(options.gid_index);
            open.to = Some((open.pd.create_ah(&path)?, peer.qpn));
            return Ok(());
        }
        let options = ConnectOptions {
            mtu: Some(mtu),
            ..*options
        };
        Ok(qp.connect(peer, &options)?)
    }

    fn fill(&mut self, images: &[Image]) -> Result<()> {
        let memory = &self.get()?.memory;
        for image in images {
            image.slot.fill(
                memory,
                image.misaligned,
                &Rng::new(&[image.seed]).bytes(image.len),
            );
        }
        Ok(())
    }

    fn check(&mut self, images: &[Image]) -> Result<Vec<Result<(), String>>> {
        let memory = &self.get()?.memory;
        let compare = |image: &Image| {
            let data = Rng::new(&[image.seed]).bytes(image.len);
            image.slot.compare(memory, image.misaligned, &data)
        };
        Ok(images.iter().map(compare).collect())
    }

    fn post_recv(&mut self, list: &[RecvWr]) -> Result<()> {
        let Open { qp, memory, .. } = self.get()?;
        if let Some(srq) = qp.srq() {
            srq.post_recv(|batch| {
                for RecvWr { wr_id, local } in list {
                    batch
                        .recv(cut(memory, local.offset, local.len, local.parts))
                        .wr_id(*wr_id);
                }
            })?;
            return Ok(());
        }
        qp.post_recv(|batch| {
            for RecvWr { wr_id, local } in list {
                batch
                    .recv(cut(memory, local.offset, local.len, local.parts))
                    .wr_id(*wr_id);
            }
        })?;
        Ok(())
    }

    fn post_send(&mut self, list: &[SendWr]) -> Result<()> {
        let Open { qp, memory, to, .. } = self.get()?;
        qp.post(|batch| {
            for wr in list {
                let local = cut(memory, wr.local.offset, wr.local.len, wr.local.parts);
                if let Some((ah, qpn)) = to {
                    let datagram = batch.send_to(local, ah, *qpn, QKEY).wr_id(wr.wr_id).signaled();
                    if wr.op == Op::SendImm {
                        datagram.imm(wr.imm);
                    }
                    continue;
                }
                match wr.op {
                    Op::Send => drop(batch.send(local).wr_id(wr.wr_id).signaled()),
                    Op::SendImm => drop(batch.send(local).imm(wr.imm).wr_id(wr.wr_id).signaled()),
                    Op::Write => drop(batch.write(local, wr.remote).wr_id(wr.wr_id).signaled()),
                    Op::WriteImm => drop(
                        batch
                            .write(local, wr.remote)
                            .imm(wr.imm)
                            .wr_id(wr.wr_id)
                            .signaled(),
                    ),
                    Op::Read => drop(batch.read(local, wr.remote).wr_id(wr.wr_id).signaled()),
                }
            }
        })?;
        Ok(())
    }

    fn post_atomics(&mut self, list: &[AtomicWr]) -> Result<()> {
        let Open { qp, memory, .. } = self.get()?;
        qp.post(|batch| {
            for wr in list {
                let local = memory.slice(wr.local..wr.local + 8);
                let posted = match wr.atomic {
                    Atomic::FetchAdd { add } => batch.fetch_add(local, wr.remote, add),
                    Atomic::CompareSwap { compare, swap } => {
                        batch.compare_swap(local, wr.remote, compare, swap)
                    }
                };
                posted.wr_id(wr.wr_id).signaled();
            }
        })?;
        Ok(())
    }

    fn poke(&mut self, offset: usize, value: u64) -> Result<()> {
        self.get()?.memory.store_u64(offset, value, Ordering::Release);
        Ok(())
    }

    fn peek(&mut self, offset: usize) -> Result<u64> {
        Ok(self.get()?.memory.load_u64(offset, Ordering::Acquire))
    }

    fn poll(&mut self, count: usize, limit: Duration) -> Result<Vec<Completion>> {
        let (cq, end) = (&self.get()?.cq, Instant::now() + limit);
        let mut all = Vec::new();
        while all.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            let some = cq.wait_vec(count - all.len(), Some(left))?;
            if some.is_empty() {
                break;
            }
            all.extend(some);
        }
        Ok(all)
    }

    fn close(&mut self) -> Result<()> {
        self.open = None;
        Ok(())
    }
}
