//! Mappings and files to register.
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A mapping shared with the daemon, written byte by byte as volatile: others write it too.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread, and is accessed by volatile copies only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the first `len` bytes of a file.
    pub fn map(file: impl AsFd, len: usize) -> std::io::Result<Memory> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a fresh range.
        let base = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(base.cast()).expect("mmap never returns address zero");
        Ok(Memory { base, len })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address in this process.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Copies out.
    ///
    /// # Panics
    /// When the range is outside.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        for (i, byte) in out.iter_mut().enumerate() {
            // SAFETY: `at` checks the range; a byte is always aligned.
            *byte = unsafe { self.at(offset + i, 1).read_volatile() };
        }
    }

    /// Copies in.
    ///
    /// # Panics
    /// When the range is outside.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `read`.
            unsafe { self.at(offset + i, 1).write_volatile(*byte) };
        }
    }

    /// A word, in one piece.
    ///
    /// # Panics
    /// When it is outside or misaligned.
    pub fn load(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4));
        // SAFETY: `at` checks the range, and the base is aligned to a page.
        let word = unsafe { std::sync::atomic::AtomicU32::from_ptr(self.at(offset, 4).cast()) };
        word.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Stores a word, in one piece.
    ///
    /// # Panics
    /// When it is outside or misaligned.
    pub fn store(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4));
        // SAFETY: as in `load`.
        let word = unsafe { std::sync::atomic::AtomicU32::from_ptr(self.at(offset, 4).cast()) };
        word.store(value, std::sync::atomic::Ordering::SeqCst);
    }

    /// Replaces a word, in one piece, and returns what was there.
    ///
    /// # Panics
    /// When it is outside or misaligned.
    pub fn swap(&self, offset: usize, value: u32) -> u32 {
        assert!(offset.is_multiple_of(4));
        // SAFETY: as in `load`.
        let word = unsafe { std::sync::atomic::AtomicU32::from_ptr(self.at(offset, 4).cast()) };
        word.swap(value, std::sync::atomic::Ordering::SeqCst)
    }

    /// Sets bits of a word, in one piece.
    ///
    /// # Panics
    /// When it is outside or misaligned.
    pub fn set(&self, offset: usize, bits: u32) {
        assert!(offset.is_multiple_of(4));
        // SAFETY: as in `load`.
        let word = unsafe { std::sync::atomic::AtomicU32::from_ptr(self.at(offset, 4).cast()) };
        word.fetch_or(bits, std::sync::atomic::Ordering::SeqCst);
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "outside the mapping"
        );
        // SAFETY: inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and no reference into it exists.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A memfd of this length with these seals; `huge` takes hugepages of 2 MiB.
pub fn memfd(len: u64, seals: SealFlags, huge: bool) -> std::io::Result<OwnedFd> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if huge {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let file = memfd_create("rnic-tests", flags)?;
    ftruncate(&file, len)?;
    fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// Takes the pages of a range away from a file, as `fallocate --punch-hole` does.
pub fn punch(file: impl AsFd, offset: u64, len: u64) -> std::io::Result<()> {
    fallocate(
        file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        offset,
        len,
    )?;
    Ok(())
}

/// Hugepages of 2 MiB that are held, touched, until dropped: so that others find none.
pub fn anonymous(pages: usize) -> std::io::Result<Memory> {
    let len = pages << 21;
    let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
    // SAFETY: the kernel chooses a fresh range.
    let base = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            flags,
        )
    }?;
    let memory = Memory {
        base: NonNull::new(base.cast()).expect("never address zero"),
        len,
    };
    for page in 0..pages {
        memory.write(page << 21, &[1]);
    }
    Ok(memory)
}
