//! XRC domains that files stand for, shared with whatever other client opens the same: SRQs and target QPs made, opened,
//! changed, found busy and let go of.
use std::fs::File;
use std::os::fd::AsFd;

use anyhow::Result;
use rnic_abi::{
    CreateSrqReply, CreateXrcSrq, DestroyReply, Empty, HandleArg, ModifyQp, Op, OpenQp, OpenQpReply,
    OpenXrcd, OpenXrcdReply, QpAttrs, qp_mask, xrcd_flags,
};
use rustix::io::Errno;

use crate::worker::Worker;

/// Domains of a device.
const FILES: usize = 3;
/// States that a QP can always go to.
const RESET: u8 = 0;
const ERR: u8 = 6;

/// A domain, as this client has opened it.
#[derive(Debug)]
pub(crate) struct Domain {
    handle: u32,
    /// Number of its file, where the number of a target QP stands.
    file: usize,
    /// SRQs, each with its PD and CQ.
    srqs: Vec<(u32, u32, u32)>,
    targets: Vec<u32>,
}

impl Worker {
    /// Does something to a domain, or opens one.
    pub(crate) fn change_domains(&mut self, side: usize) -> Result<()> {
        let open = self.rng.below(4) == 0;
        let Some(index) = self.pick(self.domains[side].len()).filter(|_| !open) else {
            return self.open_domain(side);
        };
        match self.rng.below(7) {
            0 => self.close_domain(side, index),
            1 => self.make_xrc_srq(side, index),
            2 => self.make_target(side, index),
            3 => self.open_target(side, index),
            4 => self.change_target(side, index),
            5 => self.drop_xrc_srq(side, index),
            _ => self.drop_target(side, index),
        }
    }

    /// Lets go of everything of all domains.
    pub(crate) fn leave_domains(&mut self, side: usize) -> Result<()> {
        while !self.domains[side].is_empty() {
            while !self.domains[side][0].srqs.is_empty() {
                self.drop_xrc_srq(side, 0)?;
            }
            while !self.domains[side][0].targets.is_empty() {
                self.drop_target(side, 0)?;
            }
            self.close_domain(side, 0)?;
        }
        Ok(())
    }

    fn domain_file(&self, side: usize, number: usize) -> Result<File> {
        let device = self.sessions[side].device;
        let path = self.socket.with_file_name(format!("domain-{device}-{number}"));
        let mut options = File::options();
        Ok(options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?)
    }

    fn open_domain(&mut self, side: usize) -> Result<()> {
        let file = self.rng.below(FILES);
        let open = self.domain_file(side, file)?;
        let arg = OpenXrcd {
            device: self.sessions[side].device,
            flags: xrcd_flags::CREATE,
        };
        let answer = self.sessions[side].request::<OpenXrcdReply>(Op::OpenXrcd, &arg, &[open.as_fd()]);
        if let Some(made) = self.make(side, "XRC domains opened", answer)? {
            self.domains[side].push(Domain {
                handle: made.handle,
                file,
                srqs: Vec::new(),
                targets: Vec::new(),
            });
        }
        Ok(())
    }

    /// As long as there is anything of ours in it, that must not work.
    fn close_domain(&mut self, side: usize, index: usize) -> Result<()> {
        let Domain {
            handle,
            ref srqs,
            ref targets,
            ..
        } = self.domains[side][index];
        let busy = !srqs.is_empty() || !targets.is_empty();
        let arg = HandleArg { handle, reserved: 0 };
        let answer = self.sessions[side].request::<Empty>(Op::CloseXrcd, &arg, &[]);
        if self.unmake("XRC domains closed", busy, answer)? {
            self.domains[side].swap_remove(index);
        }
        Ok(())
    }

    fn make_xrc_srq(&mut self, side: usize, index: usize) -> Result<()> {
        let cqs = self.sorted_cqs(side);
        let (Some(pd), Some(cq)) = (self.pick(self.pds[side].len()), self.pick(cqs.len())) else {
            return Ok(());
        };
        let (pd, cq) = (self.pds[side][pd].handle, cqs[cq]);
        let arg = CreateXrcSrq {
            xrcd: self.domains[side][index].handle,
            pd,
            cq,
            max_wr: 1 + self.rng.below(64) as u32,
            max_sge: self.rng.below(9) as u32,
            reserved: 0,
        };
        let session = &mut self.sessions[side];
        session.graves.close(&session.region)?;
        let answer = session.request::<CreateSrqReply>(Op::CreateXrcSrq, &arg, &[]);
        if let Some(made) = self.make(side, "XRC SRQs made", answer)? {
            self.use_pd(side, pd, 1);
            if let Some(cq) = self.sessions[side].cqs.get_mut(&cq) {
                cq.users += 1;
            }
            self.domains[side][index].srqs.push((made.handle, pd, cq));
        }
        Ok(())
    }

    fn drop_xrc_srq(&mut self, side: usize, index: usize) -> Result<()> {
        let Some((handle, pd, cq)) = self.domains[side][index].srqs.pop() else {
            return Ok(());
        };
        let arg = HandleArg { handle, reserved: 0 };
        let answer = self.sessions[side].request::<DestroyReply>(Op::DestroySrq, &arg, &[]);
        self.unmake("XRC SRQs destroyed", false, answer)?;
        self.use_pd(side, pd, -1);
        if let Some(cq) = self.sessions[side].cqs.get_mut(&cq) {
            cq.users -= 1;
        }
        Ok(())
    }

    /// Makes a target QP, and writes into the domain's file which.
    fn make_target(&mut self, side: usize, index: usize) -> Result<()> {
        let Domain { handle, file, .. } = self.domains[side][index];
        let arg = HandleArg { handle, reserved: 0 };
        let answer = self.sessions[side].request::<OpenQpReply>(Op::CreateXrcTgt, &arg, &[]);
        if let Some(made) = self.make(side, "target QPs made", answer)? {
            self.domains[side][index].targets.push(made.handle);
            let open = self.domain_file(side, file)?;
            rustix::io::pwrite(&open, &made.qpn.to_ne_bytes(), 0)?;
        }
        Ok(())
    }

    /// Opens the target QP of the domain's file. It may be gone by now.
    fn open_target(&mut self, side: usize, index: usize) -> Result<()> {
        let Domain { handle, file, .. } = self.domains[side][index];
        let mut qpn = [0; 4];
        rustix::io::pread(&self.domain_file(side, file)?, &mut qpn, 0)?;
        let arg = OpenQp {
            xrcd: handle,
            qpn: u32::from_ne_bytes(qpn),
        };
        match self.sessions[side].request::<OpenQpReply>(Op::OpenQp, &arg, &[])? {
            Err(refused) if refused.errno == Errno::NOENT.raw_os_error() => {
                self.done.count("target QPs found gone");
            }
            answer => {
                if let Some(made) = self.make(side, "target QPs opened", Ok(answer))? {
                    self.domains[side][index].targets.push(made.handle);
                }
            }
        }
        Ok(())
    }

    /// Changes a target QP under all who hold it, and moves it to its core by that.
    fn change_target(&mut self, side: usize, index: usize) -> Result<()> {
        let Some(target) = self.pick(self.domains[side][index].targets.len()) else {
            return Ok(());
        };
        let arg = ModifyQp {
            handle: self.domains[side][index].targets[target],
            mask: qp_mask::STATE,
            attrs: QpAttrs {
                qp_state: [RESET, ERR][self.rng.below(2)],
                ..QpAttrs::default()
            },
        };
        let answer = self.sessions[side].request::<Empty>(Op::ModifyQp, &arg, &[]);
        self.make(side, "target QPs changed", answer).map(drop)
    }

    fn drop_target(&mut self, side: usize, index: usize) -> Result<()> {
        let Some(target) = self.pick(self.domains[side][index].targets.len()) else {
            return Ok(());
        };
        let handle = self.domains[side][index].targets.swap_remove(target);
        let arg = HandleArg { handle, reserved: 0 };
        let answer = self.sessions[side].request::<DestroyReply>(Op::DestroyQp, &arg, &[]);
        self.unmake("target QPs let go of", false, answer).map(drop)
    }
}
