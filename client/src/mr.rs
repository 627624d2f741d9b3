//! Memory regions. Why there are no slices into them: the documentation of the crate, "Memory".
use std::fmt;
use std::ops::{Bound, Deref, RangeBounds};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rnic_abi::{DeregMr, Empty, Op, PAGE, RegMr, RegMrReply};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde::{Deserialize, Serialize};

use crate::shm::Mapping;
use crate::{Access, Error, Pd, Result};

/// A registered memory region and the memory itself, which the library allocates. It dereferences to the
/// [`MrSlice`] of the whole region.
///
/// The region is deregistered when the `Mr`, its slices and the operations in flight on it are all gone;
/// [`Mr::deregister`] does it at once, or says why not.
#[derive(Clone, Debug)]
pub struct Mr(MrSlice);

/// A part of a memory region, at least as long registered as it exists. Cheap to clone; any thread.
///
/// Offsets count from the start of the slice.
#[derive(Clone)]
pub struct MrSlice {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

/// What an operation in flight holds.
#[derive(Debug)]
pub(crate) struct Region {
    pd: Pd,
    memory: Mapping,
    handle: u32,
    lkey: u32,
    rkey: u32,
    access: Access,
    /// Set when the daemon has been told.
    deregistered: bool,
}

impl Mr {
    pub(crate) fn allocate(pd: &Pd, len: usize, access: Access) -> Result<Mr> {
        let too_long = || Error::InvalidArgument(format!("a memory region of {len} bytes"));
        if len == 0 {
            return Err(too_long());
        }
        let size = len.checked_next_multiple_of(PAGE).ok_or_else(too_long)?;
        let file = memfd_create("rnic-mr", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(Error::io("memfd_create"))?;
        ftruncate(&file, size as u64).map_err(Error::io("setting the length of a memory region"))?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(Error::io("sealing a memory region"))?;
        let memory = Mapping::new(&file, size).map_err(|source| Error::Io {
            what: "mapping a memory region",
            source,
        })?;
        let body = RegMr {
            pd: pd.0.handle,
            access: access.bits(),
            fd_offset: 0,
            length: len as u64,
            iova: memory.address(),
        };
        let control = &pd.context().session.control;
        let (reply, _): (RegMrReply, _) = control.request_with(Op::RegMr, &body, Some(file.as_fd()))?;
        let region = Arc::new(Region {
            pd: pd.clone(),
            memory,
            handle: reply.handle,
            lkey: reply.lkey,
            rkey: reply.rkey,
            access,
            deregistered: false,
        });
        Ok(Mr(MrSlice {
            region,
            offset: 0,
            len,
        }))
    }

    /// What may be done with the region.
    pub fn access(&self) -> Access {
        self.0.region.access
    }

    /// What a peer needs to READ and WRITE the region, to be sent to it.
    pub fn remote(&self) -> RemoteMr {
        self.0.remote()
    }

    /// Deregisters now: when this returns, no peer can reach the memory any more. [`Error::Busy`] when slices
    /// or operations in flight still refer to it; then it is deregistered after the last of them.
    pub fn deregister(self) -> Result<()> {
        match Arc::try_unwrap(self.0.region) {
            Ok(mut region) => region.deregister(),
            Err(_) => Err(Error::Busy(
                "the memory region has clones, slices or operations in flight; it is deregistered after them"
                    .into(),
            )),
        }
    }
}

impl Deref for Mr {
    type Target = MrSlice;
    fn deref(&self) -> &MrSlice {
        &self.0
    }
}

impl AsRef<[MrSlice]> for Mr {
    fn as_ref(&self) -> &[MrSlice] {
        std::slice::from_ref(&self.0)
    }
}

impl MrSlice {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address by which work requests name the first byte: where it is mapped in this process.
    pub fn addr(&self) -> u64 {
        self.region.memory.address() + self.offset as u64
    }

    /// Local key of the region.
    pub fn lkey(&self) -> u32 {
        self.region.lkey
    }

    /// Remote key of the region.
    pub fn rkey(&self) -> u32 {
        self.region.rkey
    }

    /// A part of it.
    ///
    /// # Panics
    /// When the range is not inside, as slicing does; [`MrSlice::get`] does not.
    pub fn slice(&self, range: impl RangeBounds<usize> + fmt::Debug) -> MrSlice {
        match self.bounds(&range) {
            Some((offset, len)) => self.part(offset, len),
            None => panic!("range {range:?} is outside a slice of {} bytes", self.len),
        }
    }

    /// A part of it, or `None` when the range is not inside.
    pub fn get(&self, range: impl RangeBounds<usize>) -> Option<MrSlice> {
        let (offset, len) = self.bounds(&range)?;
        Some(self.part(offset, len))
    }

    /// What a peer needs to READ and WRITE this part, to be sent to it. (The key opens the whole region.)
    pub fn remote(&self) -> RemoteMr {
        RemoteMr {
            addr: self.addr(),
            rkey: self.region.rkey,
            len: self.len as u64,
        }
    }

    /// Copies out. Bytes that a peer writes meanwhile are old or new, each by itself.
    ///
    /// # Panics
    /// When the range is not inside the slice.
    #[inline]
    pub fn read_at(&self, offset: usize, out: &mut [u8]) {
        self.region.memory.read(self.at(offset, out.len()), out);
    }

    /// Copies in.
    ///
    /// # Panics
    /// When the range is not inside the slice.
    #[inline]
    pub fn write_at(&self, offset: usize, bytes: &[u8]) {
        self.region.memory.write(self.at(offset, bytes.len()), bytes);
    }

    /// A copy of `len` bytes.
    ///
    /// # Panics
    /// When the range is not inside the slice.
    pub fn read_vec(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.read_at(offset, &mut out);
        out
    }

    /// Loads a byte. With [`Ordering::Acquire`], what its writer wrote before is seen by later reads.
    ///
    /// # Panics
    /// When it is not inside the slice.
    #[inline]
    pub fn load_u8(&self, offset: usize, order: Ordering) -> u8 {
        self.region.memory.u8(self.at(offset, 1)).load(order)
    }

    /// Stores a byte.
    ///
    /// # Panics
    /// When it is not inside the slice.
    #[inline]
    pub fn store_u8(&self, offset: usize, value: u8, order: Ordering) {
        self.region.memory.u8(self.at(offset, 1)).store(value, order);
    }

    /// Loads an aligned u64 in one piece.
    ///
    /// # Panics
    /// When it is not inside the slice or its address is no multiple of eight.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        self.region.memory.u64(self.at(offset, 8)).load(order)
    }

    /// Stores an aligned u64 in one piece.
    ///
    /// # Panics
    /// When it is not inside the slice or its address is no multiple of eight.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.region.memory.u64(self.at(offset, 8)).store(value, order);
    }

    /// Adds to an aligned u64, modulo 2^64, and returns what stood there before: atomic towards peers' atomics too.
    ///
    /// # Panics
    /// When it is not inside the slice or its address is no multiple of eight.
    #[inline]
    pub fn fetch_add_u64(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        self.region.memory.u64(self.at(offset, 8)).fetch_add(value, order)
    }

    /// Replaces an aligned u64 by `new` if it is `current`; on failure, what stands there. Atomic towards peers'
    /// atomics too.
    ///
    /// # Panics
    /// When it is not inside the slice or its address is no multiple of eight.
    #[inline]
    pub fn compare_exchange_u64(
        &self,
        offset: usize,
        current: u64,
        new: u64,
        ok: Ordering,
        failed: Ordering,
    ) -> std::result::Result<u64, u64> {
        let word = self.region.memory.u64(self.at(offset, 8));
        word.compare_exchange(current, new, ok, failed)
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    fn part(&self, offset: usize, len: usize) -> MrSlice {
        MrSlice {
            region: self.region.clone(),
            offset: self.offset + offset,
            len,
        }
    }

    /// Offset and length of a range, if it is inside.
    fn bounds(&self, range: &impl RangeBounds<usize>) -> Option<(usize, usize)> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.checked_add(1)?,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.checked_add(1)?,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.len,
        };
        (end <= self.len).then_some(())?;
        Some((start, end.checked_sub(start)?))
    }

    /// Offset in the mapping.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> usize {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at offset {offset} are outside a slice of {} bytes",
            self.len
        );
        self.offset + offset
    }
}

impl fmt::Debug for MrSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MrSlice({:#x}, {} bytes, rkey {:#x})",
            self.addr(),
            self.len,
            self.region.rkey
        )
    }
}

impl AsRef<[MrSlice]> for MrSlice {
    fn as_ref(&self) -> &[MrSlice] {
        std::slice::from_ref(self)
    }
}

impl Region {
    /// Whether the region belongs to this domain.
    pub fn is_of(&self, pd: &Pd) -> bool {
        Arc::ptr_eq(&self.pd.0, &pd.0)
    }

    fn deregister(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.deregistered, true) {
            return Ok(());
        }
        let arg = DeregMr {
            handle: self.handle,
            flags: 0,
        };
        self.pd
            .context()
            .session
            .control
            .request::<Empty>(Op::DeregMr, &arg)
            .map(|_| ())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Nothing to tell anyone: a daemon that is gone has forgotten the region.
        let _ = self.deregister();
    }
}

/// A peer's memory region, as the peer described it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteMr {
    /// Address of the first byte.
    pub addr: u64,
    /// Remote key.
    pub rkey: u32,
    /// Bytes.
    pub len: u64,
}

impl RemoteMr {
    /// The place `offset` bytes after the start.
    ///
    /// # Panics
    /// When that is past the end.
    pub fn at(&self, offset: u64) -> RemoteAddr {
        assert!(
            offset <= self.len,
            "offset {offset} is past a remote region of {} bytes",
            self.len
        );
        RemoteAddr {
            addr: self.addr.wrapping_add(offset),
            rkey: self.rkey,
        }
    }
}

/// A place in a peer's memory. The peer checks it; nothing is checked here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RemoteAddr {
    /// Address.
    pub addr: u64,
    /// Remote key.
    pub rkey: u32,
}

impl From<RemoteMr> for RemoteAddr {
    fn from(region: RemoteMr) -> RemoteAddr {
        region.at(0)
    }
}
