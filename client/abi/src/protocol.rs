//! The shared-memory protocols, both halves side by side, over any kind of atomic word so that loom checks the
//! very code that runs (`tests/loom.rs`).
//!
//! Both protocols are a store, a full fence and a load on either side (Dekker): at least one of the two sees
//! the other, so a wake cannot be lost.
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// An atomic u32, real or modelled.
pub trait Word32 {
    /// Atomic load.
    fn load(&self, order: Ordering) -> u32;
    /// Atomic store.
    fn store(&self, value: u32, order: Ordering);
    /// Atomic swap.
    fn swap(&self, value: u32, order: Ordering) -> u32;
    /// Atomic and.
    fn fetch_and(&self, value: u32, order: Ordering) -> u32;
    /// Atomic compare and exchange (strong); on failure, what stood there.
    fn compare_exchange(&self, current: u32, new: u32, ok: Ordering, failed: Ordering) -> Result<u32, u32>;
    /// A fence of the same kind of memory.
    fn fence(order: Ordering);
}

/// An atomic u64, real or modelled.
pub trait Word64 {
    /// Atomic or.
    fn fetch_or(&self, value: u64, order: Ordering) -> u64;
    /// Atomic swap.
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// Atomic load.
    fn load(&self, order: Ordering) -> u64;
}

impl Word32 for AtomicU32 {
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }
    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order)
    }
    #[inline]
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        AtomicU32::swap(self, value, order)
    }
    #[inline]
    fn fetch_and(&self, value: u32, order: Ordering) -> u32 {
        AtomicU32::fetch_and(self, value, order)
    }
    #[inline]
    fn compare_exchange(&self, current: u32, new: u32, ok: Ordering, failed: Ordering) -> Result<u32, u32> {
        AtomicU32::compare_exchange(self, current, new, ok, failed)
    }
    #[inline]
    fn fence(order: Ordering) {
        fence(order)
    }
}

impl Word64 for AtomicU64 {
    #[inline]
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::fetch_or(self, value, order)
    }
    #[inline]
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::swap(self, value, order)
    }
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }
}

/// Producer of a ring: publishes `tail`. The entries before it are complete.
#[inline]
pub fn publish<W: Word32>(tail_word: &W, tail: u32) {
    tail_word.store(tail, Ordering::Release);
}

/// Consumer of a ring: how many entries wait from `next` on, which may now be read. `None` when there would be more
/// than `depth`: the word was forged.
#[inline]
pub fn available<W: Word32>(tail_word: &W, next: u32, depth: u32) -> Option<u32> {
    let available = tail_word.load(Ordering::Acquire).wrapping_sub(next);
    (available <= depth).then_some(available)
}

/// Consumer of a ring: gives the entries before `next` back. It has read them.
#[inline]
pub fn give_back<W: Word32>(head_word: &W, next: u32) {
    head_word.store(next, Ordering::Release);
}

/// Producer of a ring: the index up to which entries were given back, and may now be written again. Not checked: what
/// lies between it and the producer's own index is at most the depth, unless the word was forged.
#[inline]
pub fn given_back<W: Word32>(head_word: &W) -> u32 {
    head_word.load(Ordering::Acquire)
}

/// Client, after posting: publishes `tail` and tells whether the core must be kicked.
#[inline]
pub fn publish_tail<W: Word32>(tail_word: &W, tail: u32, need_kick: &W) -> bool {
    publish(tail_word, tail);
    W::fence(Ordering::SeqCst);
    need_kick.load(Ordering::Relaxed) != 0
}

/// Core, before it stops looking at a queue: asks to be kicked and tells whether the queue is still at
/// `seen`. When it is not, the core keeps the queue (and clears the request with [`keep_queue`]).
#[inline]
pub fn drop_queue<W: Word32>(tail_word: &W, seen: u32, need_kick: &W) -> bool {
    need_kick.store(1, Ordering::Relaxed);
    W::fence(Ordering::SeqCst);
    tail_word.load(Ordering::Acquire) == seen
}

/// Core: takes the queue back into its own polling.
#[inline]
pub fn keep_queue<W: Word32>(need_kick: &W) {
    need_kick.store(0, Ordering::Relaxed);
}

/// Client: sets the doorbell bit of `slot`, level 0 before level 1, and tells whether the core sleeps and
/// must be woken.
#[inline]
pub fn ring_doorbell<L: Word64, W: Word32>(level0: &L, level1: &L, slot: u32, sleeping: &W) -> bool {
    level0.fetch_or(1 << (slot % 64), Ordering::Release);
    level1.fetch_or(1 << (slot / 64 % 64), Ordering::Release);
    W::fence(Ordering::SeqCst);
    sleeping.load(Ordering::Relaxed) != 0
}

/// Core: takes all bits of a doorbell word.
#[inline]
pub fn take_doorbells<L: Word64>(word: &L) -> u64 {
    if word.load(Ordering::Relaxed) == 0 {
        0
    } else {
        word.swap(0, Ordering::Acquire)
    }
}

/// Core, before it sleeps: announces it. The caller then looks at every doorbell once more.
#[inline]
pub fn announce_sleep<W: Word32>(sleeping: &W) {
    sleeping.store(1, Ordering::Relaxed);
    W::fence(Ordering::SeqCst);
}

/// Client: arms a CQ with `kind` and, by the fence, makes sure that either the caller's following look at the
/// tails sees a completion or the daemon sees the arm word.
#[inline]
pub fn arm_cq<W: Word32>(arm: &W, kind: u32) {
    arm.store(kind, Ordering::Relaxed);
    W::fence(Ordering::SeqCst);
}

/// Client, after its CQ has moved: arms the new word for what the old one was armed for; [`crate::arm::NONE`] when it was
/// not, or the daemon took it, which then wakes. The caller looks at the new tails afterwards: whatever it finds there
/// came before the arming, and wakes nobody, unless it takes the word itself ([`take_arm`]) and sees to it.
#[inline]
pub fn move_arm<W: Word32>(old: &W, new: &W) -> u32 {
    let kind = old.swap(crate::arm::NONE, Ordering::AcqRel);
    if kind != crate::arm::NONE {
        arm_cq(new, kind);
    }
    kind
}

/// Daemon, after publishing completions that may wait for more: whether the client is to be woken in the end, by
/// [`take_arm`]. When not, it arms and looks at the tails later, if at all.
#[inline]
pub fn is_armed<W: Word32>(arm: &W, solicited: bool) -> bool {
    W::fence(Ordering::SeqCst);
    match arm.load(Ordering::Relaxed) {
        crate::arm::NONE => false,
        crate::arm::SOLICITED => solicited,
        _ => true,
    }
}

/// Daemon, after publishing completions: tells whether the client must be woken, and disarms. `solicited` is
/// whether one of the completions was solicited or an error.
#[inline]
pub fn take_arm<W: Word32>(arm: &W, solicited: bool) -> bool {
    W::fence(Ordering::SeqCst);
    match arm.load(Ordering::Relaxed) {
        crate::arm::NONE => false,
        crate::arm::SOLICITED if !solicited => false,
        _ => arm.swap(crate::arm::NONE, Ordering::AcqRel) != crate::arm::NONE,
    }
}
