//! Shared memory: the only module of the library with `unsafe`.
//!
//! A mapping is memory that other processes write at any time. No reference to plain data in it ever exists:
//! it is accessed by relaxed atomic loads and stores, eight bytes wide where alignment allows and single bytes
//! at the edges, or by references to single atomic words. Order comes from the atomic words of the protocols
//! (a queue's tail, loaded with Acquire, comes before the data it announces).
//!
//! Two threads of one process that race on the same bytes with different widths leave the letter of Rust's
//! memory model, which does not define atomics of mixed size; each byte is still one of the values stored there
//! by the compiler's model (LLVM defines atomics byte by byte) and by every machine this runs on.
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A shared mapping of the first `len` bytes of a file that cannot shrink.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

/// Bytes of a transparent large page; smaller mappings have no use for one.
const LARGE_PAGE: usize = 2 << 20;

// SAFETY: the mapping belongs to no thread, and all access through `&Mapping` is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `file` (not zero), readable and writable. The caller has made sure that
    /// the file is as long and sealed against shrinking; otherwise an access would be a SIGBUS.
    pub fn new(file: impl AsFd, len: usize) -> io::Result<Mapping> {
        // SAFETY: the kernel chooses a range nothing else uses; no reference to its bytes is ever made but
        // to atomics, for which a writer in another process is no data race.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        if len >= LARGE_PAGE {
            // Where the machine grants them: with thousands of QPs their queues are else nowhere in the TLB.
            // SAFETY: advice about the mapping just made; it changes nothing that can be read.
            let _ = unsafe { madvise(base, len, Advice::LinuxHugepage) };
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))?;
        Ok(Mapping { base, len })
    }

    /// Address of the first byte in this process.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The word at `offset`.
    ///
    /// # Panics
    /// When `offset` is out of range or no multiple of four.
    #[inline]
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        let word = self.at(offset, 4);
        assert!(offset.is_multiple_of(4), "misaligned u32 at offset {offset}");
        // SAFETY: `at` checked the range, the base is aligned to a page, so the word is aligned; the memory
        // stays mapped as long as `self` and is accessed atomically only.
        unsafe { AtomicU32::from_ptr(word.cast()) }
    }

    /// The word at `offset`.
    ///
    /// # Panics
    /// When `offset` is out of range or no multiple of eight.
    #[inline]
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        let word = self.at(offset, 8);
        assert!(offset.is_multiple_of(8), "misaligned u64 at offset {offset}");
        // SAFETY: as in `u32`.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    /// The byte at `offset`.
    ///
    /// # Panics
    /// When `offset` is out of range.
    #[inline]
    pub fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as in `u32`; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When the range is not inside the mapping.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        self.at(offset, out.len());
        let (edge, rest) = out.split_at_mut(lead(offset, out.len()));
        let mut at = offset;
        for byte in edge {
            *byte = self.u8(at).load(Ordering::Relaxed);
            at += 1;
        }
        let (words, edge) = rest.as_chunks_mut::<8>();
        for word in words {
            // SAFETY: `lead` aligned `at`, and the range was checked at the top.
            let value = unsafe { self.u64_unchecked(at) }.load(Ordering::Relaxed);
            *word = value.to_ne_bytes();
            at += 8;
        }
        for byte in edge {
            *byte = self.u8(at).load(Ordering::Relaxed);
            at += 1;
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When the range is not inside the mapping.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.at(offset, bytes.len());
        let (edge, rest) = bytes.split_at(lead(offset, bytes.len()));
        let mut at = offset;
        for byte in edge {
            self.u8(at).store(*byte, Ordering::Relaxed);
            at += 1;
        }
        let (words, edge) = rest.as_chunks::<8>();
        for word in words {
            // SAFETY: `lead` aligned `at`, and the range was checked at the top.
            unsafe { self.u64_unchecked(at) }.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
            at += 8;
        }
        for byte in edge {
            self.u8(at).store(*byte, Ordering::Relaxed);
            at += 1;
        }
    }

    /// # Safety
    /// `offset` is a multiple of eight and the eight bytes at it are inside the mapping.
    #[inline]
    unsafe fn u64_unchecked(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 <= self.len);
        // SAFETY: the caller's promise, and as in `u32`.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Address of `offset`, after a check that `len` bytes are there.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at offset {offset} are outside a mapping of {} bytes",
            self.len
        );
        // SAFETY: `offset` is at most the length of the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing refers to it: every reference borrowed `self`.
        // The result does not matter: unmapping a whole mapping of our own has no way to fail.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Bytes before the first word boundary at or after `offset`, at most `len`.
fn lead(offset: usize, len: usize) -> usize {
    (offset.next_multiple_of(8) - offset).min(len)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn mapping(len: usize) -> Mapping {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len as u64).unwrap();
        Mapping::new(&file, len).unwrap()
    }

    #[test]
    fn copies_every_alignment_and_length_and_nothing_beside() {
        let map = mapping(4096);
        let bytes: Vec<u8> = (1..=64).collect();
        for offset in 0..17 {
            for len in 0..=40 {
                map.write(0, &[0; 128]);
                map.write(offset, &bytes[..len]);
                let mut all = [0u8; 128];
                map.read(0, &mut all);
                assert!(all[..offset].iter().all(|b| *b == 0));
                assert_eq!(all[offset..offset + len], bytes[..len]);
                assert!(all[offset + len..].iter().all(|b| *b == 0));
                let mut back = vec![0; len];
                map.read(offset, &mut back);
                assert_eq!(back, bytes[..len]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside a mapping")]
    fn a_range_that_wraps_is_refused() {
        mapping(4096).read(usize::MAX - 3, &mut [0; 8]);
    }

    #[test]
    #[should_panic(expected = "misaligned")]
    fn a_misaligned_word_is_refused() {
        mapping(4096).u64(4);
    }
}
