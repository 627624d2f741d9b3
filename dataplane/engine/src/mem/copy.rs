//! Copies of payload, most of which is a few bytes.
use std::ptr;

/// Copies `len` bytes, as `ptr::copy` does; up to 64 without a call.
///
/// # Safety
/// Both are mapped for `len` bytes. They may overlap, and others may write to either: whatever bytes are copied then.
#[inline(always)] // the call would cost more than most copies
pub unsafe fn copy_bytes(src: *const u8, dst: *mut u8, len: usize) {
    // Two parts that overlap make any length between theirs and twice as much; both are read before either is written.
    macro_rules! two_of {
        ($t:ty) => {{
            let second = len - size_of::<$t>();
            // SAFETY: `len` is at least the size of one part, so both lie within the caller's ranges; nothing is assumed
            // of alignment.
            unsafe {
                let parts = (
                    src.cast::<$t>().read_unaligned(),
                    src.add(second).cast::<$t>().read_unaligned(),
                );
                dst.cast::<$t>().write_unaligned(parts.0);
                dst.add(second).cast::<$t>().write_unaligned(parts.1);
            }
        }};
    }
    match len {
        0 => {}
        33..=64 => two_of!([u64; 4]),
        16..=32 => two_of!(u128),
        8..16 => two_of!(u64),
        4..8 => two_of!(u32),
        // SAFETY: the caller's promise.
        _ => unsafe { ptr::copy(src, dst, len) },
    }
}

#[cfg(test)]
mod tests {
    use super::copy_bytes;

    #[test]
    fn every_short_length_is_copied_and_nothing_beside_it_apart_or_overlapping() {
        let source: Vec<u8> = (1..=100).collect();
        for len in 0..=70 {
            let mut target = [0u8; 100];
            // SAFETY: both have 100 bytes, of which at most 5 + 70 are used.
            unsafe { copy_bytes(source[3..].as_ptr(), target[5..].as_mut_ptr(), len) };
            assert_eq!(target[5..5 + len], source[3..3 + len], "{len}");
            assert!(
                target[..5].iter().chain(&target[5 + len..]).all(|b| *b == 0),
                "{len}"
            );
            for shift in [1, 7, 9] {
                let mut both: Vec<u8> = (1..=100).collect();
                let base = both.as_mut_ptr();
                // SAFETY: at most 9 + 70 of 100 bytes.
                unsafe { copy_bytes(base, base.add(shift), len) };
                assert_eq!(both[shift..shift + len], source[..len], "{len} by {shift}");
            }
        }
    }
}
