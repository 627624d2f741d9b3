//! A few words that one thread replaces while others copy them, and never a mixture of two states.
//!
//! There are two buffers, and the low bit of a count of replacements says which is in force. The writer fills the
//! other one and then advances the count, so that readers are never kept out, however long the writer is
//! interrupted. A reader is disturbed only when a replacement is completed while it copies; it then copies again,
//! a few times at most.
//!
//! The atomics come from the parent module's `primitive`, so that the same source runs under loom
//! (`dataplane/qsbr/tests/loom/snapshot.rs`).
use super::primitive::{AtomicU64, Ordering, fence};

/// How often a reader copies before it gives up. Each time costs the writer a whole replacement, which takes
/// longer than the copying.
const ATTEMPTS: usize = 8;

/// `N` words with one writer and any number of readers.
#[derive(Debug)]
#[repr(C)]
pub struct Snapshot<const N: usize> {
    /// Replacements so far; the low bit is the buffer in force.
    count: AtomicU64,
    buffers: [[AtomicU64; N]; 2],
}

impl<const N: usize> Default for Snapshot<N> {
    fn default() -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Snapshot {
            count: AtomicU64::new(0),
            buffers: [zeros(), zeros()],
        }
    }
}

impl<const N: usize> Snapshot<N> {
    /// Replaces the words. One thread at a time; never waits.
    pub fn store(&self, words: &[u64; N]) {
        let count = self.count.load(Ordering::Relaxed);
        // Whoever copies a word stored below also sees that the other buffer was put in force before: pairs with
        // the fence in `load`.
        fence(Ordering::Release);
        for (place, word) in self.buffers[Self::index(count.wrapping_add(1))].iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
        self.count.store(count.wrapping_add(1), Ordering::Release);
    }

    /// Copies the words. Any thread; `None` when they were replaced again and again meanwhile.
    #[inline]
    pub fn load(&self) -> Option<[u64; N]> {
        for _ in 0..ATTEMPTS {
            let count = self.count.load(Ordering::Acquire);
            let buffer = &self.buffers[Self::index(count)];
            let words = std::array::from_fn(|i| buffer[i].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if self.count.load(Ordering::Relaxed) == count {
                return Some(words);
            }
        }
        None
    }

    const fn index(count: u64) -> usize {
        (count & 1) as usize
    }
}
