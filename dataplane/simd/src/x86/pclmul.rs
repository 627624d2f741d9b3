//! Folding by 128-bit registers, four at a time.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{reduce, rest_of_state};
use crate::Crc;
use crate::polynomial::fold_by;
use crate::shared::read_once;

const BLOCK: usize = 16;

/// `FOLD[k]` moves a block forward by `k` blocks.
static FOLD: [[u64; 2]; 8] = {
    let mut table = [[0; 2]; 8];
    let mut k = 1;
    while k < 8 {
        table[k] = fold_by(128 * k as u32);
        k += 1;
    }
    table
};

/// The 16 bytes from `SLIDE[h]` on, as a shuffle, move the first `h` bytes of a block to its end.
static SLIDE: [u8; 32] = {
    let mut table = [0x80; 32];
    let mut at = 16;
    while at < 32 {
        table[at] = at as u8 - 16;
        at += 1;
    }
    table
};

pub(crate) fn kernel() -> Option<Crc> {
    // Miri knows no assembler lines.
    let usable = !cfg!(miri)
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1");
    usable.then_some(Crc {
        name: "pclmulqdq",
        update,
        update_with_ones: None,
        copy: run::<true>,
    })
}

/// # Safety
/// The processor has the features; `src` is readable for `len` bytes, which nobody writes meanwhile.
#[target_feature(enable = "pclmulqdq,ssse3,sse4.1")]
unsafe fn update(state: u32, src: *const u8, len: usize) -> u32 {
    // SAFETY: the caller's promise; without COPY, `dst` is not used.
    unsafe { run::<false>(state, std::ptr::null_mut(), src, len) }
}

/// # Safety
/// The processor has the features; `src` is mapped for `len` bytes, and if COPY, so is `dst`.
#[target_feature(enable = "pclmulqdq,ssse3,sse4.1")]
unsafe fn run<const COPY: bool>(state: u32, dst: *mut u8, src: *const u8, len: usize) -> u32 {
    if len < BLOCK {
        // SAFETY: the caller's promise.
        return unsafe { short::<COPY>(state, dst, src, len) };
    }
    let register = |value: u32| _mm_cvtsi32_si128(value as i32);
    // SAFETY: all uses have `at + 16 <= len`.
    let take = |at: usize| unsafe {
        let block = load::<COPY>(src.add(at));
        if COPY {
            _mm_storeu_si128(dst.add(at).cast(), block);
        }
        block
    };

    let mut first = _mm_xor_si128(take(0), register(state));
    let mut at = BLOCK;
    let head = len % BLOCK;
    let mut rest = register(0);
    if head != 0 {
        // What was copied beyond the head is copied again with the next block.
        // SAFETY: `head + 16 <= 32`.
        let slide = unsafe { _mm_loadu_si128(SLIDE.as_ptr().add(head).cast()) };
        first = _mm_shuffle_epi8(first, slide);
        rest = register(rest_of_state(state, head));
        at = head;
    }

    let mut left = (len - at) / BLOCK;
    let mut sum = register(0);
    let mut last = first;
    if left >= 3 {
        let mut lanes = [first, _mm_xor_si128(take(at), rest), take(at + 16), take(at + 32)];
        rest = register(0);
        at += 48;
        left -= 3;
        while left >= 4 {
            for (n, lane) in lanes.iter_mut().enumerate() {
                *lane = _mm_xor_si128(fold(*lane, 4), take(at + 16 * n));
            }
            at += 64;
            left -= 4;
        }
        for (n, lane) in lanes[..3].iter().enumerate() {
            sum = _mm_xor_si128(sum, fold(*lane, left + 3 - n));
        }
        last = lanes[3];
    }
    while left > 0 {
        sum = _mm_xor_si128(sum, fold(last, left));
        last = _mm_xor_si128(take(at), rest);
        rest = register(0);
        at += BLOCK;
        left -= 1;
    }
    reduce(_mm_xor_si128(sum, last))
}

/// Fewer than 16 bytes.
///
/// # Safety
/// As `run`.
#[inline]
#[target_feature(enable = "pclmulqdq,ssse3,sse4.1")]
unsafe fn short<const COPY: bool>(state: u32, dst: *mut u8, src: *const u8, len: usize) -> u32 {
    let mut own = [0_u8; BLOCK];
    let bytes = &mut own[BLOCK - len..];
    // SAFETY: `bytes` has `len` bytes, and is ours, so that it overlaps neither range.
    unsafe {
        if COPY {
            read_once(bytes, src);
            dst.copy_from_nonoverlapping(bytes.as_ptr(), len);
        } else {
            src.copy_to_nonoverlapping(bytes.as_mut_ptr(), len);
        }
    }
    let added = u128::from(state).unbounded_shl(8 * (BLOCK - len) as u32);
    let block = u128::from_le_bytes(own) ^ added;
    reduce(_mm_set_epi64x((block >> 64) as i64, block as i64)) ^ rest_of_state(state, len)
}

/// `block` moved forward by `blocks` blocks (1 to 7).
#[inline]
#[target_feature(enable = "pclmulqdq,ssse3,sse4.1")]
fn fold(block: __m128i, blocks: usize) -> __m128i {
    let [low, high] = FOLD[blocks & 7];
    let factors = _mm_set_epi64x(high as i64, low as i64);
    _mm_xor_si128(
        _mm_clmulepi64_si128(block, factors, 0x00),
        _mm_clmulepi64_si128(block, factors, 0x11),
    )
}

/// Reads a block exactly once, even if SHARED with a writer: what an assembler line reads cannot be read again by the
/// compiler's choice, nor is it a data race within the program.
///
/// # Safety
/// `src` is mapped for 16 bytes, and unless SHARED, nobody writes them.
#[inline]
#[target_feature(enable = "sse4.1")]
unsafe fn load<const SHARED: bool>(src: *const u8) -> __m128i {
    if !SHARED {
        // SAFETY: the caller's promise.
        return unsafe { _mm_loadu_si128(src.cast()) };
    }
    let block: __m128i;
    // SAFETY: reads 16 mapped bytes, and does nothing else.
    unsafe {
        asm!("movdqu {block}, xmmword ptr [{src}]", block = lateout(xmm_reg) block, src = in(reg) src,
            options(readonly, nostack, preserves_flags));
    }
    block
}
