//! The 24-bit numbers of the transport: PSN and QPN.

use core::fmt;
use core::ops::{Add, AddAssign, Sub};

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

const MASK: u32 = 0x00FF_FFFF;

/// A packet sequence number: 24 bits, arithmetic modulo 2^24 (9.7.2).
///
/// There is no `Ord`: on a ring "less" depends on the window, so compare with [`Psn::diff`].
#[derive(Copy, Clone, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Psn(u32);

impl Psn {
    /// PSN 0.
    pub const ZERO: Psn = Psn(0);
    /// The last PSN before the wrap to zero.
    pub const MAX: Psn = Psn(MASK);

    /// A PSN of the low 24 bits of `value`; the rest is ignored.
    #[inline]
    pub const fn new(value: u32) -> Self {
        Psn(value & MASK)
    }

    /// The number, 0 to 2^24 − 1.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The PSN `n` packets later.
    #[inline]
    pub const fn wrapping_add(self, n: u32) -> Self {
        Psn::new(self.0.wrapping_add(n))
    }

    /// The PSN `n` packets earlier.
    #[inline]
    pub const fn wrapping_sub(self, n: u32) -> Self {
        Psn::new(self.0.wrapping_sub(n))
    }

    /// The following PSN.
    #[inline]
    pub const fn next(self) -> Self {
        self.wrapping_add(1)
    }

    /// The preceding PSN.
    #[inline]
    pub const fn prev(self) -> Self {
        self.wrapping_sub(1)
    }

    /// `self − other` as a signed 24-bit number, −2^23 to 2^23 − 1: negative when `self` lies before `other`.
    #[inline]
    pub const fn diff(self, other: Psn) -> i32 {
        // The subtraction is done in the top 24 bits so that the arithmetic shift extends the sign.
        (self.0.wrapping_sub(other.0) << 8) as i32 >> 8
    }

    /// Whether `self` lies before `other` (within half the number space).
    #[inline]
    pub const fn is_before(self, other: Psn) -> bool {
        self.diff(other) < 0
    }

    /// Whether `self` lies after `other` (within half the number space).
    #[inline]
    pub const fn is_after(self, other: Psn) -> bool {
        self.diff(other) > 0
    }
}

impl Add<u32> for Psn {
    type Output = Psn;

    #[inline]
    fn add(self, n: u32) -> Psn {
        self.wrapping_add(n)
    }
}

impl AddAssign<u32> for Psn {
    #[inline]
    fn add_assign(&mut self, n: u32) {
        *self = self.wrapping_add(n);
    }
}

impl Sub<u32> for Psn {
    type Output = Psn;

    #[inline]
    fn sub(self, n: u32) -> Psn {
        self.wrapping_sub(n)
    }
}

impl From<Psn> for u32 {
    fn from(psn: Psn) -> u32 {
        psn.0
    }
}

impl fmt::Debug for Psn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Psn({:#08x})", self.0)
    }
}

impl fmt::Display for Psn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

/// A queue pair number: 24 bits.
#[derive(Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Qpn(u32);

impl Qpn {
    /// The subnet management QP, unused on RoCE.
    pub const QP0: Qpn = Qpn(0);
    /// The general services QP: connection management MADs.
    pub const QP1: Qpn = Qpn(1);
    /// The destination of multicast datagrams (10.5.1).
    pub const MULTICAST: Qpn = Qpn(MASK);

    /// A QPN of the low 24 bits of `value`; the rest is ignored.
    #[inline]
    pub const fn new(value: u32) -> Self {
        Qpn(value & MASK)
    }

    /// The number, 0 to 2^24 − 1.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl From<Qpn> for u32 {
    fn from(qpn: Qpn) -> u32 {
        qpn.0
    }
}

impl fmt::Debug for Qpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qpn({:#08x})", self.0)
    }
}

impl fmt::Display for Qpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_psn_keeps_only_24_bits() {
        assert_eq!(Psn::new(0xAB12_3456).get(), 0x12_3456);
        assert_eq!(Qpn::new(0xFFFF_FFFF), Qpn::MULTICAST);
    }

    #[test]
    fn psn_arithmetic_wraps_at_ffffff() {
        assert_eq!(Psn::MAX.next(), Psn::ZERO);
        assert_eq!(Psn::ZERO.prev(), Psn::MAX);
        assert_eq!(Psn::new(0xFF_FFFE) + 5, Psn::new(3));
        assert_eq!(Psn::new(3) - 5, Psn::new(0xFF_FFFE));
    }

    #[test]
    fn psn_comparison_is_by_signed_24_bit_difference() {
        assert_eq!(Psn::ZERO.diff(Psn::MAX), 1);
        assert_eq!(Psn::MAX.diff(Psn::ZERO), -1);
        assert_eq!(Psn::new(0x80_0000).diff(Psn::ZERO), -0x80_0000);
        assert_eq!(Psn::new(0x7F_FFFF).diff(Psn::ZERO), 0x7F_FFFF);
        assert!(Psn::new(0xFF_FFF0).is_before(Psn::new(0x10)));
        assert!(Psn::new(0x10).is_after(Psn::new(0xFF_FFF0)));
        assert!(!Psn::new(7).is_after(Psn::new(7)) && !Psn::new(7).is_before(Psn::new(7)));
    }
}
