//! A connection to the daemon: control socket, context region, doorbells, wake sockets.
use std::mem::size_of;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rnic_abi::{
    DestroyReply, HandleArg, Hello, HelloReply, LINE, Op, PAGE, RegionHeader, RegionLayout, RingIndices,
    protocol,
};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use zerocopy::IntoBytes;

use crate::control::Control;
use crate::event::EventQueue;
use crate::shm::Mapping;
use crate::wake::WakeSocket;
use crate::{Error, Result};

/// One session with the daemon; every object of it holds a reference.
#[derive(Debug)]
pub(crate) struct Session {
    pub control: Control,
    pub region: Mapping,
    pub events: EventQueue,
    pub devices: u32,
    layout: RegionLayout,
    /// One a doorbell block.
    wakes: Vec<OwnedFd>,
}

impl Session {
    pub fn open(path: &Path) -> Result<Arc<Session>> {
        let control = Control::connect(path)?;
        let (hello, mut fds) = control.request_with::<HelloReply>(Op::Hello, &Hello::default(), None)?;
        control.set_session(hello.session);
        let missing = || Error::Protocol("hello came without its descriptors".into());
        let region_fd = fds.pop_front().ok_or_else(missing)?;
        let events = fds.pop_front().ok_or_else(missing)?;
        let wakes: Vec<OwnedFd> = fds.into();
        let (region, layout) = map_region(&region_fd, &hello)?;
        if wakes.len() != layout.cores as usize {
            return Err(Error::Protocol(format!(
                "{} wake sockets for {} cores",
                wakes.len(),
                layout.cores
            )));
        }
        Ok(Arc::new(Session {
            events: EventQueue::new(WakeSocket::new(events), &layout),
            devices: hello.devices,
            control,
            region,
            layout,
            wakes,
        }))
    }

    /// Makes sure that `len` bytes at `offset`, told by the daemon, are queue space.
    pub fn check_queue(&self, offset: u64, len: usize) -> Result<usize> {
        usize::try_from(offset)
            .ok()
            .filter(|start| start % LINE == 0 && *start >= self.layout.queues)
            .filter(|start| start.checked_add(len).is_some_and(|end| end <= self.layout.size))
            .ok_or_else(|| {
                Error::Protocol(format!(
                    "a queue of {len} bytes at {offset:#x} is outside the queue space"
                ))
            })
    }

    /// Makes sure that a queue depth told by the daemon is usable.
    pub fn check_depth(&self, depth: u32) -> Result<u32> {
        if depth.is_power_of_two() && depth <= 1 << 24 {
            Ok(depth)
        } else {
            Err(Error::Protocol(format!("a queue depth of {depth}")))
        }
    }

    /// Makes sure that there is a doorbell for `slot` in `block`, both told by the daemon.
    pub fn check_doorbell(&self, block: u32, slot: u32) -> Result<()> {
        if block < self.layout.cores && slot < self.layout.slots {
            Ok(())
        } else {
            Err(Error::Protocol(format!(
                "doorbell of slot {slot} in block {block}"
            )))
        }
    }

    /// Most sub-rings a CQ can have.
    pub fn cores(&self) -> u32 {
        self.layout.cores
    }

    /// Publishes the tail of the work queue whose indices stand at `indices`, and kicks its core if the core
    /// asked for it.
    #[inline]
    pub fn publish(&self, indices: usize, tail: u32, block: u32, slot: u32) {
        let tail_word = self.region.u32(indices + RingIndices::TAIL);
        let need_kick = self.region.u32(indices + RingIndices::NEED_KICK);
        if protocol::publish_tail(tail_word, tail, need_kick) {
            self.kick(block, slot);
        }
    }

    #[cold]
    fn kick(&self, block: u32, slot: u32) {
        let doorbell = &self.layout.doorbell;
        let base = self.layout.doorbells + doorbell.size() * block as usize;
        let level0 = self
            .region
            .u64(base + doorbell.level0() + 8 * (slot / 64) as usize);
        let level1 = self
            .region
            .u64(base + rnic_abi::DoorbellLayout::LEVEL1 + 8 * (slot / 4096) as usize);
        let sleeping = self.region.u32(base + rnic_abi::DoorbellLayout::SLEEPING);
        if protocol::ring_doorbell(level0, level1, slot, sleeping) {
            // A full socket already holds a wake; a closed one is noticed by the next request or wait.
            let _ = send(
                &self.wakes[block as usize],
                &[1],
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
        }
    }

    /// Destroys a QP or CQ, then waits until its events were acknowledged (as `ibv_destroy_qp` does). An object
    /// that the daemon refuses to destroy lives on, and so do its events.
    pub fn destroy(&self, op: Op, handle: u32) -> Result<()> {
        let reply = self
            .control
            .request::<DestroyReply>(op, &HandleArg { handle, reserved: 0 });
        if !matches!(&reply, Err(Error::Daemon { errno, .. }) if *errno == Errno::BUSY.raw_os_error()) {
            self.events.forget(handle);
        }
        reply.map(|_| ())
    }
}

/// Maps the region and checks its header.
fn map_region(fd: &OwnedFd, hello: &HelloReply) -> Result<(Mapping, RegionLayout)> {
    let bad = |what: &str| Error::Protocol(format!("context region: {what}"));
    let seals = fcntl_get_seals(fd.as_fd()).map_err(|_| bad("not a memfd"))?;
    let size = fstat(fd)
        .map_err(Error::io("fstat of the context region"))?
        .st_size;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(bad("not sealed against shrinking"));
    }
    let len = usize::try_from(hello.region_size).map_err(|_| bad("too large"))?;
    if len < PAGE || u64::try_from(size) != Ok(hello.region_size) {
        return Err(bad("not as long as the hello says"));
    }
    let region = Mapping::new(fd, len).map_err(|source| Error::Io {
        what: "mapping the context region",
        source,
    })?;
    let mut header = <RegionHeader as zerocopy::FromZeros>::new_zeroed();
    region.read(0, header.as_mut_bytes());
    std::sync::atomic::fence(Ordering::Acquire);
    let layout = RegionLayout::from_header(&header).ok_or_else(|| {
        Error::Protocol(format!(
            "context region: its header is of ABI version {} with structures of other sizes; this library \
             speaks version {} (header of {} bytes)",
            header.abi_version,
            rnic_abi::ABI_VERSION,
            size_of::<RegionHeader>()
        ))
    })?;
    if layout.size != len || header.boot_epoch != hello.boot_epoch {
        return Err(bad("its header disagrees with the hello"));
    }
    Ok((region, layout))
}
