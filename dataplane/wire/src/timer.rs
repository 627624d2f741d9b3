//! Encoded times of the transport: the RNR NAK timer and the local ACK timeout.

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

/// Minimum RNR NAK delays in units of 10 µs, by the 5-bit code of an RNR NAK (9.7.5.2.8, table 45).
const RNR_UNITS: [u32; 32] = [
    65_536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048,
    3_072, 4_096, 6_144, 8_192, 12_288, 16_384, 24_576, 32_768, 49_152,
];

/// The 5-bit timer code carried by an RNR NAK and set as a QP's `min_rnr_timer`.
///
/// Code 0 is the *longest* delay, 655.36 ms; from 1 (10 µs) to 31 (491.52 ms) delays ascend.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct RnrTimer(u8);

impl RnrTimer {
    /// The code of the low five bits of `code`.
    #[inline]
    pub const fn new(code: u8) -> Self {
        RnrTimer(code & 0x1F)
    }

    /// The code, 0 to 31.
    #[inline]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The least time, in nanoseconds, that the requester waits before it retries.
    #[inline]
    pub const fn nanos(self) -> u64 {
        RNR_UNITS[(self.0 & 0x1F) as usize] as u64 * 10_000
    }

    /// The code with the shortest delay of at least `nanos`; code 0 (655.36 ms) when none is long enough.
    pub const fn at_least(nanos: u64) -> Self {
        let mut code = 1;
        while code < 32 {
            if RnrTimer(code).nanos() >= nanos {
                return RnrTimer(code);
            }
            code += 1;
        }
        RnrTimer(0)
    }
}

/// The 5-bit local ACK timeout of a QP: 4.096 µs · 2^code, and no timeout at all for code 0 (9.9.2.1.1).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct AckTimeout(u8);

impl AckTimeout {
    /// The code of the low five bits of `code`.
    #[inline]
    pub const fn new(code: u8) -> Self {
        AckTimeout(code & 0x1F)
    }

    /// The code, 0 to 31.
    #[inline]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// Nanoseconds of the timeout; `None` when the timer is disabled (code 0).
    #[inline]
    pub const fn nanos(self) -> Option<u64> {
        if self.0 == 0 { None } else { Some(4_096 << self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rnr_timer_code_0_is_655_36_ms() {
        assert_eq!(RnrTimer::new(0).nanos(), 655_360_000);
    }

    #[test]
    fn rnr_timer_codes_ascend_from_10_us_to_491_52_ms() {
        assert_eq!(
            [1, 2, 3].map(|code| RnrTimer::new(code).nanos()),
            [10_000, 20_000, 30_000]
        );
        assert_eq!(RnrTimer::new(12).nanos(), 640_000);
        assert_eq!(RnrTimer::new(31).nanos(), 491_520_000);
        for code in 4..32 {
            assert_eq!(
                RnrTimer::new(code).nanos(),
                2 * RnrTimer::new(code - 2).nanos(),
                "code {code}"
            );
        }
    }

    #[test]
    fn the_shortest_rnr_code_that_waits_long_enough_is_chosen() {
        assert_eq!(RnrTimer::at_least(0).code(), 1);
        assert_eq!(RnrTimer::at_least(50_000).code(), 5);
        assert_eq!(RnrTimer::at_least(491_520_001).code(), 0);
        for code in 0..32 {
            assert_eq!(RnrTimer::at_least(RnrTimer::new(code).nanos()).code(), code);
        }
    }

    #[test]
    fn the_ack_timeout_doubles_and_code_0_never_fires() {
        assert_eq!(AckTimeout::new(0).nanos(), None);
        assert_eq!(AckTimeout::new(1).nanos(), Some(8_192));
        assert_eq!(AckTimeout::new(14).nanos(), Some(67_108_864));
        assert_eq!(AckTimeout::new(31).nanos(), Some(4_096 << 31));
    }
}
