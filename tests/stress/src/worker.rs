//! One client that does whatever comes to its mind: two sessions, one on either device, and everything it has made
//! in them.
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic_abi::{
    Av, CreateAh, CreateAhReply, CreateCq, CreateCqReply, CreateQp, CreateQpReply, DeviceArg, Empty,
    HandleArg, HandleReply, Op, RegMr, RegMrReply, ah_flags, event_kind,
};
use rnic_tests::probe::Rng;
use rnic_tests::raw::{Memory, ipv4_gid, memfd, punch};
use rustix::fs::SealFlags;
use serde::{Deserialize, Serialize};

use crate::grave::DeadMemory;
use crate::link::{ERRORS, End, LANE, LONGEST, Link, Region, WINDOW};
use crate::qp::{Peer, Qp, UNITS};
use crate::session::{BUSY, EXHAUSTED, Refused, Session};

/// How long anything may take. Far more than it needs: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody answers for an address.
const UNREACHABLE: i32 = rustix::io::Errno::HOSTUNREACH.raw_os_error();

/// What a worker has done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// By name of what was done.
    pub counts: BTreeMap<String, u64>,
}

impl Done {
    pub fn count(&mut self, what: &str) {
        self.add(what, 1);
    }

    pub fn add(&mut self, what: &str, number: u64) {
        match self.counts.get_mut(what) {
            Some(count) => *count += number,
            None => drop(self.counts.insert(what.into(), number)),
        }
    }

    pub fn merge(&mut self, other: &Done) {
        for (what, count) in &other.counts {
            self.add(what, *count);
        }
    }
}

/// A protection domain.
#[derive(Debug)]
struct Pd {
    handle: u32,
    users: u32,
}

/// A client.
pub struct Worker {
    pub(crate) socket: PathBuf,
    pub(crate) rng: Rng,
    pub(crate) sessions: [Session; 2],
    pds: [Vec<Pd>; 2],
    /// Address handles, each with its PD.
    ahs: [Vec<(u32, u32)>; 2],
    pub(crate) regions: [Vec<Region>; 2],
    pub(crate) links: Vec<Link>,
    /// Keys that were deregistered lately.
    pub(crate) dead_keys: [VecDeque<u32>; 2],
    dead_memory: DeadMemory,
    pub(crate) done: Done,
    pub(crate) next_id: u64,
}

/// Address of a device.
pub fn gid(device: u32) -> [u8; 16] {
    ipv4_gid(&format!("10.0.0.{}", device + 1))
}

impl Worker {
    /// Connects to the daemon; `seed` decides all it will do.
    pub fn new(socket: PathBuf, seed: &[u64]) -> Result<Worker> {
        Ok(Worker {
            sessions: [Session::open(&socket, 0)?, Session::open(&socket, 1)?],
            socket,
            rng: Rng::new(seed),
            pds: Default::default(),
            ahs: Default::default(),
            regions: Default::default(),
            links: Vec::new(),
            dead_keys: Default::default(),
            dead_memory: DeadMemory::default(),
            done: Done::default(),
            next_id: 1,
        })
    }

    /// Does something, then looks at everything that has come.
    pub fn step(&mut self) -> Result<()> {
        let side = self.rng.below(2);
        let choice = self.rng.below(100);
        match choice {
            0..4 => self.make_pd(side)?,
            4..7 => self.drop_pd(side)?,
            7..13 => drop(self.make_cq(side, None)?),
            13..17 => self.drop_cq(side)?,
            17..23 => self.make_region(side)?,
            23..27 => self.drop_region(side)?,
            27..44 => self.make_link()?,
            44..70 => self.start_round()?,
            70..79 => self.provoke()?,
            79..91 => self.drop_end()?,
            91..93 => self.punch(side)?,
            93..96 => self.settle_one()?,
            96 => self.overflow(side)?,
            97 => self.change_ahs(side)?,
            98 if self.rng.below(8) == 0 => self.start_over()?,
            99 => self.change_ahs(side)?,
            _ => std::thread::sleep(Duration::from_micros(self.rng.below(2000) as u64)),
        }
        self.pump()
    }

    /// Makes what QPs need, on both sides.
    pub fn furnish(&mut self) -> Result<()> {
        for side in 0..2 {
            self.make_pd(side)?;
            self.make_cq(side, None)?;
            self.make_region(side)?;
        }
        Ok(())
    }

    /// Makes a link or takes one down, used or not, in flight or not.
    pub fn churn(&mut self) -> Result<()> {
        if self.links.len() < 2 {
            self.make_link()?;
        }
        if self.rng.below(4) == 0 {
            self.start_round()?;
        }
        if self.rng.below(64) == 0 {
            self.provoke()?;
        }
        self.pump()?;
        self.drop_end()?;
        self.pump()
    }

    /// Takes everything that has come, and looks at the links it may have changed.
    pub fn pump(&mut self) -> Result<()> {
        for session in &mut self.sessions {
            session.pump()?;
        }
        for index in 0..self.links.len() {
            self.look_at(index)
                .with_context(|| format!("link {:?}", self.links[index]))?;
        }
        Ok(())
    }

    /// Pumps until `done`.
    pub(crate) fn wait(&mut self, what: &str, done: impl Fn(&Worker) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let over = Instant::now() >= end;
            self.pump()?;
            if done(self) {
                return Ok(());
            }
            ensure!(!over, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// A request that makes something: refused only for want of room.
    fn make<T>(&mut self, what: &str, answer: Result<std::result::Result<T, Refused>>) -> Result<Option<T>> {
        match answer? {
            Ok(made) => {
                self.done.count(what);
                Ok(Some(made))
            }
            Err(refused) if EXHAUSTED.contains(&refused.errno) => {
                self.done.count("refused for want of room");
                Ok(None)
            }
            Err(refused) => bail!("{what}: errno {}: {}", refused.errno, refused.text),
        }
    }

    /// A destruction, which `busy` must refuse and nothing else may.
    fn unmake<T>(
        &mut self,
        what: &str,
        busy: bool,
        answer: Result<std::result::Result<T, Refused>>,
    ) -> Result<bool> {
        match answer? {
            Ok(_) if busy => bail!("{what}: done, though something depends on it"),
            Ok(_) => {
                self.done.count(what);
                Ok(true)
            }
            Err(refused) if busy && refused.errno == BUSY => {
                self.done.count("refused as busy");
                Ok(false)
            }
            Err(refused) => bail!("{what}: errno {}: {}", refused.errno, refused.text),
        }
    }

    fn make_pd(&mut self, side: usize) -> Result<()> {
        let device = self.sessions[side].device;
        let arg = DeviceArg { device, reserved: 0 };
        let answer = self.sessions[side].request::<HandleReply>(Op::AllocPd, &arg, &[]);
        if let Some(made) = self.make("PDs made", answer)? {
            self.pds[side].push(Pd {
                handle: made.handle,
                users: 0,
            });
        }
        Ok(())
    }

    fn drop_pd(&mut self, side: usize) -> Result<()> {
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
    fn change_ahs(&mut self, side: usize) -> Result<()> {
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
                dgid: gid(self.rng.below(2) as u32),
                ..Av::default()
            },
        };
        match self.sessions[side].request::<CreateAhReply>(Op::CreateAh, &arg, &[])? {
            // Frames are lost on purpose, those that ask for a neighbour too.
            Err(refused) if refused.errno == UNREACHABLE => self.done.count("neighbours not found"),
            answer => {
                if let Some(made) = self.make("AHs made", Ok(answer))? {
                    self.use_pd(side, pd, 1);
                    self.ahs[side].push((made.handle, pd));
                }
            }
        }
        Ok(())
    }

    fn drop_ah(&mut self, side: usize, index: usize) -> Result<()> {
        let (handle, pd) = self.ahs[side].swap_remove(index);
        let arg = HandleArg { handle, reserved: 0 };
        let answer = self.sessions[side].request::<Empty>(Op::DestroyAh, &arg, &[]);
        self.unmake("AHs destroyed", false, answer)?;
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
        let made = self.make("CQs made", answer)?;
        if let Some(made) = made {
            self.sessions[side].add_cq(made);
        }
        Ok(made.map(|made| made.handle))
    }

    fn drop_cq(&mut self, side: usize) -> Result<()> {
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
    fn sorted_cqs(&self, side: usize) -> Vec<u32> {
        let cqs = self.sessions[side].cqs.values();
        let mut handles: Vec<u32> = cqs.filter(|cq| !cq.muted).map(|cq| cq.handle).collect();
        handles.sort_unstable();
        handles
    }

    fn make_region(&mut self, side: usize) -> Result<()> {
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
            access: 7,
            fd_offset: 0,
            length: len as u64,
            iova: memory.address(),
        };
        let answer = self.sessions[side].request::<RegMrReply>(Op::RegMr, &arg, &[file.as_fd()]);
        let pd = pd.handle;
        if let Some(made) = self.make("MRs made", answer)? {
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
    fn drop_region(&mut self, side: usize) -> Result<()> {
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
        let arg = HandleArg { handle, reserved: 0 };
        let answer = self.sessions[side].request::<Empty>(Op::DeregMr, &arg, &[]);
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

    fn use_pd(&mut self, side: usize, handle: u32, by: i32) {
        if let Some(pd) = self.pds[side].iter_mut().find(|pd| pd.handle == handle) {
            pd.users = pd.users.saturating_add_signed(by);
        }
    }

    /// Takes pages away from under a region.
    fn punch(&mut self, side: usize) -> Result<()> {
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

    fn make_link(&mut self) -> Result<()> {
        // Between the devices, over frames; or on one of them.
        let sides = *[[0, 1], [1, 0], [0, 0], [1, 1]][self.rng.below(4)..]
            .first()
            .unwrap_or(&[0, 1]);
        let cqs: Vec<Vec<u32>> = sides.iter().map(|side| self.sorted_cqs(*side)).collect();
        let mut ends = [None; 2];
        for (end, side) in sides.into_iter().enumerate() {
            let (Some(send), Some(recv)) = (self.pick(cqs[end].len()), self.pick(cqs[end].len())) else {
                break;
            };
            ends[end] = self.make_end(side, cqs[end][send], cqs[end][recv])?;
            if ends[end].is_none() {
                break;
            }
        }
        let [Some(a), Some(b)] = ends else {
            for end in ends.into_iter().flatten() {
                self.destroy_end(end)?;
            }
            return Ok(());
        };
        self.connect(a, b)
    }

    /// A QP with memory.
    pub(crate) fn make_end(&mut self, side: usize, send_cq: u32, recv_cq: u32) -> Result<Option<End>> {
        let free = |region: &Region| region.lanes.contains(&false);
        let candidates: Vec<usize> = (0..self.regions[side].len())
            .filter(|i| free(&self.regions[side][*i]))
            .collect();
        let Some(choice) = self.pick(candidates.len()) else {
            return Ok(None);
        };
        let index = candidates[choice];
        let (pd, mr) = (self.regions[side][index].pd, self.regions[side][index].handle);
        let session = &mut self.sessions[side];
        session.graves.close(&session.region)?;
        let arg = CreateQp {
            pd,
            send_cq,
            recv_cq,
            qp_type: 2,
            sq_units: UNITS,
            rq_units: UNITS,
            ..CreateQp::default()
        };
        let answer = session.request::<CreateQpReply>(Op::CreateQp, &arg, &[]);
        let Some(made) = self.make("QPs made", answer)? else {
            return Ok(None);
        };
        let psn = self.rng.next() as u32 & 0xFF_FFFF;
        let mut qp = Qp::new(&made, pd, send_cq, recv_cq, psn);
        qp.events.explained = event_kind::COMM_EST;
        let session = &mut self.sessions[side];
        for cq in [send_cq, recv_cq] {
            if let Some(cq) = session.cqs.get_mut(&cq) {
                cq.users += 1;
            }
        }
        ensure!(
            session.qps.insert(made.handle, qp).is_none(),
            "handle {:#x} was given out twice",
            made.handle
        );
        self.use_pd(side, pd, 1);
        let lanes = &mut self.regions[side][index].lanes;
        let lane = lanes.iter().position(|used| !used).unwrap_or_default();
        lanes[lane] = true;
        Ok(Some(End {
            side,
            qp: made.handle,
            mr,
            lane,
        }))
    }

    /// Connects two ends, or stops half way.
    pub(crate) fn connect(&mut self, a: End, b: End) -> Result<()> {
        let mtu = 1 + self.rng.below(3) as u8;
        let steps = if self.rng.below(10) == 0 {
            self.rng.below(3)
        } else {
            3
        };
        let mut failed = false;
        for (own, other) in [(a, b), (b, a)] {
            let peer = self.sessions[other.side]
                .qps
                .get(&other.qp)
                .context("a live QP")?;
            let peer = Peer {
                qpn: peer.qpn,
                psn: peer.psn,
                gid: gid(self.sessions[other.side].device),
            };
            let session = &mut self.sessions[own.side];
            let transitions = session.qps[&own.qp].transitions(peer, mtu);
            for change in &transitions[..steps] {
                if let Err(refused) = session.request::<Empty>(Op::ModifyQp, change, &[])? {
                    bail!("modify_qp: errno {}: {}", refused.errno, refused.text);
                }
            }
            failed |= steps < 3;
        }
        self.done.count("QP pairs connected");
        self.links.push(Link {
            ends: [Some(a), Some(b)],
            round: None,
            expected: None,
            // Half connected: good for being destroyed.
            spoiled: failed,
        });
        Ok(())
    }

    /// Destroys one end of a link, whatever it is doing.
    fn drop_end(&mut self) -> Result<()> {
        let Some(index) = self.pick(self.links.len()) else {
            return Ok(());
        };
        // Half of the time only after everything due has come.
        if self.rng.below(2) == 0 {
            self.settle(index)?;
        }
        let first = self.rng.below(2);
        let which = [first, 1 - first]
            .into_iter()
            .find(|w| self.links[index].ends[*w].is_some());
        let both = self.rng.below(2) == 0;
        if let Some(which) = which {
            self.spoil(index);
            self.drop_this_end(index, which)?;
            if both && self.links[index].ends[1 - which].is_some() {
                self.drop_this_end(index, 1 - which)?;
            }
        }
        if self.links[index].ends.iter().all(Option::is_none) {
            self.links.swap_remove(index);
        }
        Ok(())
    }

    pub(crate) fn drop_this_end(&mut self, index: usize, which: usize) -> Result<()> {
        if let Some(end) = self.links[index].ends[which].take() {
            self.destroy_end(end)?;
        }
        Ok(())
    }

    pub(crate) fn destroy_end(&mut self, end: End) -> Result<()> {
        let pd = self.sessions[end.side].qps.get(&end.qp).map(|qp| qp.pd);
        let answer = self.sessions[end.side].destroy(Op::DestroyQp, end.qp);
        self.unmake("QPs destroyed", false, answer)?;
        self.use_pd(end.side, pd.context("a live QP")?, -1);
        let mut regions = self.regions[end.side].iter_mut();
        if let Some(region) = regions.find(|region| region.handle == end.mr) {
            region.lanes[end.lane] = false;
        }
        Ok(())
    }

    /// Whatever a link does from now on may fail, at either end.
    pub(crate) fn spoil(&mut self, index: usize) {
        let link = &mut self.links[index];
        link.spoiled = true;
        link.expected = None;
        if let Some(round) = &mut link.round {
            round.unverified = true;
        }
        for end in link.ends.into_iter().flatten() {
            if let Some(qp) = self.sessions[end.side].qps.get_mut(&end.qp) {
                qp.events.explained |= ERRORS;
            }
        }
    }

    /// Drops both sessions without a word and begins anew.
    fn start_over(&mut self) -> Result<()> {
        self.finish_memory()?;
        self.done.count("sessions abandoned");
        let fresh = Worker::new(self.socket.clone(), &[self.rng.next()]);
        let mut fresh = match fresh {
            Ok(fresh) => fresh,
            Err(error) => return Err(error.context("opening new sessions")),
        };
        std::mem::swap(&mut fresh.done, &mut self.done);
        std::mem::swap(&mut fresh.rng, &mut self.rng);
        *self = fresh;
        Ok(())
    }

    /// Looks at all memory that was given up.
    pub fn finish_memory(&mut self) -> Result<()> {
        for session in &mut self.sessions {
            session.graves.close(&session.region)?;
        }
        self.dead_memory.finish()
    }

    /// Destroys everything, in an order that must work.
    pub fn finish(mut self) -> Result<Done> {
        while let Some(index) = self.links.len().checked_sub(1) {
            self.settle(index)?;
            for which in 0..2 {
                self.drop_this_end(index, which)?;
            }
            self.links.pop();
        }
        for side in 0..2 {
            let handles: Vec<u32> = self.sessions[side].cqs.keys().copied().collect();
            for handle in handles {
                self.destroy_cq(side, handle)?;
            }
            while !self.ahs[side].is_empty() {
                self.drop_ah(side, 0)?;
            }
            while !self.regions[side].is_empty() {
                self.drop_region(side)?;
            }
            while !self.pds[side].is_empty() {
                self.drop_pd(side)?;
            }
        }
        self.pump()?;
        self.finish_memory()?;
        Ok(self.done)
    }

    pub(crate) fn pick(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| self.rng.below(count))
    }

    pub(crate) fn length(&mut self) -> usize {
        self.rng.below(LONGEST + 1)
    }

    pub(crate) fn window(&mut self) -> usize {
        1 + self.rng.below(WINDOW)
    }
}
