//! What every congestion control is asked, and the two that know no congestion.

use crate::record::record;
use crate::types::Time;

/// How a flow hears of congestion.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The peer got a marked packet, and said so.
    Cnp,
    /// Packets were lost on the way, and the peer, or a gap in its responses, says so.
    SequenceError,
    /// No answer at all.
    Timeout,
}

/// A congestion control: at which rate a flow may send. A plain record, without a clock.
pub(crate) trait Control {
    /// Bytes a second, never 0; `None` when the flow is not limited.
    fn rate(&self) -> Option<u64>;

    /// So many bytes were sent, after `silent` nanoseconds in which the flow might have sent and did not. Not called while
    /// it is not limited.
    fn sent(&mut self, bytes: u32, silent: u64, now: Time);

    /// Congestion was heard of. Whether it had an effect.
    fn congested(&mut self, signal: Signal, now: Time) -> bool;
}

/// No congestion control.
pub(crate) struct Off;

impl Control for Off {
    fn rate(&self) -> Option<u64> {
        None
    }

    fn sent(&mut self, _bytes: u32, _silent: u64, _now: Time) {}

    fn congested(&mut self, _signal: Signal, _now: Time) -> bool {
        false
    }
}

record! {
    /// The same rate, whatever happens.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct FixedRate {
        /// Bytes a second, not 0.
        pub rate: u64,
    }
}

impl Control for FixedRate {
    fn rate(&self) -> Option<u64> {
        Some(self.rate)
    }

    fn sent(&mut self, _bytes: u32, _silent: u64, _now: Time) {}

    fn congested(&mut self, _signal: Signal, _now: Time) -> bool {
        false
    }
}
