//! When the next packet of a limited flow may go.

use crate::record::record;
use crate::types::Time;

/// How far a flow that was called late may catch up: eight buckets of the engine's timer wheel (16.4 µs each), which
/// holds a timer back by up to two, and a sleeping core longer. Without it every late call would cost the flow bandwidth.
/// It is the longest burst, too: what the rate gives in this time.
pub(crate) const CATCH_UP: u64 = 8 << 14;

const NANOS: u64 = 1_000_000_000;

record! {
    /// The moment at which all that was sent has gone out at the flow's rate.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Pacer {
        /// The next packet may go.
        pub next: Time,
        /// Of the last nanosecond, what the packets before have not used up: billionths of a byte, times the rate. Kept, so
        /// that no rate is rounded however short its packets' turns are.
        rest: u64,
        /// Nanoseconds that the last packet took.
        gap: u64,
    }
}

impl Pacer {
    pub const fn new() -> Self {
        Pacer {
            next: Time(0),
            rest: 0,
            gap: 0,
        }
    }

    /// The flow begins to be limited: nothing is owed to it.
    pub fn begin(&mut self, now: Time) {
        *self = Pacer {
            next: now,
            ..Pacer::new()
        };
    }

    /// A packet of `bytes` goes out at `rate`, which is not 0.
    #[inline]
    pub fn sent(&mut self, bytes: u32, rate: u64, now: Time) {
        let due = u64::from(bytes) * NANOS + self.rest.min(rate - 1);
        (self.gap, self.rest) = (due / rate, due % rate);
        let from = self.next.0.max(now.0.saturating_sub(CATCH_UP));
        self.next = Time(from).saturating_add(self.gap);
    }

    /// Nanoseconds in which a packet might have gone and did not, beyond what is made up for.
    #[inline]
    pub fn silent(&self, now: Time) -> u64 {
        now.0.saturating_sub(self.next.0.saturating_add(CATCH_UP))
    }

    /// Nanoseconds from one packet to the next.
    #[inline]
    pub fn gap(&self) -> u64 {
        self.gap
    }
}
