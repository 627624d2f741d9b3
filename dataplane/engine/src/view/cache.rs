//! A poll core's hold on its current view: the one place that touches `arc_swap` on a poll core.
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::CoreView;

/// The view a core works with. Made on the thread that starts the core and moved in, returned by join.
///
/// Dropping a held view here never frees it: the publisher's slot holds the current one, and the reclaimer
/// holds every older one until it owns the last reference.
pub struct ViewCache {
    source: Arc<ArcSwap<CoreView>>,
    current: Cache<Arc<ArcSwap<CoreView>>, Arc<CoreView>>,
    offline: Cache<Arc<ArcSwap<CoreView>>, Arc<CoreView>>,
}

impl ViewCache {
    /// A cache of what `source` publishes, offline.
    pub(super) fn new(source: Arc<ArcSwap<CoreView>>, empty: Arc<ArcSwap<CoreView>>) -> Self {
        ViewCache {
            source,
            current: Cache::new(empty.clone()),
            offline: Cache::new(empty),
        }
    }

    /// The newest view. Call after the epoch was observed; no allocation, no lock.
    #[inline]
    pub fn refresh(&mut self) -> &CoreView {
        self.current.load()
    }

    /// Lets go of the view, before the core reports itself offline.
    pub fn release(&mut self) {
        self.current = self.offline.clone();
    }

    /// Takes hold of the newest view, after the core came online.
    pub fn acquire(&mut self) {
        self.current = Cache::new(self.source.clone());
    }
}
