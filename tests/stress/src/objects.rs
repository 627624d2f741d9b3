//! What QPs need: protection domains, address handles, completion queues and memory, made and destroyed.
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Result, ensure};
use rnic_abi::{
    Av, CreateAh, CreateAhReply, CreateCq, CreateCqReply, CreateQp, CreateQpReply, CreateSrq, CreateSrqReply,
    DEREG_NONBLOCK, DeregMr, DestroyReply, DeviceArg, Empty, HandleArg, HandleReply, Op, RegMr, RegMrReply,
    ah_flags,
};
use rnic_tests::raw::{Memory, memfd, punch};
use rustix::fs::SealFlags;

use crate::link::{End, LANE, Link, Region};
use crate::session::{AGAIN, Answer};
use crate::worker::{PATIENCE, Pd, Srq, Worker, gid};

/// Nobody answers for an address.
pub(crate) const UNREACHABLE: i32 = rustix::io::Errno::HOSTUNREACH.raw_os_error();

impl Worker {
    pub(crate) fn make_pd(&mut self, side: usize) -> Result<()> {
        let device = self.sessions[side].device;
        let arg = DeviceArg { device, reserved: 0 };
        let answer = self.sessions[side].request::<HandleReply>(Op::AllocPd, &arg, &[]);
        if let Some(made) = self.make(side, "PDs made", answer)? {
            self.pds[side].push(Pd {
                handle: made.handle,
                users: 0,
            });
        }
        Ok(())
    }

    pub(crate) fn drop_pd(&mut self, side: usize) -> Result<()> {
        let Some(index) = self.pick(self.pds[side].len()) else {
            return Ok(());
        };
        let Pd { handle, users } = self.pds[side][index];
        let arg = HandleArg { handle, reserved: 0 };
        let answer = self.sessions[side].request::<Empty>(Op::DeallocPd, &arg, &[]);
        if self.unmake("PDs destroyed", users > 0, answer)? {
            self.pds[side].swap_remove(index);
        }
        Ok(())
    }

    /// Makes an address handle, waiting for the neighbour or not, or destroys one.
    pub(crate) fn change_ahs(&mut self, side: usize) -> Result<()> {
        if self.rng.below(2) == 0
            && let Some(index) = self.pick(self.ahs[side].len())
        {
            return self.drop_ah(side, index);
        }
        let Some(pd) = self.pick(self.pds[side].len()) else {
            return Ok(());
        };
        let pd = self.pds[side][pd].handle;
        let arg = CreateAh {
            pd,
            flags: self.rng.below(2) as u32 * ah_flags::NON_BLOCKING,
            ah_attr: Av {
                dgid: gid(self.home.ports()[self.rng.below(2)]),
                ..Av::default()
            },
        };
        match self.sessions[side].request::<CreateAhReply>(Op::CreateAh, &arg, &[])? {
            // Frames are lost on purpose, those that ask for a neighbour too.
            Err(refused) if refused.errno == UNREACHABLE => self.done.count("neighbours not found"),
            answer => {
                if let Some(made) = self.make(side, "AHs made", Ok(answer))? {
                    self.use_pd(side, pd, 1);
                    self.ahs[side].push((made.handle, pd));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn drop_ah(&mut self, side: usize, index: usize) -> Result<()> {
        let (handle, pd) = self.ahs[side].swap_remove(index);
        let arg = HandleArg { handle, reserved: 0 };
        let answer = self.sessions[side].request::<Empty>(Op::DestroyAh, &arg, &[]);
        self.unmake("AHs destroyed", false, answer)?;
        self.use_pd(side, pd, -1);
        Ok(())
    }

    /// Makes a shared receive queue, with a QP on it or without, or destroys one.
    pub(crate) fn change_srqs(&mut self, side: usize) -> Result<()> {
        if self.rng.below(2) == 0
            && let Some(index) = self.pick(self.srqs[side].len())
        {
            return self.drop_srq(side, index);
        }
        let cqs = self.sorted_cqs(side);
        let (Some(pd), Some(cq)) = (self.pick(self.pds[side].len()), self.pick(cqs.len())) else {
            return Ok(());
        };
        let (pd, cq) = (self.pds[side][pd].handle, cqs[cq]);
        let arg = CreateSrq {
            pd,
            max_wr: 1 + self.rng.below(64) as u32,
            max_sge: self.rng.below(9) as u32,
            reserved: 0,
        };
        let session = &mut self.sessions[side];
        session.graves.close(&session.region)?;
        let answer = session.request::<CreateSrqReply>(Op::CreateSrq, &arg, &[]);
        let Some(made) = self.make(side, "SRQs made", answer)? else {
            return Ok(());
        };
        self.use_pd(side, pd, 1);
        let arg = CreateQp {
            pd,
            send_cq: cq,
            recv_cq: cq,
            qp_type: 2,
            sq_units: 1,
            srq: made.handle,
            ..CreateQp::default()
        };
        let mut qp = None;
        if self.rng.below(2) == 0 {
            let answer = self.sessions[side].request::<CreateQpReply>(Op::CreateQp, &arg, &[]);
            qp = self
                .make(side, "QPs made on SRQs", answer)?
                .map(|made| made.handle);
        }
        if qp.is_some() {
            self.use_pd(side, pd, 1);
            if let Some(cq) = self.sessions[side].cqs.get_mut(&cq) {
                cq.users += 2;
            }
        }
        let handle = made.handle;
        self.srqs[side].push(Srq { handle, pd, qp, cq });
        Ok(())
    }

    /// Destroys an SRQ; as long as there is a QP on it, that must not work.
    pub(crate) fn drop_srq(&mut self, side: usize, index: usize) -> Result<()> {
        let Srq { handle, pd, qp, cq } = self.srqs[side].swap_remove(index);
        let destroy = |worker: &mut Worker, op, handle| {
            let arg = HandleArg { handle, reserved: 0 };
            worker.sessions[side].request::<DestroyReply>(op, &arg, &[])
        };
        if let Some(qp) = qp {
            let answer = destroy(self, Op::DestroySrq, handle);
            self.unmake("SRQs destroyed", true, answer)?;
            let answer = destroy(self, Op::DestroyQp, qp);
            self.unmake("QPs on SRQs destroyed", false, answer)?;
            self.use_pd(side, pd, -1);
            if let Some(cq) = self.sessions[side].cqs.get_mut(&cq) {
                cq.users -= 2;
            }
        }
        let answer = destroy(self, Op::DestroySrq, handle);
        self.unmake("SRQs destroyed", false, answer)?;
        self.use_pd(side, pd, -1);
        Ok(())
    }

    /// Makes a CQ and returns its handle.
    pub(crate) fn make_cq(&mut self, side: usize, depth: Option<u32>) -> Result<Option<u32>> {
        // Room for all QPs a client may have, whatever they do: only what is to overflow does.
        let depth = depth.unwrap_or(512 << self.rng.below(2));
        let session = &mut self.sessions[side];
        session.graves.close(&session.region)?;
        let arg = CreateCq {
            device: session.device,
            depth,
            ..CreateCq::default()
        };
        let answer = session.request::<CreateCqReply>(Op::CreateCq, &arg, &[]);
        let made = self.make(side, "CQs made", answer)?;
        if let Some(made) = made {
            self.sessions[side].add_cq(made);
        }
        Ok(made.map(|made| made.handle))
    }

    /// Resizes a CQ, in the middle of whatever goes on.
    pub(crate) fn resize_cq(&mut self, side: usize) -> Result<()> {
        let handles: Vec<u32> = self.sorted_cqs(side);
        let Some(index) = self.pick(handles.len()) else {
            return Ok(());
        };
        let depth = 512 << self.rng.below(2);
        let answer = self.sessions[side].resize_cq(handles[index], depth);
        self.make(side, "CQs resized", answer).map(drop)
    }

    pub(crate) fn drop_cq(&mut self, side: usize) -> Result<()> {
        let handles: Vec<u32> = self.sorted_cqs(side);
        let Some(index) = self.pick(handles.len()) else {
            return Ok(());
        };
        self.destroy_cq(side, handles[index])
    }

    pub(crate) fn destroy_cq(&mut self, side: usize, handle: u32) -> Result<()> {
        let busy = self.sessions[side]
            .cqs
            .get(&handle)
            .is_some_and(|cq| cq.users > 0);
        let answer = self.sessions[side].destroy(Op::DestroyCq, handle);
        self.unmake("CQs destroyed", busy, answer).map(drop)
    }

    /// Handles of CQs for general use, in an order that does not depend on hashing.
    pub(crate) fn sorted_cqs(&self, side: usize) -> Vec<u32> {
        let cqs = self.sessions[side].cqs.values();
        let mut handles: Vec<u32> = cqs.filter(|cq| !cq.muted).map(|cq| cq.handle).collect();
        handles.sort_unstable();
        handles
    }

    pub(crate) fn make_region(&mut self, side: usize) -> Result<()> {
        let Some(pd) = self.pick(self.pds[side].len()) else {
            return Ok(());
        };
        let lanes = 2 + self.rng.below(7);
        // Now and then large enough to be mapped off the control thread.
        let extra = if self.rng.below(8) == 0 { 3 << 20 } else { 0 };
        let len = (lanes * LANE + extra).next_multiple_of(4096);
        let file = memfd(len as u64, SealFlags::SHRINK, false)?;
        let memory = Memory::map(&file, len)?;
        let pd = &mut self.pds[side][pd];
        let arg = RegMr {
            pd: pd.handle,
            access: 15,
            fd_offset: 0,
            length: len as u64,
            iova: memory.address(),
        };
        let answer = self.sessions[side].request::<RegMrReply>(Op::RegMr, &arg, &[file.as_fd()]);
        let pd = pd.handle;
        if let Some(made) = self.make(side, "MRs made", answer)? {
            self.use_pd(side, pd, 1);
            self.regions[side].push(Region {
                handle: made.handle,
                key: made.rkey,
                pd,
                file,
                memory,
                lanes: vec![false; lanes],
            });
        }
        Ok(())
    }

    /// Deregisters a region, in use or not. From then on nobody may write to it.
    pub(crate) fn drop_region(&mut self, side: usize) -> Result<()> {
        let Some(index) = self.pick(self.regions[side].len()) else {
            return Ok(());
        };
        let handle = self.regions[side][index].handle;
        // What uses it may fail from now on, either end by the other's fault.
        let users = |link: &Link| {
            let uses = |end: &End| end.side == side && end.mr == handle;
            link.ends.iter().flatten().any(uses)
        };
        for index in 0..self.links.len() {
            if users(&self.links[index]) {
                self.spoil(index);
            }
        }
        let answer = self.deregister(side, handle);
        self.unmake("MRs deregistered", false, answer)?;
        let region = self.regions[side].swap_remove(index);
        self.use_pd(side, region.pd, -1);
        self.dead_keys[side].push_back(region.key);
        if self.dead_keys[side].len() > 8 {
            self.dead_keys[side].pop_front();
        }
        self.dead_memory
            .bury(region.memory, format!("the region with key {:#x}", region.key))
    }

    /// Ends a region in one form or the other: waits for the poll cores, asks until they have passed, or asks once and
    /// then waits.
    fn deregister(&mut self, side: usize, handle: u32) -> Result<Answer<Empty>> {
        // Chosen before the first answer, so that a seed decides the same however slow the cores are.
        let asked = [0, 1, u64::MAX][self.rng.below(3)];
        let deadline = Instant::now() + PATIENCE;
        let mut refusals = 0;
        loop {
            let flags = if refusals < asked { DEREG_NONBLOCK } else { 0 };
            let arg = DeregMr { handle, flags };
            match self.sessions[side].request::<Empty>(Op::DeregMr, &arg, &[])? {
                Err(refused) if flags == DEREG_NONBLOCK && refused.errno == AGAIN => {
                    ensure!(
                        Instant::now() < deadline,
                        "dereg_mr: {} for {PATIENCE:?}",
                        refused.text
                    );
                    self.done.count("deregistrations to be repeated");
                    refusals += 1;
                }
                answer => return Ok(answer),
            }
        }
    }

    pub(crate) fn use_pd(&mut self, side: usize, handle: u32, by: i32) {
        if let Some(pd) = self.pds[side].iter_mut().find(|pd| pd.handle == handle) {
            pd.users = pd.users.saturating_add_signed(by);
        }
    }

    /// Takes pages away from under a region.
    pub(crate) fn punch(&mut self, side: usize) -> Result<()> {
        let Some(index) = self.pick(self.regions[side].len()) else {
            return Ok(());
        };
        let region = &self.regions[side][index];
        let pages = region.memory.len() / 4096;
        let start = self.rng.below(pages);
        let count = 1 + self.rng.below((pages - start).min(4));
        punch(&region.file, (start * 4096) as u64, (count * 4096) as u64)?;
        let handle = region.handle;
        for link in &mut self.links {
            let touched = link
                .ends
                .iter()
                .flatten()
                .any(|e| e.side == side && e.mr == handle);
            if let Some(round) = link.round.as_mut().filter(|_| touched) {
                round.unverified = true;
            }
        }
        self.done.count("holes punched");
        Ok(())
    }
}
