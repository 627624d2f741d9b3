//! The reclaimer: what waits for a grace period, what is freed after it, and who holds it up.
use std::{
    any::Any,
    time::{Duration, Instant},
};

use rnic_qsbr::{Epoch, ParticipantState, Waiting};

use crate::{engine::Engine, nonblocking::might_block, quarantine, retire::Retired, view::RetiredView};

/// Replaced views that may wait although their time is over.
pub(crate) const VIEWS_KEPT: usize = 64;

/// What waits for one core; see [`Engine::held_up_by`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldUp {
    /// Replaced views.
    pub views: usize,
    /// Everything else.
    pub others: usize,
    /// Bytes of them.
    pub bytes: usize,
    /// How long the oldest has waited.
    pub oldest: Duration,
}

pub(crate) enum Garbage {
    Object(Retired),
    Other(#[allow(dead_code, reason = "kept only to be dropped")] Box<dyn Any + Send>),
}

impl Engine {
    /// Takes in what cores gave up of themselves. The epoch it waits for is begun after it was collected (DESIGN I7).
    pub(crate) fn collect(&mut self) {
        for core in &mut self.cores {
            core.retired.collect(|what| self.batch.push(what));
        }
        if self.batch.is_empty() {
            return;
        }
        let (epoch, now) = (self.qsbr.advance(), Instant::now());
        for what in self.batch.drain(..) {
            let bytes = what.bytes();
            self.reclaimer
                .retire_since(Garbage::Object(what), epoch, bytes, now);
        }
    }

    /// Frees what has waited long enough. It may unmap, and run any destructor.
    pub(crate) fn reclaim(&mut self) {
        might_block();
        self.reclaimer.poll(&self.qsbr, |garbage| match garbage {
            Garbage::Object(what) => {
                quarantine::bury(what);
                Ok(())
            }
            Garbage::Other(what) => {
                drop(what);
                Ok(())
            }
        });
    }

    /// Frees the replaced views that no core can hold any more: many counts and small pieces, which nobody should wait
    /// for. To be called before the thread sleeps; [`Engine::poll`] does it only when there are many.
    pub fn tidy(&mut self) {
        might_block();
        self.views.poll(&self.qsbr, RetiredView::try_free);
    }

    /// Invalidates a key: no packet handled from now on finds it. Whoever was about to use it has done so when
    /// the returned epoch has passed ([`Engine::is_past`]); only then may its memory go. Preallocated state only:
    /// it can neither fail nor wait, wherever it is called.
    pub fn invalidate(&self, key: u32) -> Epoch {
        self.mrs().invalidate(key);
        self.qsbr.advance()
    }

    /// Whether every core has passed a quiescent state since `epoch` began. Unlike [`Engine::passed`] it frees
    /// nothing, so that it may be asked where one must not block.
    pub fn is_past(&self, epoch: Epoch) -> bool {
        self.qsbr.check(epoch)
    }

    /// The current epoch: grows by one with each publication and each grace period begun.
    pub fn epoch(&self) -> Epoch {
        self.qsbr.epoch()
    }

    /// Begins a grace period without a publication.
    pub fn start_grace(&mut self) -> Epoch {
        let epoch = self.qsbr.advance();
        self.opened(epoch);
        epoch
    }

    /// An epoch was opened: what has come back before waits for it.
    pub(crate) fn opened(&mut self, epoch: Epoch) {
        if !self.unopened.is_empty() {
            let now = Instant::now();
            for what in self.unopened.drain(..) {
                self.reclaimer.retire_since(Garbage::Object(what), epoch, 0, now);
            }
        }
    }

    /// Whether every core has passed a quiescent state since `epoch` began. If so, everything that was retired before
    /// is freed when this returns, but for replaced views.
    pub fn passed(&mut self, epoch: Epoch) -> bool {
        // Even when there is nothing to free this time.
        might_block();
        let passed = self.qsbr.check(epoch);
        if passed {
            self.reclaim();
        }
        passed
    }

    /// Drops `what` on this thread when `epoch` has passed.
    pub fn retire(&mut self, what: Box<dyn Any + Send>, epoch: Epoch, bytes: usize) {
        self.reclaimer.retire(Garbage::Other(what), epoch, bytes);
    }

    /// Bytes that wait for a grace period: replaced views and whatever else was given up. Not what commands removed,
    /// which whoever gave the commands has to account for.
    pub fn bytes_awaiting_grace(&self) -> usize {
        self.reclaimer.bytes_waiting() + self.views.bytes_waiting()
    }

    /// How long the oldest of them has waited.
    pub fn oldest_grace(&self) -> Option<Duration> {
        let now = Instant::now();
        let oldest = [self.reclaimer.oldest(now), self.views.oldest(now)];
        oldest.into_iter().flatten().map(|oldest| oldest.age).max()
    }

    /// Cores that hold up the grace period of `epoch`.
    pub fn laggards(&self, epoch: Epoch) -> Vec<usize> {
        self.qsbr.laggards(epoch).collect()
    }

    /// Looks whether the cores go on. To be called every 100 ms or so; [`Engine::stalled`] then tells.
    pub fn watch(&mut self, now: Instant) {
        self.watch
            .look(&self.qsbr, self.cores.iter().map(|core| core.traffic), now);
    }

    /// For how long a core has neither passed a quiescent state nor answered a command, when that is longer than
    /// [`STALLED_AFTER`](crate::STALLED_AFTER). `now` as for the last [`Engine::watch`], or later.
    pub fn stalled(&self, core: usize, now: Instant) -> Option<Duration> {
        self.watch.stalled(core, now)
    }

    /// Commands that a core has not answered.
    pub fn unanswered(&self, core: usize) -> u64 {
        let traffic = self.cores[core].traffic;
        traffic.asked - traffic.answered
    }

    /// What waits in the reclaimer for this core: number and bytes of replaced views and of others that
    /// [`Engine::bytes_awaiting_grace`] counts, and the age of the oldest.
    pub fn held_up_by(&self, core: usize, now: Instant) -> HeldUp {
        let mut held = HeldUp::default();
        let ParticipantState::Online { reported } = self.qsbr.state(core) else {
            return held;
        };
        fn count<T>(held: &mut HeldUp, w: Waiting<'_, T>, reported: Epoch, now: Instant) -> usize {
            if w.epoch <= reported || w.bytes == 0 {
                return 0;
            }
            held.bytes += w.bytes;
            held.oldest = held.oldest.max(now.saturating_duration_since(w.since));
            1
        }
        for waiting in self.views.iter() {
            held.views += count(&mut held, waiting, reported, now);
        }
        for waiting in self.reclaimer.iter() {
            held.others += count(&mut held, waiting, reported, now);
        }
        held
    }
}
