//! Folding by 512-bit registers, four at a time.

use std::arch::asm;
use std::arch::x86_64::*;

use rnic_wire::Ones;

use super::{reduce, rest_of_state};
use crate::Crc;
use crate::polynomial::fold_by;

const BLOCK: usize = 64;

/// Factors for the four 128-bit lanes of a block.
#[repr(C, align(64))]
struct Factors([[u64; 2]; 4]);

/// Moves each lane forward by four blocks.
static FOLD_4: Factors = Factors([fold_by(2048); 4]);

/// `FOLD_TO_LAST[k]` moves all lanes of a block to the last lane of the block `k` further on. The last lane of
/// `FOLD_TO_LAST[0]` is there already, which no factor expresses: see [`fold_within`].
static FOLD_TO_LAST: [Factors; 7] = {
    let mut table = [const { Factors([[0; 2]; 4]) }; 7];
    let mut k = 0;
    while k < 7 {
        let mut lane = 0;
        while lane < 4 {
            let distance = 512 * k as u32 + 128 * (3 - lane as u32);
            if distance > 0 {
                table[k].0[lane] = fold_by(distance);
            }
            lane += 1;
        }
        k += 1;
    }
    table
};

pub(crate) fn kernel() -> Option<Crc> {
    // Miri knows no assembler lines.
    let usable = !cfg!(miri)
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("pclmulqdq");
    usable.then_some(Crc {
        name: "vpclmulqdq",
        update,
        update_with_ones: Some(update_with_ones),
        copy,
    })
}

/// # Safety
/// The processor has the features; `src` is readable for `len` bytes, which nobody writes meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,vpclmulqdq,pclmulqdq")]
unsafe fn update(state: u32, src: *const u8, len: usize) -> u32 {
    // SAFETY: the caller's promise; without COPY, `dst` is not used.
    unsafe { run::<false, false>(state, std::ptr::null_mut(), src, len, &NO_ONES) }
}

/// # Safety
/// As [`update`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,vpclmulqdq,pclmulqdq")]
unsafe fn update_with_ones(state: u32, src: *const u8, len: usize, ones: &Ones) -> u32 {
    // SAFETY: the caller's promise; without COPY, `dst` is not used.
    unsafe { run::<false, true>(state, std::ptr::null_mut(), src, len, ones) }
}

/// # Safety
/// The processor has the features; `src` and `dst` are mapped for `len` bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,vpclmulqdq,pclmulqdq")]
unsafe fn copy(state: u32, dst: *mut u8, src: *const u8, len: usize) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { run::<true, false>(state, dst, src, len, &NO_ONES) }
}

static NO_ONES: Ones = Ones::new(&[]);

/// # Safety
/// The processor has the features; `src` is mapped for `len` bytes, and if COPY, so is `dst`. Without ONES, `ones` has no
/// meaning.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,vpclmulqdq,pclmulqdq")]
unsafe fn run<const COPY: bool, const ONES: bool>(
    state: u32,
    dst: *mut u8,
    src: *const u8,
    len: usize,
    ones: &Ones,
) -> u32 {
    // What counts as ones of the block from `at` on, at most a block into the message.
    let ones = |at: usize| match ONES {
        // SAFETY: `at <= 64`, and there are 128 bytes.
        true => unsafe { _mm512_loadu_si512(ones.padded().as_ptr().add(at).cast()) },
        false => _mm512_setzero_si512(),
    };
    if len < BLOCK {
        // SAFETY: the caller's promise.
        return unsafe { short::<COPY>(state, dst, src, len, ones(0)) };
    }
    // SAFETY: all uses have `at + 64 <= len`.
    let take = |at: usize| unsafe {
        let block = load::<COPY>(src.add(at));
        if COPY {
            _mm512_storeu_si512(dst.add(at).cast(), block);
        }
        block
    };

    let mut first = _mm512_xor_si512(_mm512_or_si512(take(0), ones(0)), register(state));
    let mut at = BLOCK;
    let head = len % BLOCK;
    let mut rest = _mm512_setzero_si512();
    // Of the second block, which begins among the bytes that `ones` speaks of.
    let mut rest_of_ones = _mm512_setzero_si512();
    if head != 0 {
        // What was copied beyond the head is copied again with the next block.
        first = _mm512_maskz_expand_epi8(u64::MAX << (BLOCK - head), first);
        rest = register(rest_of_state(state, head));
        rest_of_ones = ones(head);
        at = head;
    }
    let mut second = |at: usize| {
        let block = _mm512_xor_si512(_mm512_or_si512(take(at), rest_of_ones), rest);
        (rest, rest_of_ones) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        block
    };

    let mut left = (len - at) / BLOCK;
    let mut sum = _mm512_setzero_si512();
    let mut last = first;
    if left >= 3 {
        let mut lanes = [first, second(at), take(at + 64), take(at + 128)];
        at += 192;
        left -= 3;
        while left >= 4 {
            for (n, lane) in lanes.iter_mut().enumerate() {
                *lane = fold_and_add(*lane, &FOLD_4, take(at + 64 * n));
            }
            at += 256;
            left -= 4;
        }
        for (n, lane) in lanes[..3].iter().enumerate() {
            sum = fold_and_add(*lane, &FOLD_TO_LAST[left + 3 - n], sum);
        }
        last = lanes[3];
    }
    while left > 0 {
        sum = fold_and_add(last, &FOLD_TO_LAST[left], sum);
        last = second(at);
        at += BLOCK;
        left -= 1;
    }
    reduce(add_lanes(fold_within(last, sum)))
}

/// Fewer than 64 bytes.
///
/// # Safety
/// As `run`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,vpclmulqdq,pclmulqdq")]
unsafe fn short<const COPY: bool>(
    state: u32,
    dst: *mut u8,
    src: *const u8,
    len: usize,
    ones: __m512i,
) -> u32 {
    let front = (1_u64 << len) - 1;
    // SAFETY: the mask leaves out what is beyond `len` bytes: it is neither read nor written.
    let bytes = unsafe {
        let bytes = load_masked::<COPY>(front, src);
        if COPY {
            _mm512_mask_storeu_epi8(dst.cast(), front, bytes);
        }
        bytes
    };
    // Ones behind the end are left out below.
    let added = _mm512_xor_si512(_mm512_or_si512(bytes, ones), register(state));
    let remainder = if len <= 16 {
        let back = (front as u16).unbounded_shl(16 - len as u32);
        reduce(_mm_maskz_expand_epi8(back, _mm512_castsi512_si128(added)))
    } else {
        let block = _mm512_maskz_expand_epi8(front << (BLOCK - len), added);
        reduce(add_lanes(fold_within(block, _mm512_setzero_si512())))
    };
    remainder ^ rest_of_state(state, len)
}

/// The CRC's register at the front of a block.
#[inline]
#[target_feature(enable = "avx512f")]
fn register(value: u32) -> __m512i {
    _mm512_zextsi128_si512(_mm_cvtsi32_si128(value as i32))
}

/// `sum` plus `block` moved forward.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
fn fold_and_add(block: __m512i, factors: &Factors, sum: __m512i) -> __m512i {
    // SAFETY: 64 bytes, aligned.
    let factors = unsafe { _mm512_load_si512((&raw const *factors).cast()) };
    let low = _mm512_clmulepi64_epi128(block, factors, 0x00);
    let high = _mm512_clmulepi64_epi128(block, factors, 0x11);
    _mm512_ternarylogic_epi64(low, high, sum, 0x96)
}

/// `sum` plus the lanes of the last block moved to its last lane.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
fn fold_within(last: __m512i, sum: __m512i) -> __m512i {
    // The factors of the last lane are zero, so it is missing in the product.
    let unmoved = _mm512_maskz_mov_epi64(0b1100_0000, last);
    fold_and_add(last, &FOLD_TO_LAST[0], _mm512_xor_si512(sum, unmoved))
}

/// The sum of the four lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn add_lanes(block: __m512i) -> __m128i {
    let half = _mm256_xor_si256(_mm512_castsi512_si256(block), _mm512_extracti64x4_epi64(block, 1));
    _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1))
}

/// Reads a block exactly once, even if SHARED with a writer: what an assembler line reads cannot be read again by the
/// compiler's choice, nor is it a data race within the program.
///
/// # Safety
/// `src` is mapped for 64 bytes, and unless SHARED, nobody writes them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const SHARED: bool>(src: *const u8) -> __m512i {
    if !SHARED {
        // SAFETY: the caller's promise.
        return unsafe { _mm512_loadu_si512(src.cast()) };
    }
    let block: __m512i;
    // SAFETY: reads 64 mapped bytes, and does nothing else.
    unsafe {
        asm!("vmovdqu64 {block}, zmmword ptr [{src}]", block = lateout(zmm_reg) block, src = in(reg) src,
            options(readonly, nostack, preserves_flags));
    }
    block
}

/// Reads the bytes of a block that `mask` has bits for, as [`load`] does; the others are zero.
///
/// # Safety
/// The bytes `mask` has bits for are mapped, and unless SHARED, nobody writes them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_masked<const SHARED: bool>(mask: u64, src: *const u8) -> __m512i {
    if !SHARED {
        // SAFETY: the caller's promise.
        return unsafe { _mm512_maskz_loadu_epi8(mask, src.cast()) };
    }
    let block: __m512i;
    // SAFETY: reads mapped bytes, faults of others being suppressed, and does nothing else.
    unsafe {
        asm!("vmovdqu8 {block}{{{mask}}}{{z}}, zmmword ptr [{src}]", block = lateout(zmm_reg) block,
            mask = in(kreg) mask, src = in(reg) src, options(readonly, nostack, preserves_flags));
    }
    block
}
