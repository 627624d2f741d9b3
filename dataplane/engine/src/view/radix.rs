//! A persistent radix tree of fixed depth: a root, inner nodes and leaves, the latter two of 64 entries.
//!
//! A change copies the nodes on one path that other trees still share, and no others; a lookup is three dependent loads
//! and touches no reference count.
use std::{array, fmt, mem::MaybeUninit, sync::Arc};

const BITS: u32 = 6;
const FANOUT: usize = 1 << BITS;
const MASK: u32 = FANOUT as u32 - 1;

/// What keeps the first entries of a node off the cache line of the reference count before it: copying a node's parent
/// writes the count, and must not take the entries away from the cores that read them. Not an alignment, for which the
/// allocator takes several times as long.
type Gap = MaybeUninit<[u64; 6]>;

#[repr(C)]
struct Leaf<V> {
    _gap: Gap,
    entries: [Option<V>; FANOUT],
}

#[repr(C)]
struct Inner<N, const WIDTH: usize> {
    _gap: Gap,
    entries: [Option<Arc<N>>; WIDTH],
}

type Root<V, const WIDTH: usize> = Inner<Inner<Leaf<V>, FANOUT>, WIDTH>;

impl<V> Leaf<V> {
    const fn of(entries: [Option<V>; FANOUT]) -> Self {
        let _gap = Gap::uninit();
        Leaf { _gap, entries }
    }
}

impl<N, const WIDTH: usize> Inner<N, WIDTH> {
    const fn of(entries: [Option<Arc<N>>; WIDTH]) -> Self {
        let _gap = Gap::uninit();
        Inner { _gap, entries }
    }
}

impl<V: Copy> Default for Leaf<V> {
    fn default() -> Self {
        Self::of([None; FANOUT])
    }
}

impl<V: Copy> Clone for Leaf<V> {
    fn clone(&self) -> Self {
        Self::of(self.entries)
    }
}

impl<N, const WIDTH: usize> Default for Inner<N, WIDTH> {
    fn default() -> Self {
        Self::of(array::from_fn(|_| None))
    }
}

impl<N, const WIDTH: usize> Clone for Inner<N, WIDTH> {
    fn clone(&self) -> Self {
        Self::of(self.entries.clone())
    }
}

/// A map from small integers to `Copy` values. Cloning is one reference count; a clone is a snapshot.
///
/// `WIDTH` entries in the root make keys of 12 bits more than the root has: 18 bits with the 64 of the default.
pub struct Radix<V, const WIDTH: usize = FANOUT> {
    root: Arc<Root<V, WIDTH>>,
    len: usize,
}

impl<V, const WIDTH: usize> Clone for Radix<V, WIDTH> {
    fn clone(&self) -> Self {
        Radix {
            root: self.root.clone(),
            len: self.len,
        }
    }
}

impl<V, const WIDTH: usize> Radix<V, WIDTH> {
    /// Bits of a key; larger keys are in no tree.
    pub const KEY_BITS: u32 = 2 * BITS + WIDTH.ilog2();

    /// How many values are in it.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn entry(&self, key: u32) -> Option<&Option<V>> {
        let top = (key >> (2 * BITS)) as usize;
        let inner = self.root.entries.get(top)?.as_deref()?;
        let leaf = inner.entries[(key >> BITS & MASK) as usize].as_deref()?;
        Some(&leaf.entries[(key & MASK) as usize])
    }

    /// Begins to load the value at `key` into the cache of this core, for a [`Radix::get`] soon after.
    #[inline]
    pub fn prefetch(&self, key: u32) {
        #[cfg(target_arch = "x86_64")]
        if let Some(entry) = self.entry(key) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: every x86-64 processor has PREFETCHT0, which changes nothing but caches.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(entry).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = key;
    }
}

impl<V: Copy, const WIDTH: usize> Radix<V, WIDTH> {
    /// An empty tree.
    pub fn new() -> Self {
        Radix {
            root: Arc::new(Inner::default()),
            len: 0,
        }
    }

    /// The value at `key`. Any thread; no lock, no count, no allocation.
    #[inline]
    pub fn get(&self, key: u32) -> Option<V> {
        *self.entry(key)?
    }

    /// Puts a value at `key` and returns the one that was there.
    ///
    /// # Panics
    /// When `key` has more than [`Radix::KEY_BITS`] bits: numbers are made by the control thread itself.
    pub fn insert(&mut self, key: u32, value: V) -> Option<V> {
        let before = self.slot(key).replace(value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Takes the value at `key` out. Nodes that become empty stay, since their numbers come back, until the last value
    /// is gone.
    pub fn remove(&mut self, key: u32) -> Option<V> {
        self.get(key)?;
        let before = self.slot(key).take();
        self.len -= usize::from(before.is_some());
        if self.len == 0 {
            *self = Self::new();
        }
        before
    }

    fn slot(&mut self, key: u32) -> &mut Option<V> {
        assert!(
            key >> Self::KEY_BITS == 0,
            "key {key} does not fit a tree of {} bits",
            Self::KEY_BITS
        );
        let root = Arc::make_mut(&mut self.root);
        let inner = Arc::make_mut(root.entries[(key >> (2 * BITS)) as usize].get_or_insert_default());
        let leaf = Arc::make_mut(inner.entries[(key >> BITS & MASK) as usize].get_or_insert_default());
        &mut leaf.entries[(key & MASK) as usize]
    }

    /// Every value, by key.
    pub fn iter(&self) -> impl Iterator<Item = V> + '_ {
        self.root
            .entries
            .iter()
            .flatten()
            .flat_map(|i| i.entries.iter().flatten())
            .flat_map(|l| l.entries.iter().flatten().copied())
    }
}

impl<V: Copy, const WIDTH: usize> Default for Radix<V, WIDTH> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Copy + fmt::Debug, const WIDTH: usize> fmt::Debug for Radix<V, WIDTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The two counts that stand before what an `Arc` holds.
    const COUNTS: usize = 2 * size_of::<usize>();

    #[test]
    fn a_tree_finds_what_was_inserted_and_nothing_else() {
        let mut tree = Radix::<u32>::new();
        for key in [0, 1, 63, 64, 4095, 4096, 262_143] {
            assert_eq!(tree.insert(key, key * 2), None);
        }
        assert_eq!(tree.get(4096), Some(8192));
        assert_eq!(tree.get(2), None);
        assert_eq!(tree.get(262_144), None);
        assert_eq!(tree.remove(64), Some(128));
        assert_eq!(tree.remove(64), None);
        assert_eq!(tree.get(64), None);
        assert_eq!(tree.iter().count(), 6);
        assert_eq!(tree.len(), 6);
        tree.prefetch(4096);
        tree.prefetch(u32::MAX);
    }

    #[test]
    fn a_wider_root_makes_longer_keys() {
        let mut tree = Radix::<u32, 256>::new();
        assert_eq!(Radix::<u32, 256>::KEY_BITS, 20);
        tree.insert((1 << 20) - 1, 7);
        assert_eq!(tree.get((1 << 20) - 1), Some(7));
        assert_eq!(tree.get(1 << 20), None);
    }

    #[test]
    fn a_change_leaves_older_snapshots_as_they_were_and_copies_one_path() {
        let mut tree = Radix::<char>::new();
        tree.insert(5, 'a');
        tree.insert(70_000, 'b');
        let old = tree.clone();
        tree.insert(5, 'c');
        tree.remove(6);
        assert_eq!(old.get(5), Some('a'));
        assert_eq!(tree.get(5), Some('c'));
        let untouched = (70_000 >> 12) as usize;
        assert!(Arc::ptr_eq(
            old.root.entries[untouched].as_ref().unwrap(),
            tree.root.entries[untouched].as_ref().unwrap()
        ));
    }

    #[test]
    fn nodes_go_with_the_last_value() {
        let mut tree = Radix::<u8>::new();
        for key in [1, 5_000, 200_000] {
            tree.insert(key, 0);
        }
        for key in [1, 5_000, 200_000] {
            tree.remove(key);
        }
        assert!(tree.is_empty());
        assert_eq!(tree.root.entries.iter().flatten().count(), 0);
    }

    #[test]
    fn counts_share_no_cache_line_with_entries() {
        assert!(COUNTS + offset_of!(Leaf<u64>, entries) >= 64);
        assert!(COUNTS + offset_of!(Root<u64, FANOUT>, entries) >= 64);
    }
}
