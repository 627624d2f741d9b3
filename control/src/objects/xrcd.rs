//! XRC domains (A14): what XRC SRQs and target QPs of several processes share.
//!
//! A domain is held by every client that has opened it and dies with the last of them. All of it lives on one poll core:
//! a target QP finds the XRC SRQ that a request names among those of its core
//! (`docs/adr/0014-a-domain-of-xrc-lives-on-one-core.md`).

use std::{collections::BTreeMap, os::fd::OwnedFd};

use rnic_abi::{DeviceArg, OpenXrcd, OpenXrcdReply, xrcd_flags};
use rnic_engine::view;
use rustix::{
    fs::{AtFlags, StatxFlags},
    io::Errno,
};

use super::{Kind, Number, Object, What};
use crate::{
    control::Control,
    refusal::{Refusal, Verb},
    session::Reply,
};

/// A client's opening of a domain.
#[derive(Debug)]
pub struct Xrcd {
    /// Number of the domain.
    pub number: u32,
    /// The poll core it lives on.
    pub core: usize,
    /// The file it stands for.
    pub inode: Option<Inode>,
}

/// A file, whatever it is called.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode {
    /// Its file system.
    pub device: u64,
    /// Its number there.
    pub number: u64,
}

impl Inode {
    /// That of an open file. A client may have given one of a file system that it serves itself: nobody is asked for more
    /// than the kernel knows already.
    fn of(fd: &OwnedFd) -> Result<Self, Errno> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(fd, c"", flags, StatxFlags::INO)?;
        Ok(Inode {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            number: stat.stx_ino,
        })
    }
}

/// A domain.
#[derive(Debug)]
struct Domain {
    core: usize,
    /// Device it is of, and the file it stands for.
    file: Option<(u32, Inode)>,
    /// Keeps the file's number its own.
    _open: Option<OwnedFd>,
    /// Openings of it.
    holders: u32,
}

/// All domains, by number.
#[derive(Debug, Default)]
pub struct Domains {
    all: BTreeMap<u32, Domain>,
    by_file: BTreeMap<(u32, Inode), u32>,
}

impl Domains {
    /// How many openings of a domain there are.
    pub fn holders(&self, number: u32) -> u32 {
        self.all.get(&number).map_or(0, |domain| domain.holders)
    }
}

impl Control {
    pub(crate) fn open_xrcd(&mut self, conn: u32, arg: &OpenXrcd, fd: OwnedFd) -> Verb<Reply> {
        self.device(conn, arg.device)?;
        let flags = arg.flags;
        if flags & !(xrcd_flags::CREATE | xrcd_flags::EXCLUSIVE) != 0 {
            return Err(Refusal::invalid(format!(
                "flags is {flags:#x}; O_CREAT (1) and O_EXCL (2) can be set"
            )));
        }
        let inode = Inode::of(&fd).map_err(|errno| {
            Refusal::new(errno, format!("open_xrcd: looking at the file failed: {errno}"))
        })?;
        let file = (arg.device, inode);
        let creates = flags & xrcd_flags::CREATE != 0;
        match self.domains.by_file.get(&file) {
            Some(_) if creates && flags & xrcd_flags::EXCLUSIVE != 0 => Err(Refusal::new(
                Errno::EXIST,
                "open_xrcd: the file stands for an XRC domain already, and O_EXCL is set",
            )),
            Some(number) => self.hold_domain(conn, arg.device, *number),
            None if creates => self.make_domain(conn, arg.device, Some((inode, fd))),
            None => Err(Refusal::new(
                Errno::NOENT,
                "open_xrcd: the file stands for no XRC domain; set O_CREAT to make one",
            )),
        }
    }

    pub(crate) fn alloc_xrcd(&mut self, conn: u32, arg: &DeviceArg) -> Verb<Reply> {
        self.device(conn, arg.device)?;
        self.make_domain(conn, arg.device, None)
    }

    fn make_domain(&mut self, conn: u32, device: u32, file: Option<(Inode, OwnedFd)>) -> Verb<Reply> {
        self.allow(conn, Kind::Xrcd)?;
        let full =
            || Refusal::exhausted("no XRC domain number is free in the daemon; close XRC domains first");
        let Number { slot, generation } = self.numbers.xrcds.take().ok_or_else(full)?;
        let number = view::number(slot, generation);
        let (file, open) = match file {
            Some((inode, fd)) => (Some((device, inode)), Some(fd)),
            None => (None, None),
        };
        if let Some(file) = file {
            self.domains.by_file.insert(file, number);
        }
        let domain = Domain {
            // Spread over the cores, as QPs are.
            core: slot as usize % self.engine.core_count(),
            file,
            _open: open,
            holders: 0,
        };
        self.domains.all.insert(number, domain);
        let held = self.hold_domain(conn, device, number);
        if held.is_err() {
            self.end_domain_without_holders(number);
        }
        held
    }

    /// One opening more.
    fn hold_domain(&mut self, conn: u32, device: u32, number: u32) -> Verb<Reply> {
        self.allow(conn, Kind::Xrcd)?;
        let handle = self.take_handle(conn)?;
        let Some(domain) = self.domains.all.get_mut(&number) else {
            return Err(Refusal::invalid("open_xrcd: the domain is gone"));
        };
        domain.holders += 1;
        let xrcd = Xrcd {
            number,
            core: domain.core,
            inode: domain.file.map(|(_, inode)| inode),
        };
        self.publish(Object::new(conn, handle, device, What::Xrcd(xrcd)), None);
        Ok(Reply::new(&OpenXrcdReply {
            handle: handle.0,
            xrcdn: number,
        }))
    }

    /// One opening less. Nothing depends on it any more; the domain ends with the last one.
    pub(crate) fn let_go_of_domain(&mut self, number: u32) {
        if let Some(domain) = self.domains.all.get_mut(&number) {
            domain.holders = domain.holders.saturating_sub(1);
        }
        self.end_domain_without_holders(number);
    }

    fn end_domain_without_holders(&mut self, number: u32) {
        if self.domains.holders(number) > 0 {
            return;
        }
        if let Some(file) = self.domains.all.remove(&number).and_then(|domain| domain.file) {
            self.domains.by_file.remove(&file);
        }
        self.numbers.xrcds.give(view::slot_of(number));
    }
}
