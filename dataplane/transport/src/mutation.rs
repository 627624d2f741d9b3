//! Deliberate faults for tests: each shows that the simulator or a named test would notice such a bug.

use crate::qp::RcQp;

/// A fault that a QP can be given when the `mutations` feature is on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// A duplicate SEND takes another receive WQE and completes again.
    ReexecuteDuplicateSend = 1,
    /// A duplicate atomic is executed again.
    ReexecuteDuplicateAtomic,
    /// Duplicates are not acknowledged.
    IgnoreDuplicate,
    /// Every out-of-order packet is NAKed, not only the first.
    NakTwice,
    /// PSNs are compared as plain numbers.
    UnsignedPsnCompare,
    /// An ACK for a later PSN completes a READ or atomic without its data.
    AckCompletesRead,
    /// The responder takes any key.
    SkipKeyCheck,
    /// Payload of a WRITE may exceed its announced length.
    SkipLengthCheck,
    /// A message may exceed its receive WQE.
    SkipReceiveCapacity,
    /// Progress does not reset the retry count.
    RetryNeverResets,
    /// An RNR NAK is answered by an immediate retry.
    IgnoreRnrTimer,
    /// The ACK timer runs on while waiting for the RNR timer.
    AckTimerDuringRnr,
    /// A resumed READ asks for the wrong remote address.
    ResumeReadAtStart,
    /// A fenced request does not wait.
    IgnoreFence,
    /// The responder takes part in messages out of order.
    IgnoreOpcodeSequence,
    /// Requests flushed in ERR complete with success.
    FlushWithSuccess,
    /// Go-back-N resends from the packet after the lost one.
    GoBackTooLittle,
    /// A UC message goes on after a gap.
    OverlookGap,
    /// A UC responder takes packets that come late or twice.
    TakeLatePacket,
    /// A UD responder takes any Q_Key.
    SkipQkeyCheck,
}

impl RcQp {
    /// Whether the QP has this fault; always `false`, at no cost, without the feature.
    #[inline(always)]
    #[allow(unused_variables)]
    pub(crate) fn mutated(&self, mutation: Mutation) -> bool {
        #[cfg(feature = "mutations")]
        return self.mutation == mutation as u8;
        #[cfg(not(feature = "mutations"))]
        false
    }

    /// Gives the QP a fault, for tests of tests.
    #[cfg(feature = "mutations")]
    pub fn mutate(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation.map_or(0, |m| m as u8);
    }
}
