//! The control thread's side of views.
use std::sync::Arc;

use arc_swap::ArcSwap;
use rnic_qsbr::{Epoch, Qsbr};

use super::{CoreView, QpLeaf, Radix, ViewCache, slot_of};

struct Slot {
    published: Arc<ArcSwap<CoreView>>,
    qps: Radix<QpLeaf>,
    changed: bool,
}

/// Builds and publishes the views of all cores. Owned by the control thread.
pub struct Publisher {
    qsbr: Arc<Qsbr>,
    cores: Vec<Slot>,
    steering: [u16; 256],
    empty: Arc<ArcSwap<CoreView>>,
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
    /// Views for `cores` poll cores; `QPN & 0xff` is spread over them evenly.
    pub fn new(qsbr: Arc<Qsbr>, cores: usize) -> Self {
        let empty = Arc::new(ArcSwap::from_pointee(CoreView::empty()));
        let steering = std::array::from_fn(|i| (i % cores.max(1)) as u16);
        let slot = || Slot {
            published: Arc::new(ArcSwap::from_pointee(CoreView {
                qps: Radix::new(),
                steering,
            })),
            qps: Radix::new(),
            changed: false,
        };
        Publisher {
            qsbr,
            cores: (0..cores).map(|_| slot()).collect(),
            steering,
            empty,
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

    /// Makes a completely initialised QP findable with the next commit.
    pub fn add_qp(&mut self, leaf: QpLeaf) {
        let core = &mut self.cores[leaf.core as usize];
        core.qps.insert(slot_of(leaf.qpn), leaf);
        core.changed = true;
    }

    /// Makes a QP unfindable with the next commit.
    pub fn remove_qp(&mut self, qpn: u32) -> Option<QpLeaf> {
        let owner = self.owner(qpn);
        let core = &mut self.cores[owner as usize];
        let leaf = core.qps.remove(slot_of(qpn));
        core.changed |= leaf.is_some();
        leaf
    }

    /// Whether there is anything to commit.
    pub fn is_dirty(&self) -> bool {
        self.cores.iter().any(|c| c.changed)
    }

    /// Swaps the views of all changed cores, then advances the epoch once. `retire` gets each replaced view;
    /// when the returned epoch has passed, no core finds what was removed.
    pub fn commit(&mut self, mut retire: impl FnMut(RetiredView, Epoch)) -> Epoch {
        let mut replaced = Vec::new();
        for core in self.cores.iter_mut().filter(|c| c.changed) {
            core.changed = false;
            let view = Arc::new(CoreView {
                qps: core.qps.clone(),
                steering: self.steering,
            });
            replaced.push(core.published.swap(view));
        }
        let epoch = self.qsbr.advance();
        for view in replaced {
            retire(RetiredView(view), epoch);
        }
        epoch
    }
}
