//! A device that is removed under a client: what must be true of everything it had there, and how it comes back.
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic_abi::{
    Av, CreateAh, CreateAhReply, CreateCq, CreateCqReply, CreateQp, CreateQpReply, DeviceArg, Empty,
    HandleArg, HandleReply, ModifyQp, Op, QpAttrs, QueryQpReply, RegMr, RegMrReply, event_kind, qp_mask,
};
use rnic_tests::raw::memfd;
use rustix::fs::SealFlags;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::link::{End, Region};
use crate::qp::{FLUSHED, Qp, RETRY_EXCEEDED};
use crate::session::{NODEV, Session};
use crate::worker::{PATIENCE, Worker, gid};

/// `enum ibv_qp_state`.
const RESET: u8 = 0;
const ERR: u8 = 6;

/// A QP that the removal of its device took from RTS to ERR.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Victim {
    pub qp: u32,
    /// Session of its peer.
    pub peer: usize,
}

/// What has become of a session's device.
#[derive(Clone, Debug, Default)]
pub(crate) enum Fate {
    /// It is there.
    #[default]
    Present,
    /// It was removed; what is on it has yet to be looked at.
    Lost(Vec<Victim>),
    /// All was as it must be; another one in its place is looked out for.
    Away,
}

impl Worker {
    /// Takes note of devices that were removed. Whatever uses them may fail from now on.
    pub(crate) fn notice_losses(&mut self) {
        for side in 0..2 {
            if !self.sessions[side].lost || !matches!(self.fates[side], Fate::Present) {
                continue;
            }
            let mut victims = Vec::new();
            for index in 0..self.links.len() {
                let link = &self.links[index];
                let whole = !link.spoiled && link.expected.is_none();
                let ends = link.ends;
                let on_it = |end: &End| end.side == side;
                if !ends.iter().flatten().any(on_it) {
                    continue;
                }
                for which in 0..2 {
                    if let (Some(own), Some(other)) = (ends[which], ends[1 - which])
                        && own.side == side
                        && whole
                    {
                        victims.push(Victim {
                            qp: own.qp,
                            peer: other.side,
                        });
                    }
                }
                let link = &mut self.links[index];
                link.spoiled = true;
                link.expected = None;
                link.round = None;
            }
            self.done.count("devices lost");
            self.fates[side] = Fate::Lost(victims);
        }
    }

    /// A link has failed, and nothing was done to it: the removal of a device it uses explains that, and has been
    /// announced or is about to be. A core may be faster than the control thread.
    pub(crate) fn blame_removal(&mut self, index: usize) -> Result<bool> {
        let ends = self.links[index].ends.into_iter().flatten();
        let suspects: Vec<usize> = ends
            .map(|end| end.side)
            .filter(|side| self.sessions[*side].may_go())
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while !suspects.is_empty() && Instant::now() < deadline {
            for side in &suspects {
                self.sessions[*side].pump()?;
            }
            self.notice_losses();
            if self.links[index].spoiled {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(false)
    }

    /// Goes on with a device that was removed: looks at everything there was on it, gives it up, and opens the next.
    pub(crate) fn attend_losses(&mut self) -> Result<()> {
        for side in 0..2 {
            match std::mem::take(&mut self.fates[side]) {
                Fate::Present => {}
                Fate::Lost(mut victims) => {
                    // Some may have been destroyed since.
                    victims.retain(|victim| self.sessions[side].qps.contains_key(&victim.qp));
                    self.look_at_victims(side, &victims)
                        .with_context(|| format!("rnic{} was removed", self.sessions[side].port))?;
                    // Or it is left to the daemon, when the session ends.
                    if self.rng.below(4) > 0 {
                        self.tear_down(side)?;
                        self.done.count("lost devices cleaned up");
                    }
                    self.fates[side] = Fate::Away;
                }
                Fate::Away => {
                    self.fates[side] = Fate::Away;
                    if self.rng.below(16) == 0
                        && let Some(session) = Session::find(&self.socket, self.sessions[side].port)?
                    {
                        self.forget(side)?;
                        self.sessions[side] = session;
                        self.fates[side] = Fate::Present;
                        self.done.count("devices that came back");
                    }
                }
            }
        }
        Ok(())
    }

    /// What must be true of everything on a device that was removed.
    fn look_at_victims(&mut self, side: usize, victims: &[Victim]) -> Result<()> {
        self.wait("the completions and events of a removed device", |worker| {
            let session = &worker.sessions[side];
            let complete = |qp: &Qp| qp.outstanding() == 0 || qp.lossy || worker.completes_unseen(side, qp);
            session.qps.values().all(complete) && victims.iter().all(|victim| worker.has_fallen(side, victim))
        })
        .with_context(|| {
            let open = self.sessions[side].qps.values();
            let open: Vec<_> = open.filter(|qp| qp.outstanding() > 0).collect();
            format!("{victims:?}, of all that is open: {open:?}")
        })?;
        for victim in victims {
            let reply = self.query_qp(side, victim.qp)?;
            ensure!(
                reply.attrs.qp_state == ERR,
                "in state {}: {victim:?}",
                reply.attrs.qp_state
            );
            let qp = self.sessions[side].qps.get(&victim.qp).context("a live QP")?;
            for failure in [qp.send_failure, qp.recv_failure].into_iter().flatten() {
                ensure!(
                    failure == FLUSHED || self.fell_silent(victim, qp),
                    "a request ended with {failure}, and not flushed: {qp:?}"
                );
            }
        }
        self.done.add("QPs lost with their device", victims.len() as u64);
        let mut all: Vec<u32> = self.sessions[side].qps.keys().copied().collect();
        all.sort_unstable();
        for handle in &all {
            // One that was never used has nothing to flush, and stays in RESET.
            let state = self.query_qp(side, *handle)?.attrs.qp_state;
            ensure!(
                [ERR, RESET].contains(&state),
                "QP {handle:#x} is in state {state}"
            );
        }
        self.nothing_new(side, all.first().copied())?;
        if let Some(victim) = self.pick(victims.len()) {
            self.post_late(side, victims[victim].qp)?;
        }
        Ok(())
    }

    /// Whether its completions go where nobody looks.
    fn completes_unseen(&self, side: usize, qp: &Qp) -> bool {
        let muted = |cq: &u32| self.sessions[side].cqs.get(cq).is_none_or(|cq| cq.muted);
        [qp.send_cq, qp.recv_cq].iter().any(muted)
    }

    /// Whether a QP has said that it failed, unless it had done so before.
    fn has_fallen(&self, side: usize, victim: &Victim) -> bool {
        let qp = self.sessions[side].qps.get(&victim.qp);
        qp.is_none_or(|qp| qp.events.seen & event_kind::QP_FATAL != 0 || self.fell_silent(victim, qp))
    }

    /// Whether it was the removal of its peer's device that a QP failed for.
    fn fell_silent(&self, victim: &Victim, qp: &Qp) -> bool {
        self.sessions[victim.peer].lost && qp.send_failure == Some(RETRY_EXCEEDED)
    }

    fn query_qp(&mut self, side: usize, handle: u32) -> Result<QueryQpReply> {
        let arg = HandleArg { handle, reserved: 0 };
        match self.sessions[side].request(Op::QueryQp, &arg, &[])? {
            Ok(reply) => Ok(reply),
            Err(refused) => bail!("query_qp: errno {}: {}", refused.errno, refused.text),
        }
    }

    /// Nothing can be made on a device that was removed, nor changed.
    fn nothing_new(&mut self, side: usize, qp: Option<u32>) -> Result<()> {
        let pd = self.pds[side].first().map(|pd| pd.handle);
        let cq = self.sorted_cqs(side).first().copied();
        let session = &mut self.sessions[side];
        let device = session.device;
        ensure!(
            session.query_device(device)?.is_err(),
            "device {device} is still told of"
        );
        let arg = DeviceArg { device, reserved: 0 };
        gone::<HandleReply>(session, Op::AllocPd, &arg, &[])?;
        let arg = CreateCq {
            device,
            depth: 16,
            ..CreateCq::default()
        };
        gone::<CreateCqReply>(session, Op::CreateCq, &arg, &[])?;
        if let Some(pd) = pd {
            let file = memfd(4096, SealFlags::SHRINK, false)?;
            let arg = RegMr {
                pd,
                access: 1,
                fd_offset: 0,
                length: 4096,
                iova: 0,
            };
            gone::<RegMrReply>(session, Op::RegMr, &arg, &[file.as_fd()])?;
            let ah_attr = Av {
                dgid: gid(0),
                ..Av::default()
            };
            let arg = CreateAh {
                pd,
                flags: 0,
                ah_attr,
            };
            gone::<CreateAhReply>(session, Op::CreateAh, &arg, &[])?;
        }
        if let (Some(pd), Some(cq)) = (pd, cq) {
            let arg = CreateQp {
                pd,
                send_cq: cq,
                recv_cq: cq,
                qp_type: 2,
                sq_units: 16,
                rq_units: 16,
                ..CreateQp::default()
            };
            gone::<CreateQpReply>(session, Op::CreateQp, &arg, &[])?;
        }
        if let Some(handle) = qp {
            let arg = ModifyQp {
                handle,
                mask: qp_mask::STATE,
                attrs: QpAttrs::default(),
            };
            gone::<Empty>(session, Op::ModifyQp, &arg, &[])?;
        }
        Ok(())
    }

    /// What is posted to a QP of a removed device is flushed.
    fn post_late(&mut self, side: usize, handle: u32) -> Result<()> {
        let ends = self.links.iter().flat_map(|link| link.ends.into_iter().flatten());
        let Some(end) = ends.into_iter().find(|end| (end.side, end.qp) == (side, handle)) else {
            return Ok(());
        };
        // Deregistered perhaps.
        let Some(region) = self.regions[side].iter().find(|region| region.handle == end.mr) else {
            return Ok(());
        };
        let sge = region.sge(Region::incoming(end.lane, 0), 64);
        let id = self.next_id;
        self.next_id += 1;
        self.post_recv(end, id, sge, None)?;
        self.wait("a receive posted after the removal", |worker| {
            let qp = worker.sessions[side].qps.get(&handle);
            qp.is_none_or(|qp| qp.outstanding() == 0 && qp.recv_failure == Some(FLUSHED))
        })
    }

    /// Forgets everything on one side, whose session ends.
    fn forget(&mut self, side: usize) -> Result<()> {
        let session = &mut self.sessions[side];
        session.graves.close(&session.region)?;
        for end in self.links.iter_mut().flat_map(|link| &mut link.ends) {
            if end.is_some_and(|end| end.side == side) {
                *end = None;
            }
        }
        self.links.retain(|link| link.ends.iter().any(Option::is_some));
        self.pds[side].clear();
        self.ahs[side].clear();
        self.srqs[side].clear();
        self.domains[side].clear();
        self.regions[side].clear();
        self.dead_keys[side].clear();
        Ok(())
    }
}

/// A request that is refused because the device is gone.
fn gone<T: FromBytes>(
    session: &mut Session,
    op: Op,
    body: &(impl IntoBytes + Immutable),
    fds: &[BorrowedFd<'_>],
) -> Result<()> {
    let name = op.name();
    match session.request::<T>(op, body, fds)? {
        Ok(_) => bail!("{name}: done, on a device that was removed"),
        Err(refused) => {
            ensure!(
                refused.errno == NODEV,
                "{name}: errno {}: {}, and not ENODEV",
                refused.errno,
                refused.text
            );
            Ok(())
        }
    }
}
