//! Reading memory that others write.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

/// Fills `own` from `src`, reading each byte exactly once.
///
/// A plain copy does not promise that: of a copy to `own` followed by one of `own` to elsewhere the compiler makes two
/// copies from `src`, and between these the bytes may change. It may not repeat an atomic load.
///
/// # Safety
/// `src` is mapped for `own.len()` bytes, and nobody holds an exclusive reference to any of them.
#[inline]
pub(crate) unsafe fn read_once(own: &mut [u8], src: *const u8) {
    const WORD: usize = size_of::<usize>();
    let src = src.cast_mut();
    let mut at = 0;
    while at < own.len() {
        // SAFETY: `at < own.len()`.
        let from = unsafe { src.add(at) };
        if own.len() - at >= WORD && from.addr().is_multiple_of(WORD) {
            // SAFETY: a whole word is left, and it is aligned; it is only loaded from.
            let word = unsafe { AtomicUsize::from_ptr(from.cast()) }.load(Relaxed);
            own[at..at + WORD].copy_from_slice(&word.to_ne_bytes());
            at += WORD;
        } else {
            // SAFETY: a byte is left; it is only loaded from.
            own[at] = unsafe { AtomicU8::from_ptr(from) }.load(Relaxed);
            at += 1;
        }
    }
}
