//! A fixed-capacity list of buffers: the unit in which frames move.

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::slice;

use crate::ffi;
use crate::mbuf::Mbuf;

/// Up to `N` owned buffers in order, without allocation. What is left in it when it is dropped is
/// freed in bulk. Derefs to `[Mbuf]`.
pub struct Burst<const N: usize = 32> {
    bufs: [MaybeUninit<Mbuf>; N],
    len: usize,
}

impl<const N: usize> Burst<N> {
    const FITS_U16: () = assert!(N <= u16::MAX as usize, "DPDK counts bursts in 16 bits");

    /// An empty burst.
    pub const fn new() -> Self {
        let () = Self::FITS_U16;
        Burst {
            bufs: [const { MaybeUninit::uninit() }; N],
            len: 0,
        }
    }

    /// How many more buffers fit.
    pub fn spare(&self) -> usize {
        N - self.len
    }

    /// Appends a buffer.
    ///
    /// # Errors
    /// Hands it back if the burst is full.
    pub fn push(&mut self, buf: Mbuf) -> Result<(), Mbuf> {
        match self.bufs.get_mut(self.len) {
            Some(slot) => {
                slot.write(buf);
                self.len += 1;
                Ok(())
            }
            None => Err(buf),
        }
    }

    /// Takes the last buffer.
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: slots below the old length are initialised, and this one is now beyond it.
        Some(unsafe { self.bufs[self.len].assume_init_read() })
    }

    /// Takes buffer `index`, putting the last one in its place. `None` beyond the end.
    pub fn swap_remove(&mut self, index: usize) -> Option<Mbuf> {
        let last = self.len.checked_sub(1)?;
        if index > last {
            return None;
        }
        self.swap(index, last);
        self.pop()
    }

    /// Takes all buffers in order; those not taken when the iterator is dropped are freed.
    pub fn drain(&mut self) -> Drain<'_, N> {
        // The iterator owns them from here, even if it is leaked.
        let end = std::mem::take(&mut self.len);
        Drain {
            burst: self,
            next: 0,
            end,
        }
    }

    /// Frees all buffers.
    pub fn clear(&mut self) {
        let len = std::mem::take(&mut self.len);
        // SAFETY: these slots were initialised, and the length already excludes them.
        unsafe { free_bulk(&mut self.bufs[..len]) };
    }

    /// Makes every frame one segment, and drops those that are too long for it. Returns how many
    /// were dropped. Order is not kept when some are.
    pub fn linearise_all(&mut self) -> usize {
        let mut dropped = 0;
        let mut index = 0;
        while let Some(buf) = self.get_mut(index) {
            match buf.linearise() {
                Ok(()) => index += 1,
                Err(_) => {
                    drop(self.swap_remove(index));
                    dropped += 1;
                }
            }
        }
        dropped
    }

    /// The free slots, for DPDK to fill: address of the first, and how many.
    pub(crate) fn spare_raw(&mut self) -> (*mut *mut ffi::rte_mbuf, usize) {
        let spare = &mut self.bufs[self.len..];
        (spare.as_mut_ptr().cast(), spare.len())
    }

    /// Counts `n` more slots as filled.
    ///
    /// # Safety
    /// The first `n` slots of [`Burst::spare_raw`] must hold buffers owned by nobody else.
    pub(crate) unsafe fn grow(&mut self, n: usize) {
        debug_assert!(n <= self.spare());
        self.len += n;
    }

    /// The filled slots, for DPDK to take from: address of the first, and how many.
    pub(crate) fn filled_raw(&mut self) -> (*mut *mut ffi::rte_mbuf, usize) {
        (self.bufs.as_mut_ptr().cast(), self.len)
    }

    /// Drops the first `n` slots from the list without freeing them; the others move up.
    ///
    /// # Safety
    /// Somebody else must own those buffers now, and `n` must not pass the length.
    pub(crate) unsafe fn forget_front(&mut self, n: usize) {
        debug_assert!(n <= self.len);
        let rest = self.len - n;
        let base = self.bufs.as_mut_ptr();
        // SAFETY: slots n..n + rest are initialised and within the array; copy allows overlap.
        unsafe { std::ptr::copy(base.add(n), base, rest) };
        self.len = rest;
    }
}

impl<const N: usize> Default for Burst<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Deref for Burst<N> {
    type Target = [Mbuf];

    fn deref(&self) -> &[Mbuf] {
        // SAFETY: the first `len` slots are initialised.
        unsafe { slice::from_raw_parts(self.bufs.as_ptr().cast(), self.len) }
    }
}

impl<const N: usize> DerefMut for Burst<N> {
    fn deref_mut(&mut self) -> &mut [Mbuf] {
        // SAFETY: the first `len` slots are initialised.
        unsafe { slice::from_raw_parts_mut(self.bufs.as_mut_ptr().cast(), self.len) }
    }
}

impl<const N: usize> Drop for Burst<N> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// See [`Burst::drain`].
pub struct Drain<'a, const N: usize> {
    burst: &'a mut Burst<N>,
    next: usize,
    end: usize,
}

impl<const N: usize> Iterator for Drain<'_, N> {
    type Item = Mbuf;

    fn next(&mut self) -> Option<Mbuf> {
        if self.next == self.end {
            return None;
        }
        let index = self.next;
        self.next += 1;
        // SAFETY: slots from `next` to `end` are initialised and owned by this iterator; this one is
        // now behind `next`.
        Some(unsafe { self.burst.bufs[index].assume_init_read() })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl<const N: usize> ExactSizeIterator for Drain<'_, N> {}

impl<const N: usize> Drop for Drain<'_, N> {
    fn drop(&mut self) {
        // SAFETY: these slots are initialised, and nobody will look at them again.
        unsafe { free_bulk(&mut self.burst.bufs[self.next..self.end]) };
    }
}

/// Frees the buffers in `slots`, whose pools may differ.
///
/// # Safety
/// All slots must be initialised, and must not be used afterwards.
unsafe fn free_bulk(slots: &mut [MaybeUninit<Mbuf>]) {
    if !slots.is_empty() {
        // SAFETY: an array of Mbuf is an array of pointers to owned buffers.
        unsafe { ffi::rte_pktmbuf_free_bulk(slots.as_mut_ptr().cast(), slots.len() as u32) };
    }
}
