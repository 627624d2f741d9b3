//! Arithmetic on polynomials over GF(2), for the constants of the kernels; evaluated at compile time.
//!
//! Bits are *reflected*: the lowest bit is the coefficient of the highest power, as the bits of Ethernet go over the
//! wire. [`POLYNOMIAL`] leaves out x^32, [`POLYNOMIAL_33`] has it as bit 0.

/// The CRC's polynomial, 32 bits.
pub(crate) const POLYNOMIAL: u32 = 0xEDB8_8320;

/// The CRC's polynomial with x^32, 33 bits.
#[cfg(target_arch = "x86_64")]
pub(crate) const POLYNOMIAL_33: u64 = (POLYNOMIAL as u64) << 1 | 1;

/// `value * x mod P`: the register after a zero bit.
const fn times_x(value: u32) -> u32 {
    value >> 1 ^ (POLYNOMIAL & (value & 1).wrapping_neg())
}

/// The register after `byte` was fed into a register of zero.
pub(crate) const fn byte_remainder(byte: u8) -> u32 {
    let mut value = byte as u32;
    let mut bit = 0;
    while bit < 8 {
        value = times_x(value);
        bit += 1;
    }
    value
}

/// `x^power mod P`, shifted left by one, which makes up for the bit by which the reflected product of a carry-less
/// multiplication is short.
#[cfg(target_arch = "x86_64")]
const fn power(power: u32) -> u64 {
    let mut value = 0x8000_0000;
    let mut done = 0;
    while done < power {
        value = times_x(value);
        done += 1;
    }
    (value as u64) << 1
}

/// The factors that move 128 bits forward by `distance` bits (at least 128): for the low and the high half.
#[cfg(target_arch = "x86_64")]
pub(crate) const fn fold_by(distance: u32) -> [u64; 2] {
    [power(distance + 32), power(distance - 32)]
}

/// The factor that folds the low half of the last 128 bits into 96.
#[cfg(target_arch = "x86_64")]
pub(crate) const FOLD_TO_96: u64 = power(96);

/// The inverse of [`POLYNOMIAL_33`] modulo bit 64: times the low 64 bits it tells which multiple of the polynomial
/// cancels them.
#[cfg(target_arch = "x86_64")]
pub(crate) const INVERSE_64: u64 = {
    let mut inverse = 0;
    let mut rest = 1_u64;
    let mut bit = 0;
    while bit < 64 {
        if rest >> bit & 1 == 1 {
            inverse |= 1 << bit;
            rest ^= POLYNOMIAL_33 << bit;
        }
        bit += 1;
    }
    inverse
};

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_of_the_literature() {
        // Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", 2009.
        assert_eq!(fold_by(512), [0x1_5444_2BD4, 0x1_C6E4_1596]);
        assert_eq!(fold_by(128), [0x1_7519_97D0, 0x0_CCAA_009E]);
        assert_eq!(FOLD_TO_96, 0xCCAA_009E);
        assert_eq!(POLYNOMIAL_33, 0x1_DB71_0641);
        assert_eq!(INVERSE_64 & 0x1_FFFF_FFFF, 0x1_F701_1641);
    }

    #[test]
    fn inverse_cancels_the_polynomial() {
        let product = (0..64)
            .filter(|bit| INVERSE_64 >> bit & 1 == 1)
            .fold(0, |sum, bit| sum ^ POLYNOMIAL_33 << bit);
        assert_eq!(product, 1);
    }
}
