//! One mapping of memory shared with a client.
use std::{
    ffi::c_void,
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use rnic_abi::protocol::{Word32, Word64};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs, ftruncate, memfd_create},
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{nonblocking::might_block, quarantine};

use super::sigbus::{self, FaultCell, RangeGuard};

/// Why a client's descriptor cannot be used as memory.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Not a memfd, or one without seals.
    #[error("the descriptor is not a memfd made with MFD_ALLOW_SEALING ({0}); pass a sealed memfd")]
    NotMemfd(rustix::io::Errno),
    /// F_SEAL_SHRINK is missing.
    #[error("the memfd can still shrink; add F_SEAL_SHRINK before registering it")]
    NotSealed,
    /// The range leaves the file.
    #[error("bytes {offset}..{offset}+{length} leave the memfd, which has {size} bytes")]
    Range {
        /// Start asked for.
        offset: u64,
        /// Length asked for.
        length: u64,
        /// Size of the file.
        size: u64,
    },
    /// The offset is not a multiple of the page size, or the length is zero.
    #[error(
        "offset {offset} and length {length}: the offset must be a multiple of {page}, the length not zero"
    )]
    Alignment {
        /// Start asked for.
        offset: u64,
        /// Length asked for.
        length: u64,
        /// Page size of the file.
        page: u64,
    },
    /// No room to watch the mapping for SIGBUS.
    #[error("too many mappings; deregister memory regions first")]
    TooMany,
    /// mmap or another call failed.
    #[error("mapping the memfd failed: {0}")]
    Io(#[from] rustix::io::Errno),
}

/// A mapping shared with a client. Every access is a raw copy or an atomic with a checked offset; no
/// reference into it exists. Unmapped on drop, which is the reclaimer's business.
pub struct ClientMem {
    base: NonNull<u8>,
    len: usize,
    /// `len` up to whole pages of the file: less than that of huge pages cannot be unmapped.
    mapped: usize,
    fault: Arc<FaultCell>,
    _watched: RangeGuard,
}

// SAFETY: the mapping is process-wide, and all access is by raw copies and atomics that tolerate concurrent
// writers (the client is one at any time anyway).
unsafe impl Send for ClientMem {}
// SAFETY: as above.
unsafe impl Sync for ClientMem {}

/// Bytes of the pages that a memfd is made of, each of which is mapped and unmapped as a whole: those of hugetlbfs, if it
/// stands there. Not the block size of its status: where shared memory may have transparent large pages that is theirs,
/// and a mapping still ends wherever it likes.
pub fn page_size(fd: impl AsFd) -> rustix::io::Result<u64> {
    let stat = fstatfs(fd)?;
    // The type of the magic number differs between libraries and architectures; the number has 32 bits.
    let huge = stat.f_type as u32 == libc::HUGETLBFS_MAGIC as u32;
    Ok(if huge {
        stat.f_bsize as u64
    } else {
        rustix::param::page_size() as u64
    })
}

/// Asks for large pages behind a mapping, where the machine grants them to shared memory: with thousands of QPs each packet
/// would else find its pages nowhere in the TLB. Control thread.
pub(crate) fn large_pages(base: *mut c_void, len: usize) {
    const LARGE: usize = 2 << 20;
    if len >= LARGE {
        // SAFETY: advice about a mapping that was made with these bounds; it changes nothing that can be read.
        let _ = unsafe { madvise(base, len, Advice::LinuxHugepage) };
    }
}

/// Asks for small ones.
pub(crate) fn small_pages(base: *mut c_void, len: usize) {
    // SAFETY: as above.
    let _ = unsafe { madvise(base, len, Advice::LinuxNoHugepage) };
}

impl ClientMem {
    /// Makes a context region of `len` bytes (a multiple of the page size): a memfd sealed against any change
    /// of length, mapped here, and the descriptor to send to the client.
    pub fn create(name: &str, len: usize, fault: Arc<FaultCell>) -> Result<(Self, OwnedFd), MapError> {
        might_block();
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, len as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let mem = Self::map_range(fd.as_fd(), 0, len, 4096, false, fault)?;
        Ok((mem, fd))
    }

    /// Maps `length` bytes of a client's memfd from `offset`. The file must be sealed against shrinking.
    /// Populating can take long for large regions: call it off the control thread.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        fault: Arc<FaultCell>,
    ) -> Result<Self, MapError> {
        might_block();
        let seals = fcntl_get_seals(fd).map_err(MapError::NotMemfd)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(MapError::NotSealed);
        }
        let stat = fstat(fd)?;
        let (size, page) = (stat.st_size as u64, page_size(fd)?);
        if length == 0 || !offset.is_multiple_of(page) {
            return Err(MapError::Alignment { offset, length, page });
        }
        match offset.checked_add(length) {
            Some(end) if end <= size => {}
            _ => return Err(MapError::Range { offset, length, size }),
        }
        let len = usize::try_from(length).map_err(|_| MapError::Range { offset, length, size })?;
        Self::map_range(fd, offset, len, page as usize, true, fault)
    }

    fn map_range(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        page: usize,
        populate: bool,
        fault: Arc<FaultCell>,
    ) -> Result<Self, MapError> {
        let mut flags = MapFlags::SHARED | MapFlags::NORESERVE;
        flags.set(MapFlags::POPULATE, populate);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                fd,
                offset,
            )?
        };
        large_pages(base, len);
        let base = NonNull::new(base.cast::<u8>()).expect("mmap returned null");
        let Some(watched) = sigbus::watch(base.as_ptr() as usize, len, &fault) else {
            // SAFETY: the mapping just made, not yet known to anyone.
            let _ = unsafe { munmap(base.as_ptr().cast::<c_void>(), len.next_multiple_of(page)) };
            return Err(MapError::TooMany);
        };
        Ok(ClientMem {
            base,
            len,
            mapped: len.next_multiple_of(page),
            fault,
            _watched: watched,
        })
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether an access hit a hole; the owner is then to be treated as broken.
    pub fn faulted(&self) -> bool {
        self.fault.is_set()
    }

    /// Pointer to `len` bytes at `offset`, for raw copies; `None` when they leave the mapping. Valid as long as
    /// the mapping.
    #[inline]
    pub fn range(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.len as u64 {
            return None;
        }
        // SAFETY: `offset <= len` of the mapping.
        Some(unsafe { self.base.add(offset as usize) })
    }

    /// Copies a plain record out.
    #[inline]
    pub fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
        let src = self.range(offset as u64, size_of::<T>() as u64)?;
        // SAFETY: the bytes are mapped; any bit pattern is a `T`; a torn value is still some `T`, and callers
        // treat it as hostile.
        Some(unsafe { ptr::read_unaligned(src.as_ptr().cast::<T>()) })
    }

    /// Reads `N` aligned words, each exactly once: what is validated afterwards is what is used, whatever the
    /// client stores meanwhile. A plain copy may be compiled into reading the source again.
    #[inline]
    pub fn read_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let words = self.range(offset as u64, 8 * N as u64)?.cast::<AtomicU64>();
        if !words.is_aligned() {
            return None;
        }
        Some(std::array::from_fn(|i| {
            // SAFETY: `N` aligned words from `offset` are mapped (checked above); an atomic tolerates writers.
            unsafe { words.add(i).as_ref() }.load(Ordering::Relaxed)
        }))
    }

    /// Writes `N` aligned words, each as it is known: what was built in registers need not be put together first. `false` when
    /// they leave the mapping, or are not aligned.
    #[inline]
    pub fn write_words<const N: usize>(&self, offset: usize, words: [u64; N]) -> bool {
        let Some(to) = self.range(offset as u64, 8 * N as u64) else {
            return false;
        };
        let to = to.cast::<AtomicU64>();
        if !to.is_aligned() {
            return false;
        }
        for (i, word) in words.into_iter().enumerate() {
            // SAFETY: `N` aligned words from `offset` are mapped (checked above); an atomic tolerates readers and writers.
            unsafe { to.add(i).as_ref() }.store(word, Ordering::Relaxed);
        }
        true
    }

    /// Copies a plain record in; `false` when it leaves the mapping.
    #[inline]
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> bool {
        self.copy_in(offset, value.as_bytes())
    }

    /// Copies bytes in; `false` when they leave the mapping.
    #[inline]
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(dst) = self.range(offset as u64, bytes.len() as u64) else {
            return false;
        };
        // SAFETY: the destination is mapped and no Rust reference points into it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), dst.as_ptr(), bytes.len()) };
        true
    }

    /// Copies bytes out; `false` when they leave the mapping.
    #[inline]
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let Some(src) = self.range(offset as u64, bytes.len() as u64) else {
            return false;
        };
        // SAFETY: the source is mapped; `bytes` is ours and outside of it.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// The atomic u32 at `offset`; `None` when it is outside or misaligned.
    #[inline]
    pub fn u32(&self, offset: usize) -> Option<SharedU32> {
        let word = self.range(offset as u64, 4)?.cast::<AtomicU32>();
        word.is_aligned().then_some(SharedU32(word))
    }

    /// The atomic u64 at `offset`; `None` when it is outside or misaligned.
    #[inline]
    pub fn u64(&self, offset: usize) -> Option<SharedU64> {
        let word = self.range(offset as u64, 8)?.cast::<AtomicU64>();
        word.is_aligned().then_some(SharedU64(word))
    }
}

impl Drop for ClientMem {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing that points into it survives its owner: words and ranges are
        // handed out to objects that hold an `Arc` of this mapping, or are used within one pass of the poll
        // loop, which the grace period waits for.
        unsafe { quarantine::unmap(self.base, self.mapped) };
    }
}

impl fmt::Debug for ClientMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientMem({} bytes)", self.len)
    }
}

macro_rules! shared_word {
    ($(#[$doc:meta])* $name:ident, $atomic:ty, $value:ty) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Debug)]
        pub struct $name(NonNull<$atomic>);

        // SAFETY: atomics of memory that is mapped as long as the holder keeps the `ClientMem` alive.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl $name {
            #[inline]
            fn word(&self) -> &$atomic {
                // SAFETY: aligned and mapped (checked where it was made); an atomic may be shared with any
                // writer; the reference does not outlive the call.
                unsafe { self.0.as_ref() }
            }
            /// Atomic load.
            #[inline]
            pub fn load(&self, order: Ordering) -> $value {
                self.word().load(order)
            }
            /// Atomic store.
            #[inline]
            pub fn store(&self, value: $value, order: Ordering) {
                self.word().store(value, order)
            }
            /// Atomic swap.
            #[inline]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                self.word().swap(value, order)
            }
            /// Atomic or.
            #[inline]
            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                self.word().fetch_or(value, order)
            }
            /// Atomic and.
            #[inline]
            pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                self.word().fetch_and(value, order)
            }
            /// Atomic compare and exchange; on failure, what stood there.
            #[inline]
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                ok: Ordering,
                failed: Ordering,
            ) -> Result<$value, $value> {
                self.word().compare_exchange(current, new, ok, failed)
            }
        }
    };
}

shared_word! {
    /// An atomic u32 in client memory. Valid as long as its [`ClientMem`]; whoever keeps one keeps an `Arc` of
    /// that beside it.
    SharedU32, AtomicU32, u32
}
shared_word! {
    /// An atomic u64 in client memory, like [`SharedU32`].
    SharedU64, AtomicU64, u64
}

impl SharedU32 {
    /// The word at an address.
    ///
    /// # Safety
    /// 4 bytes from there are mapped and aligned, and stay mapped as long as the word is used.
    #[inline]
    pub(super) unsafe fn at(ptr: NonNull<u8>) -> SharedU32 {
        SharedU32(ptr.cast())
    }
}

impl SharedU64 {
    /// The word at an address; `None` when it is misaligned.
    ///
    /// # Safety
    /// 8 bytes from there are mapped, and stay so as long as the word is used.
    #[inline]
    pub(super) unsafe fn at(ptr: NonNull<u8>) -> Option<SharedU64> {
        let word = ptr.cast::<AtomicU64>();
        word.is_aligned().then_some(SharedU64(word))
    }

    /// Atomic add, modulo 2^64; what stood there before.
    #[inline]
    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.word().fetch_add(value, order)
    }
}

impl Word32 for SharedU32 {
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        SharedU32::load(self, order)
    }
    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        SharedU32::store(self, value, order)
    }
    #[inline]
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        SharedU32::swap(self, value, order)
    }
    #[inline]
    fn fetch_and(&self, value: u32, order: Ordering) -> u32 {
        SharedU32::fetch_and(self, value, order)
    }
    #[inline]
    fn compare_exchange(&self, current: u32, new: u32, ok: Ordering, failed: Ordering) -> Result<u32, u32> {
        SharedU32::compare_exchange(self, current, new, ok, failed)
    }
    #[inline]
    fn fence(order: Ordering) {
        std::sync::atomic::fence(order)
    }
}

impl Word64 for SharedU64 {
    #[inline]
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        SharedU64::fetch_or(self, value, order)
    }
    #[inline]
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        SharedU64::swap(self, value, order)
    }
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        SharedU64::load(self, order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, len).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    fn cell() -> Arc<FaultCell> {
        Arc::default()
    }

    #[test]
    fn a_hole_reads_as_zeros_and_marks_its_owner() {
        sigbus::install().unwrap();
        let fd = file(8192, SealFlags::empty());
        let (fault, other) = (cell(), cell());
        let mem = ClientMem::map_range(fd.as_fd(), 0, 8192, 4096, true, fault).unwrap();
        let _other = ClientMem::map_range(fd.as_fd(), 0, 4096, 4096, true, other.clone()).unwrap();
        assert!(mem.copy_in(4096, &[7; 16]));
        // An opaque call: the compiler must take the memory for changed.
        std::fs::File::from(fd).set_len(4096).unwrap();
        let mut out = [9; 16];
        assert!(mem.copy_out(4096, &mut out));
        assert_eq!(out, [0; 16]);
        assert!(mem.copy_in(4096, &[8; 16]), "writes go to the plug");
        assert!(mem.faulted() && !other.is_set());
    }

    #[test]
    fn pages_are_those_of_hugetlbfs_and_else_small_whatever_blocks_the_file_prefers() {
        let plain = file(8 << 20, SealFlags::SHRINK);
        assert_eq!(page_size(&plain), Ok(rustix::param::page_size() as u64));
        let flags = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let huge = memfd_create("test", flags).unwrap();
        assert_eq!(page_size(&huge), Ok(2 << 20));
    }

    #[test]
    fn a_file_that_can_shrink_is_refused() {
        let fd = file(8192, SealFlags::GROW);
        assert!(matches!(
            ClientMem::map(fd.as_fd(), 0, 4096, cell()),
            Err(MapError::NotSealed)
        ));
    }

    #[test]
    fn what_is_no_memfd_is_refused() {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(matches!(
            ClientMem::map(pipe.as_fd(), 0, 4096, cell()),
            Err(MapError::NotMemfd(_))
        ));
    }

    #[test]
    fn ranges_that_leave_the_file_or_wrap_are_refused() {
        let fd = file(8192, SealFlags::SHRINK);
        let map = |offset, len| ClientMem::map(fd.as_fd(), offset, len, cell());
        assert!(matches!(map(4096, 8192), Err(MapError::Range { .. })));
        assert!(matches!(map(4096, u64::MAX - 100), Err(MapError::Range { .. })));
        assert!(matches!(map(100, 4096), Err(MapError::Alignment { .. })));
        assert!(matches!(map(0, 0), Err(MapError::Alignment { .. })));
        assert!(map(4096, 4096).is_ok());
    }

    #[test]
    fn accesses_outside_the_mapping_are_refused() {
        let (mem, _fd) = ClientMem::create("test", 4096, cell()).unwrap();
        assert!(mem.range(4096, 1).is_none() && mem.range(u64::MAX, 2).is_none());
        assert!(mem.read::<u64>(4089).is_none() && mem.read::<u64>(4088).is_some());
        assert!(mem.u32(2).is_none() && mem.u64(4092).is_none());
        assert!(mem.read_words::<8>(4040).is_none() && mem.read_words::<8>(4).is_none());
    }
}
