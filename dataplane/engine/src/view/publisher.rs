//! The control thread's side of views.
use std::sync::Arc;

use arc_swap::ArcSwap;
use rnic_qsbr::{Epoch, Qsbr};

use super::{
    CoreView, Entry as _, Kind, Leaf, Radix, Tables, ViewCache, generation_of, reuse::ReuseCheck, slot_of,
};

struct Slot {
    published: Arc<ArcSwap<CoreView>>,
    /// The QPs of this core.
    qps: Radix<Leaf>,
    changed: bool,
}

/// Builds and publishes the views of all cores. Owned by the control thread.
///
/// Any number of changes go out with one [`Publisher::commit`]: a burst of creates and destroys costs each core one
/// swapped pointer and everybody one grace period.
pub struct Publisher {
    qsbr: Arc<Qsbr>,
    cores: Vec<Slot>,
    /// The kinds that all views share.
    shared: Tables<Leaf>,
    shared_changed: bool,
    steering: [u16; 256],
    empty: Arc<ArcSwap<CoreView>>,
    commits: u64,
    reuse: ReuseCheck,
}

/// A view that was replaced: to be kept until its epoch has passed *and* [`RetiredView::try_free`] succeeds.
pub struct RetiredView(Arc<CoreView>);

impl RetiredView {
    /// Bytes that are certainly released with it.
    pub const BYTES: usize = size_of::<CoreView>();

    /// Frees the view when no core holds it any more, else gives it back.
    pub fn try_free(mut self) -> Result<(), Self> {
        match Arc::get_mut(&mut self.0) {
            Some(_) => Ok(()),
            None => Err(self),
        }
    }
}

impl Publisher {
    /// The core that is to own `qpn` where there are so many of them, at least one.
    pub fn spread(qpn: u32, cores: usize) -> u16 {
        ((qpn & 0xff) as usize % cores) as u16
    }

    /// Views for `cores` poll cores; `QPN & 0xff` is spread over them evenly.
    pub fn new(qsbr: Arc<Qsbr>, cores: usize) -> Self {
        let empty = Arc::new(ArcSwap::from_pointee(CoreView::empty()));
        let steering = std::array::from_fn(|i| Self::spread(i as u32, cores.max(1)));
        let slot = || Slot {
            published: Arc::new(ArcSwap::from_pointee(CoreView {
                steering,
                ..CoreView::empty()
            })),
            qps: Radix::new(),
            changed: false,
        };
        Publisher {
            qsbr,
            cores: (0..cores).map(|_| slot()).collect(),
            shared: Tables::new(),
            shared_changed: false,
            steering,
            empty,
            commits: 0,
            reuse: ReuseCheck::default(),
        }
    }

    /// The cache of one core.
    pub fn cache(&self, core: usize) -> ViewCache {
        ViewCache::new(self.cores[core].published.clone(), self.empty.clone())
    }

    /// The core that owns numbers like `qpn`.
    pub fn owner(&self, qpn: u32) -> u16 {
        self.steering[(qpn & 0xff) as usize]
    }

    /// Makes a completely initialised object findable with the next commit. A QP is found by the core of its leaf, which
    /// is the [`Publisher::owner`] of its number; everything else by all. Returns the leaf whose place it took.
    pub fn add(&mut self, kind: Kind, number: u32, leaf: Leaf) -> Option<Leaf> {
        self.reuse.added(kind, slot_of(number), &self.qsbr);
        if kind.is_sharded() {
            debug_assert_eq!(leaf.core, self.owner(number), "{kind:?} {number:#x}");
            let core = &mut self.cores[usize::from(leaf.core)];
            core.changed = true;
            core.qps.insert(slot_of(number), leaf)
        } else {
            self.shared_changed = true;
            self.shared.add(kind, number, leaf)
        }
    }

    /// What the next commit will have under this number.
    pub fn get(&self, kind: Kind, number: u32) -> Option<Leaf> {
        if !kind.is_sharded() {
            return self.shared.get(kind, number);
        }
        let core = &self.cores[usize::from(self.owner(number))];
        let leaf = core.qps.get(slot_of(number))?;
        (Some(leaf.generation()) == generation_of(number)).then_some(leaf)
    }

    /// Makes an object unfindable with the next commit. A number of an earlier user of the slot removes nothing.
    pub fn remove(&mut self, kind: Kind, number: u32) -> Option<Leaf> {
        let leaf = self.get(kind, number)?;
        self.reuse.removed(kind, slot_of(number));
        if kind.is_sharded() {
            let core = &mut self.cores[usize::from(leaf.core)];
            core.changed = true;
            core.qps.remove(slot_of(number))
        } else {
            self.shared_changed = true;
            self.shared.remove(kind, number)
        }
    }

    /// Whether there is anything to commit.
    pub fn is_dirty(&self) -> bool {
        self.shared_changed || self.cores.iter().any(|c| c.changed)
    }

    /// How often views were published.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Swaps the views of all changed cores, then advances the epoch once. `retire` gets each replaced view;
    /// when the returned epoch has passed, no core finds what was removed.
    pub fn commit(&mut self, mut retire: impl FnMut(RetiredView, Epoch)) -> Epoch {
        self.commits += 1;
        let all = std::mem::take(&mut self.shared_changed);
        let mut replaced = Vec::new();
        for core in self.cores.iter_mut().filter(|c| c.changed || all) {
            core.changed = false;
            let mut tables = self.shared.clone();
            *tables.of_mut(Kind::Qp) = core.qps.clone();
            let view = Arc::new(CoreView {
                tables,
                steering: self.steering,
            });
            replaced.push(core.published.swap(view));
        }
        let epoch = self.qsbr.advance();
        self.reuse.committed(epoch);
        for view in replaced {
            retire(RetiredView(view), epoch);
        }
        epoch
    }
}

#[cfg(test)]
mod tests {
    use super::super::number;
    use super::*;

    fn commit(publisher: &mut Publisher) -> Epoch {
        publisher.commit(|_, _| {})
    }

    #[test]
    fn a_qp_is_found_by_its_owner_alone_and_an_address_handle_by_all() {
        let qsbr = Arc::new(Qsbr::new(2));
        let mut publisher = Publisher::new(qsbr, 2);
        let (qpn, ah) = (number(5, 1), number(9, 1));
        publisher.add(Kind::Qp, qpn, Leaf::new(qpn, 1, 5));
        publisher.add(Kind::Ah, ah, Leaf::new(ah, 0, 9));
        let mut caches = [publisher.cache(0), publisher.cache(1)];
        caches.iter_mut().for_each(ViewCache::acquire);
        assert_eq!(caches[1].refresh().qp(qpn), None, "found before it was published");
        commit(&mut publisher);
        let found = caches.each_mut().map(|cache| {
            let view = cache.refresh();
            (view.qp(qpn).is_some(), view.find(Kind::Ah, ah).is_some())
        });
        assert_eq!(found, [(false, true), (true, true)]);
        assert!(publisher.remove(Kind::Ah, ah).is_some());
        assert!(publisher.remove(Kind::Ah, ah).is_none());
        commit(&mut publisher);
        assert!(
            caches
                .each_mut()
                .map(|c| c.refresh().find(Kind::Ah, ah).is_none())
                .iter()
                .all(|gone| *gone)
        );
        assert_eq!(publisher.commits(), 2);
    }

    #[test]
    fn a_number_of_an_earlier_owner_removes_nobody_else() {
        let mut publisher = Publisher::new(Arc::new(Qsbr::new(1)), 1);
        for kind in Kind::ALL {
            let (old, new) = (number(5, 1), number(5, 2));
            publisher.add(kind, new, Leaf::new(new, 0, 5));
            assert_eq!(publisher.remove(kind, old), None, "{kind:?}");
            assert_eq!(publisher.get(kind, new), Some(Leaf::new(new, 0, 5)));
        }
    }
}
