//! A persistent radix tree of fixed depth: three levels of 64.
//!
//! A change copies the nodes on one path that other trees still share, and no others; a lookup is three
//! dependent loads and touches no reference count.
use std::{array, fmt, sync::Arc};

const BITS: u32 = 6;
const FANOUT: usize = 1 << BITS;
const MASK: u32 = FANOUT as u32 - 1;

#[derive(Clone)]
struct Leaf<V>([Option<V>; FANOUT]);
#[derive(Clone)]
struct Inner<N>([Option<Arc<N>>; FANOUT]);

impl<V: Copy> Default for Leaf<V> {
    fn default() -> Self {
        Leaf([None; FANOUT])
    }
}

impl<N> Default for Inner<N> {
    fn default() -> Self {
        Inner(array::from_fn(|_| None))
    }
}

/// A map from small integers to `Copy` values. Cloning is one reference count.
pub struct Radix<V> {
    root: Arc<Inner<Inner<Leaf<V>>>>,
}

impl<V> Clone for Radix<V> {
    fn clone(&self) -> Self {
        Radix {
            root: self.root.clone(),
        }
    }
}

impl<V> Radix<V> {
    /// Bits of a key; larger keys are in no tree.
    pub const KEY_BITS: u32 = 3 * BITS;
}

impl<V: Copy> Radix<V> {
    /// An empty tree.
    pub fn new() -> Self {
        Radix {
            root: Arc::new(Inner::default()),
        }
    }

    /// The value at `key`.
    #[inline]
    pub fn get(&self, key: u32) -> Option<V> {
        let top = (key >> (2 * BITS)) as usize;
        let inner = self.root.0.get(top)?.as_deref()?;
        let leaf = inner.0[(key >> BITS & MASK) as usize].as_deref()?;
        leaf.0[(key & MASK) as usize]
    }

    /// Puts a value at `key` and returns the one that was there.
    ///
    /// # Panics
    /// When `key` has more than [`Radix::KEY_BITS`] bits: numbers are made by the control thread itself.
    pub fn insert(&mut self, key: u32, value: V) -> Option<V> {
        self.slot(key).replace(value)
    }

    /// Takes the value at `key` out. Nodes that become empty stay: their numbers come back.
    pub fn remove(&mut self, key: u32) -> Option<V> {
        self.get(key)?;
        self.slot(key).take()
    }

    fn slot(&mut self, key: u32) -> &mut Option<V> {
        assert!(key < 1 << Self::KEY_BITS, "key {key} does not fit the tree");
        let root = Arc::make_mut(&mut self.root);
        let inner = Arc::make_mut(root.0[(key >> (2 * BITS)) as usize].get_or_insert_default());
        let leaf = Arc::make_mut(inner.0[(key >> BITS & MASK) as usize].get_or_insert_default());
        &mut leaf.0[(key & MASK) as usize]
    }

    /// Every value, by key.
    pub fn iter(&self) -> impl Iterator<Item = V> + '_ {
        self.root
            .0
            .iter()
            .flatten()
            .flat_map(|i| i.0.iter().flatten())
            .flat_map(|l| l.0.iter().flatten().copied())
    }
}

impl<V: Copy> Default for Radix<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Copy + fmt::Debug> fmt::Debug for Radix<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_finds_what_was_inserted_and_nothing_else() {
        let mut tree = Radix::new();
        for key in [0, 1, 63, 64, 4095, 4096, 262_143] {
            assert_eq!(tree.insert(key, key * 2), None);
        }
        assert_eq!(tree.get(4096), Some(8192));
        assert_eq!(tree.get(2), None);
        assert_eq!(tree.get(262_144), None);
        assert_eq!(tree.remove(64), Some(128));
        assert_eq!(tree.get(64), None);
        assert_eq!(tree.iter().count(), 6);
    }

    #[test]
    fn a_change_leaves_older_snapshots_as_they_were_and_copies_one_path() {
        let mut tree = Radix::new();
        tree.insert(5, 'a');
        tree.insert(70_000, 'b');
        let old = tree.clone();
        tree.insert(5, 'c');
        tree.remove(6);
        assert_eq!(old.get(5), Some('a'));
        assert_eq!(tree.get(5), Some('c'));
        let untouched = (70_000 >> 12) as usize;
        assert!(Arc::ptr_eq(
            old.root.0[untouched].as_ref().unwrap(),
            tree.root.0[untouched].as_ref().unwrap()
        ));
    }
}
