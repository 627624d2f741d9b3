//! What waits for a grace period on the control thread.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::{Epoch, Qsbr};

#[derive(Debug)]
struct Retired<T> {
    item: T,
    epoch: Epoch,
    bytes: usize,
    since: Instant,
}

/// The item that has waited longest; see [`Reclaimer::oldest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oldest {
    /// The epoch it waits for: give it to [`Qsbr::laggards`] to learn on whom.
    pub epoch: Epoch,
    /// How long it has waited.
    pub age: Duration,
}

/// An item that waits; see [`Reclaimer::iter`].
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a, T> {
    /// The item.
    pub item: &'a T,
    /// The epoch it waits for.
    pub epoch: Epoch,
    /// What freeing it gives back.
    pub bytes: usize,
    /// Since when it has waited.
    pub since: Instant,
}

/// Items waiting for their grace period, in order of epoch. Owned by one thread, which may block and allocate: the
/// control thread. Dropping it drops what still waits, without regard to readers: they must be gone.
#[derive(Debug)]
pub struct Reclaimer<T> {
    queue: VecDeque<Retired<T>>,
    /// Scratch of `poll`, kept for its capacity.
    refused: Vec<Retired<T>>,
    bytes: usize,
}

impl<T> Default for Reclaimer<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Reclaimer<T> {
    /// An empty reclaimer.
    pub const fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            refused: Vec::new(),
            bytes: 0,
        }
    }

    /// Takes `item`, unpublished before the [`Qsbr::advance`] that returned `epoch`. `bytes` is what freeing it gives
    /// back, for [`bytes_waiting`](Self::bytes_waiting).
    pub fn retire(&mut self, item: T, epoch: Epoch, bytes: usize) {
        self.retire_since(item, epoch, bytes, Instant::now());
    }

    /// [`retire`](Self::retire) of one of a batch: the clock, which costs more than the rest, is looked at once for all.
    pub fn retire_since(&mut self, item: T, epoch: Epoch, bytes: usize, since: Instant) {
        let retired = Retired {
            item,
            epoch,
            bytes,
            since,
        };
        // Epochs come in order unless the caller batches oddly: this is an append.
        let at = match self.queue.back() {
            Some(last) if last.epoch > epoch => self.queue.partition_point(|r| r.epoch <= epoch),
            _ => self.queue.len(),
        };
        self.queue.insert(at, retired);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Offers to `free` every item whose grace period is over, oldest first, and returns how many it took. An item
    /// given back by `Err` is not free yet for other reasons (a snapshot with another owner, say), and is offered again
    /// by the next `poll`. Never waits.
    pub fn poll(&mut self, qsbr: &Qsbr, mut free: impl FnMut(T) -> Result<(), T>) -> usize {
        if self.queue.is_empty() {
            return 0;
        }
        let passed = qsbr.passed();
        let mut freed = 0;
        while self.queue.front().is_some_and(|first| first.epoch <= passed) {
            let Some(Retired {
                item,
                epoch,
                bytes,
                since,
            }) = self.queue.pop_front()
            else {
                break;
            };
            match free(item) {
                Ok(()) => {
                    self.bytes = self.bytes.saturating_sub(bytes);
                    freed += 1;
                }
                Err(item) => self.refused.push(Retired {
                    item,
                    epoch,
                    bytes,
                    since,
                }),
            }
        }
        while let Some(retired) = self.refused.pop() {
            self.queue.push_front(retired);
        }
        freed
    }

    /// Bytes not given back yet: what the bound on creating new objects looks at.
    pub fn bytes_waiting(&self) -> usize {
        self.bytes
    }

    /// The item that waits for the earliest epoch, and its age at `now`; `None` if nothing waits.
    pub fn oldest(&self, now: Instant) -> Option<Oldest> {
        let first = self.queue.front()?;
        Some(Oldest {
            epoch: first.epoch,
            age: now.saturating_duration_since(first.since),
        })
    }

    /// What waits, in order of epoch: for reports.
    pub fn iter(&self) -> impl Iterator<Item = Waiting<'_, T>> {
        self.queue.iter().map(|retired| Waiting {
            item: &retired.item,
            epoch: retired.epoch,
            bytes: retired.bytes,
            since: retired.since,
        })
    }

    /// Number of items waiting.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
