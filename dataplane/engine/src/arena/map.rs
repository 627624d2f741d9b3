//! One arena's file and its mapping.
use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use rustix::{
    fs::{MemfdFlags, fstat, ftruncate, memfd_create},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::mem::{large_pages, small_pages};

use super::{ArenaError, ArenaId, LAYOUT_VERSION};

/// Bytes before the first record: one page.
pub(super) const HEADER: usize = 4096;
/// The file grows by multiples of this.
const STEP: usize = 256 << 10;
const MAGIC: u64 = u64::from_le_bytes(*b"rnicaren");

/// What the file begins with.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u32,
    /// Bytes of a record; 1 for ranges.
    record: u32,
    /// Distance of records.
    stride: u32,
    owner: u32,
    epoch: u64,
    kind: [u8; 16],
    /// Length of the file: units of [`HEADER`] bytes, and their complement in the upper half, so that one store
    /// changes it and no flipped bit goes unnoticed.
    extent: u64,
}

const EXTENT: usize = std::mem::offset_of!(Header, extent);

/// A mapped arena file. The whole of what it may grow to is mapped from the start, so that no record ever moves;
/// only the part within [`Mapping::extent`] may be touched.
pub(super) struct Mapping {
    pub id: ArenaId,
    fd: OwnedFd,
    base: NonNull<u8>,
    reserved: usize,
    extent: AtomicUsize,
    /// Records stay when their owners are dropped.
    sealed: AtomicBool,
}

// SAFETY: the mapping is process-wide; who may access which record is the business of the owners built on it.
unsafe impl Send for Mapping {}
// SAFETY: as above; the fields are atomics or never change.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A fresh arena for records of `record` bytes, `stride` apart, that may grow to `reserved` bytes.
    pub fn create(id: ArenaId, record: usize, stride: usize, reserved: usize) -> Result<Self, ArenaError> {
        let io = |call| {
            move |errno| ArenaError::Io {
                arena: id,
                call,
                errno,
            }
        };
        let name = format!("rnic-{}.{}", id.kind, id.owner);
        let fd = memfd_create(name, MemfdFlags::CLOEXEC).map_err(io("memfd_create"))?;
        ftruncate(&fd, HEADER as u64).map_err(io("ftruncate"))?;
        let header = expected(id, record, stride, HEADER);
        let mapping = Self::map(id, fd, reserved, HEADER)?;
        // SAFETY: the first page of the file is mapped, page-aligned, and nobody else knows of it yet.
        unsafe { mapping.base.cast::<Header>().write(header) };
        Ok(mapping)
    }

    /// An arena that another process has left. Sealed.
    pub fn open(
        id: ArenaId,
        fd: OwnedFd,
        record: usize,
        stride: usize,
        reserved: usize,
    ) -> Result<Self, ArenaError> {
        let io = |call| {
            move |errno| ArenaError::Io {
                arena: id,
                call,
                errno,
            }
        };
        let len = fstat(&fd).map_err(io("fstat"))?.st_size as u64;
        let truncated = |need: usize| ArenaError::Truncated {
            arena: id,
            len,
            need: need as u64,
        };
        if len < HEADER as u64 {
            return Err(truncated(HEADER));
        }
        let file = File::from(fd);
        let mut header = Header::new_zeroed();
        let read = file.read_exact_at(header.as_mut_bytes(), 0);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .map_err(io("read"))?;
        let extent = check_header(id, &header, record, stride)?;
        if extent as u64 > len {
            return Err(truncated(extent));
        }
        if extent > reserved {
            let limit = reserved as u64;
            return Err(ArenaError::Full { arena: id, limit });
        }
        let mapping = Self::map(id, file.into(), reserved, extent)?;
        mapping.seal();
        Ok(mapping)
    }

    fn map(id: ArenaId, fd: OwnedFd, reserved: usize, extent: usize) -> Result<Self, ArenaError> {
        let (prot, flags) = (
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::NORESERVE,
        );
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap(ptr::null_mut(), reserved, prot, flags, &fd, 0) };
        let base = base.map_err(|errno| ArenaError::Io {
            arena: id,
            call: "mmap",
            errno,
        })?;
        large_pages(base, reserved);
        Ok(Mapping {
            id,
            fd,
            base: NonNull::new(base.cast::<u8>()).expect("mmap returned null"),
            reserved,
            extent: AtomicUsize::new(extent),
            sealed: AtomicBool::new(false),
        })
    }

    /// Takes memory for what is touched, and no more.
    pub fn prefer_small_pages(&self) {
        small_pages(self.base.as_ptr().cast(), self.reserved);
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes that may be touched.
    #[inline]
    pub fn extent(&self) -> usize {
        self.extent.load(Ordering::Acquire)
    }

    /// Makes at least the first `need` bytes usable. Control thread.
    pub fn grow(&self, need: usize) -> Result<(), ArenaError> {
        let extent = self.extent();
        if need <= extent {
            return Ok(());
        }
        let arena = self.id;
        let full = ArenaError::Full {
            arena,
            limit: self.reserved as u64,
        };
        if need > self.reserved {
            return Err(full);
        }
        let to = (extent.max(STEP / 2) * 2).min(extent + (64 * STEP));
        let to = to
            .max(need)
            .next_multiple_of(HEADER)
            .min(self.reserved.next_multiple_of(HEADER));
        ftruncate(&self.fd, to as u64).map_err(|errno| ArenaError::Io {
            arena,
            call: "ftruncate",
            errno,
        })?;
        // The file is as long before the header says so.
        self.header_extent().store(pack(to), Ordering::Release);
        self.extent.store(to, Ordering::Release);
        Ok(())
    }

    fn header_extent(&self) -> &AtomicU64 {
        // SAFETY: the header is mapped and aligned as long as `self` lives, and this field of it is only ever
        // accessed as an atomic once the mapping is shared.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(EXTENT).cast()) }
    }

    /// Pointer to `len` bytes at `offset`; `None` when they leave what may be touched.
    #[inline]
    pub fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if offset < HEADER || end > self.extent() {
            return None;
        }
        // SAFETY: `offset` lies within the mapping.
        Some(unsafe { self.base.add(offset) })
    }

    /// Pointer to the first byte behind the header, whether or not it may be touched.
    #[inline]
    pub fn cells(&self) -> NonNull<u8> {
        // SAFETY: every mapping is longer than its header, or ends with it.
        unsafe { self.base.add(HEADER) }
    }

    /// From now on records stay when their owners are dropped.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Dropping an owner frees its record again.
    pub fn unseal(&self) {
        self.sealed.store(false, Ordering::Release);
    }

    /// Whether records stay when their owners are dropped.
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        crate::nonblocking::might_block();
        // SAFETY: the mapping is ours, and every owner of a record keeps it alive.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.reserved) };
    }
}

const fn pack(extent: usize) -> u64 {
    let units = (extent / HEADER) as u32;
    (!units as u64) << 32 | units as u64
}

fn expected(id: ArenaId, record: usize, stride: usize, extent: usize) -> Header {
    let mut kind = [0; 16];
    for (to, from) in kind.iter_mut().zip(id.kind.bytes()) {
        *to = from;
    }
    Header {
        magic: MAGIC,
        version: LAYOUT_VERSION,
        record: record as u32,
        stride: stride as u32,
        owner: id.owner,
        epoch: id.epoch,
        kind,
        extent: pack(extent),
    }
}

/// The extent, when everything else is as it must be.
fn check_header(id: ArenaId, found: &Header, record: usize, stride: usize) -> Result<usize, ArenaError> {
    let units = found.extent as u32 as usize;
    let want = expected(id, record, stride, units.saturating_mul(HEADER));
    let half = |kind: &[u8; 16], at: usize| u64::from_le_bytes(std::array::from_fn(|i| kind[at + i]));
    let fields = [
        ("magic", found.magic, want.magic),
        ("version", found.version.into(), want.version.into()),
        ("record", found.record.into(), want.record.into()),
        ("stride", found.stride.into(), want.stride.into()),
        ("owner", found.owner.into(), want.owner.into()),
        ("epoch", found.epoch, want.epoch),
        ("kind", half(&found.kind, 0), half(&want.kind, 0)),
        ("kind", half(&found.kind, 8), half(&want.kind, 8)),
        ("extent", found.extent, want.extent),
    ];
    for (field, found, expected) in fields {
        if found != expected {
            return Err(ArenaError::Header {
                arena: id,
                field,
                found,
                expected,
            });
        }
    }
    Ok((units * HEADER).max(HEADER))
}
