//! Kernels by carry-less multiplication.
//!
//! A message is its bits taken as a polynomial; bits in front can be *folded*, replaced by an equivalent further back,
//! until 128 are left, which are then divided by the CRC's polynomial.
//!
//! Zero bytes in front of a message do not change its CRC from a zero register, so the kernels complete the *first*
//! block, not the last: the message then ends with a whole block and needs no treatment of tails. The register is added
//! to the first four bytes; what does not fit into a shorter head is added to the block after it.

pub(crate) mod pclmul;
pub(crate) mod vpclmul;

use std::arch::x86_64::*;

use crate::polynomial::{FOLD_TO_96, INVERSE_64, POLYNOMIAL_33};

/// What of the register has not been added yet after `head` bytes, moved to the front.
#[inline]
fn rest_of_state(state: u32, head: usize) -> u32 {
    (u64::from(state) >> (8 * head.min(4))) as u32
}

/// The register after the 128 bits of `last`.
#[inline]
#[target_feature(enable = "pclmulqdq,sse4.1")]
fn reduce(last: __m128i) -> u32 {
    let constants = _mm_set_epi64x(INVERSE_64 as i64, FOLD_TO_96 as i64);
    let folded = _mm_xor_si128(
        _mm_clmulepi64_si128(last, constants, 0x00),
        _mm_srli_si128(last, 8),
    );
    // The multiple of the polynomial that cancels the low 64 of the 96 bits leaves the remainder in the others.
    let quotient = _mm_clmulepi64_si128(folded, constants, 0x10);
    let multiple = _mm_clmulepi64_si128(quotient, _mm_set_epi64x(0, POLYNOMIAL_33 as i64), 0x00);
    _mm_extract_epi32(_mm_xor_si128(folded, multiple), 2) as u32
}
