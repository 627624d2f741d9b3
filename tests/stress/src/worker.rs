//! One client that does whatever comes to its mind: two sessions, each on a device of its own, and everything it
//! has made in them.
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic_tests::probe::Rng;
use rnic_tests::raw::ipv4_gid;
use serde::{Deserialize, Serialize};

use crate::daemon::FIRST_THAT_GOES;
use crate::grave::DeadMemory;
use crate::link::{LONGEST, Link, Region, WINDOW};
use crate::loss::Fate;
use crate::session::{Answer, BUSY, EXHAUSTED, NODEV, Refused, Session};
use crate::xrc::Domain;

/// How long anything may take. Far more than it needs: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

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
pub(crate) struct Pd {
    pub handle: u32,
    pub users: u32,
}

/// A shared receive queue, and a QP in RESET on it, which also has a CQ.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Srq {
    pub handle: u32,
    pub pd: u32,
    pub qp: Option<u32>,
    pub cq: u32,
}

/// Ports of a client's two sessions.
#[derive(Copy, Clone, Debug)]
pub enum Home {
    /// Two that stay.
    Steady,
    /// Two that come and go.
    Restless,
    /// One of either.
    Both,
}

impl Home {
    /// One or the other.
    pub fn any(rng: &mut Rng) -> Home {
        [Home::Steady, Home::Restless, Home::Both][rng.below(3)]
    }

    /// Numbers of the ports.
    pub fn ports(self) -> [u32; 2] {
        match self {
            Home::Steady => [0, 1],
            Home::Restless => [FIRST_THAT_GOES, FIRST_THAT_GOES + 1],
            Home::Both => [1, FIRST_THAT_GOES],
        }
    }
}

/// A client.
pub struct Worker {
    pub(crate) socket: PathBuf,
    pub(crate) rng: Rng,
    pub(crate) home: Home,
    pub(crate) sessions: [Session; 2],
    /// What has become of the sessions' devices.
    pub(crate) fates: [Fate; 2],
    pub(crate) pds: [Vec<Pd>; 2],
    /// Address handles, each with its PD.
    pub(crate) ahs: [Vec<(u32, u32)>; 2],
    /// Shared receive queues, each with its PD and a QP on it.
    pub(crate) srqs: [Vec<Srq>; 2],
    /// XRC domains.
    pub(crate) domains: [Vec<Domain>; 2],
    pub(crate) regions: [Vec<Region>; 2],
    pub(crate) links: Vec<Link>,
    /// Keys that were deregistered lately.
    pub(crate) dead_keys: [VecDeque<u32>; 2],
    pub(crate) dead_memory: DeadMemory,
    pub(crate) done: Done,
    pub(crate) next_id: u64,
}

/// Address of a port.
pub fn gid(port: u32) -> [u8; 16] {
    ipv4_gid(&format!("10.0.0.{}", port + 1))
}

impl Worker {
    /// Connects to the daemon; `seed` decides all it will do.
    pub fn new(socket: PathBuf, home: Home, seed: &[u64]) -> Result<Worker> {
        let [a, b] = home.ports();
        Ok(Worker {
            sessions: [Session::open(&socket, a)?, Session::open(&socket, b)?],
            socket,
            home,
            rng: Rng::new(seed),
            fates: Default::default(),
            pds: Default::default(),
            ahs: Default::default(),
            srqs: Default::default(),
            domains: Default::default(),
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
        self.attend_losses()?;
        let there: Vec<usize> = (0..2).filter(|side| self.is_there(*side)).collect();
        let Some(side) = self.pick(there.len()).map(|choice| there[choice]) else {
            std::thread::sleep(Duration::from_millis(1));
            return self.pump();
        };
        let choice = self.rng.below(100);
        match choice {
            0..4 => self.make_pd(side)?,
            4..7 => self.drop_pd(side)?,
            7..12 => drop(self.make_cq(side, None)?),
            12 => self.resize_cq(side)?,
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
            97 if self.rng.below(2) == 0 => self.change_domains(side)?,
            97 => self.change_srqs(side)?,
            98 if self.rng.below(8) == 0 => self.start_over()?,
            98 if self.rng.below(2) == 0 => self.change_domains(side)?,
            99 => self.change_ahs(side)?,
            _ => std::thread::sleep(Duration::from_micros(self.rng.below(2000) as u64)),
        }
        self.pump()
    }

    /// Whether a side's device is there, as far as is known.
    pub(crate) fn is_there(&self, side: usize) -> bool {
        matches!(self.fates[side], Fate::Present) && !self.sessions[side].lost
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
        self.notice_losses();
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

    /// A request that makes something on one side: refused only for want of room, or of the device.
    pub(crate) fn make<T>(
        &mut self,
        side: usize,
        what: &str,
        answer: Result<Answer<T>>,
    ) -> Result<Option<T>> {
        match answer? {
            Ok(made) => {
                self.done.count(what);
                Ok(Some(made))
            }
            Err(refused) if EXHAUSTED.contains(&refused.errno) => {
                self.done.count("refused for want of room");
                Ok(None)
            }
            Err(refused) if self.is_gone(side, what, &refused)? => Ok(None),
            Err(refused) => bail!("{what}: errno {}: {}", refused.errno, refused.text),
        }
    }

    /// Whether a request was refused because the device was removed.
    pub(crate) fn is_gone(&mut self, side: usize, what: &str, refused: &Refused) -> Result<bool> {
        if refused.errno != NODEV || !self.sessions[side].may_go() {
            return Ok(false);
        }
        self.sessions[side].refused_as_gone(what)?;
        self.done.count("refused for want of the device");
        Ok(true)
    }

    /// A destruction, which `busy` must refuse and nothing else may.
    pub(crate) fn unmake<T>(&mut self, what: &str, busy: bool, answer: Result<Answer<T>>) -> Result<bool> {
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

    /// Drops both sessions without a word and begins anew.
    fn start_over(&mut self) -> Result<()> {
        self.finish_memory()?;
        self.done.count("sessions abandoned");
        let home = Home::any(&mut self.rng);
        let fresh = Worker::new(self.socket.clone(), home, &[self.rng.next()]);
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
            self.tear_down(side)?;
        }
        self.pump()?;
        self.finish_memory()?;
        Ok(self.done)
    }

    /// Destroys everything on one side, in an order that must work.
    pub(crate) fn tear_down(&mut self, side: usize) -> Result<()> {
        for index in 0..self.links.len() {
            for which in 0..2 {
                if self.links[index].ends[which].is_some_and(|end| end.side == side) {
                    self.spoil(index);
                    self.drop_this_end(index, which)?;
                }
            }
        }
        self.links.retain(|link| link.ends.iter().any(Option::is_some));
        while !self.srqs[side].is_empty() {
            self.drop_srq(side, 0)?;
        }
        self.leave_domains(side)?;
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
        Ok(())
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
