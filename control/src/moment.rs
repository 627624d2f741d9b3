//! A time that means the same in every process since boot.

use std::time::Duration;

use rnic_transport::record;
use rustix::time::{ClockId, clock_gettime};

record! {
    /// A moment of the monotonic clock.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub struct Moment {
        /// Nanoseconds since boot.
        ns: u64,
    }
}

impl Moment {
    /// Now (no system call: the vDSO's).
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        let ns = (time.tv_sec as u64).saturating_mul(1_000_000_000);
        Moment {
            ns: ns.saturating_add(time.tv_nsec as u64),
        }
    }

    /// Time since; none since a moment that is yet to come.
    pub fn elapsed(self) -> Duration {
        Duration::from_nanos(Self::now().ns.saturating_sub(self.ns))
    }
}
