//! Deliberate faults for tests: each shows that the simulator or a named test would notice such a bug.

use crate::qp::RcQp;

/// A fault that a QP can be given when the `mutations` feature is on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// A duplicate SEND takes another receive WQE and completes again.
    ReexecuteDuplicateSend = 1,
    /// A duplicate atomic or ATOMIC WRITE is executed again.
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
    /// A sequence error NAK names the PSN after the one expected.
    NakNextPsn,
    /// The MSN counts packets instead of messages.
    MsnCountsPackets,
    /// A solicited message completes as any other.
    ForgetSolicited,
    /// SEND with invalidate leaves its key valid.
    InvalidateNothing,
    /// The responder refuses a request, and goes on.
    StayUpAfterRefusal,
    /// A refusal raises no event.
    ForgetEvent,
    /// An ACK goes out before the responses to earlier READs and atomics.
    AckOvertakesResponses,
    /// More READs and atomics are on their way than `max_rd_atomic`.
    IgnoreReadLimit,
    /// A request begins in SQD.
    BeginInSqd,
    /// SQ_DRAINED is raised while requests are outstanding.
    DrainedTooSoon,
    /// One retry more than `retry_cnt`.
    RetryOnceMore,
    /// Every NAK is answered by a retransmission at once.
    RetryOnEveryNak,
    /// One RNR retry more than `rnr_retry`.
    RnrRetryOnceMore,
    /// No ACK timer runs.
    NeverArmAckTimer,
    /// A sequence error NAK completes the request that it names.
    NakCompletesItsPsn,
    /// A NAK that refuses a request completes it.
    RefusalCompletes,
    /// Unsignalled requests complete too.
    CompleteUnsignalled,
    /// A READ goes on behind a response that is missing.
    OverlookMissingResponse,
    /// An XRC target takes XRC SRQs of any domain.
    SkipXrcDomain,
    /// An XRC message goes on with another XRC SRQ than it began with.
    ChangeXrcSrq,
    /// An XRC initiator names the XRC SRQ of the work request posted before.
    NameOtherSrq,
    /// A QP in ERR flushes the SRQ it is on.
    FlushSharedReceives,
    /// LAST_WQE_REACHED is not raised.
    ForgetLastWqe,
    /// Marked packets are not answered by a CNP.
    ForgetCnp,
    /// Every mark is answered by a CNP, however soon.
    CnpPerMark,
    /// A CNP does not lower the rate.
    IgnoreCnp,
    /// Lost packets do not lower the rate.
    IgnoreLoss,
    /// The rate holds no packet back.
    SendUnpaced,
    /// A peer's credits do not bound what is sent.
    IgnoreCredits,
    /// A memory window bind completes without having been made.
    BindNothing,
    /// A memory window bind completes while what the window stood for may still be in use.
    BindTooSoon,
    /// An invalidation completes while the key may still be in use.
    InvalidateTooSoon,
    /// A FLUSH is answered and not executed.
    FlushNothing,
    /// A packet that has not arrived counts as arrived when those behind it have.
    PassOverMissing,
    /// Part of a WRITE is placed before a WRITE to the same memory, whose turn is earlier, has ended.
    PlaceOverlapping,
    /// A selective acknowledgement says that a packet has arrived which has not.
    AcknowledgeMissing,
    /// What the peer says that it has is sent again.
    ResendReceived,
    /// A packet whose retransmission may be lost is not sent before the ACK timer comes up.
    NeverProbe,
}

impl Mutation {
    /// Every fault.
    pub const ALL: [Mutation; 58] = [
        Mutation::ReexecuteDuplicateSend,
        Mutation::ReexecuteDuplicateAtomic,
        Mutation::IgnoreDuplicate,
        Mutation::NakTwice,
        Mutation::UnsignedPsnCompare,
        Mutation::AckCompletesRead,
        Mutation::SkipKeyCheck,
        Mutation::SkipLengthCheck,
        Mutation::SkipReceiveCapacity,
        Mutation::RetryNeverResets,
        Mutation::IgnoreRnrTimer,
        Mutation::AckTimerDuringRnr,
        Mutation::ResumeReadAtStart,
        Mutation::IgnoreFence,
        Mutation::IgnoreOpcodeSequence,
        Mutation::FlushWithSuccess,
        Mutation::GoBackTooLittle,
        Mutation::OverlookGap,
        Mutation::TakeLatePacket,
        Mutation::SkipQkeyCheck,
        Mutation::NakNextPsn,
        Mutation::MsnCountsPackets,
        Mutation::ForgetSolicited,
        Mutation::InvalidateNothing,
        Mutation::StayUpAfterRefusal,
        Mutation::ForgetEvent,
        Mutation::AckOvertakesResponses,
        Mutation::IgnoreReadLimit,
        Mutation::BeginInSqd,
        Mutation::DrainedTooSoon,
        Mutation::RetryOnceMore,
        Mutation::RetryOnEveryNak,
        Mutation::RnrRetryOnceMore,
        Mutation::NeverArmAckTimer,
        Mutation::NakCompletesItsPsn,
        Mutation::RefusalCompletes,
        Mutation::CompleteUnsignalled,
        Mutation::OverlookMissingResponse,
        Mutation::SkipXrcDomain,
        Mutation::ChangeXrcSrq,
        Mutation::NameOtherSrq,
        Mutation::FlushSharedReceives,
        Mutation::ForgetLastWqe,
        Mutation::ForgetCnp,
        Mutation::CnpPerMark,
        Mutation::IgnoreCnp,
        Mutation::IgnoreLoss,
        Mutation::SendUnpaced,
        Mutation::IgnoreCredits,
        Mutation::BindNothing,
        Mutation::BindTooSoon,
        Mutation::InvalidateTooSoon,
        Mutation::FlushNothing,
        Mutation::PassOverMissing,
        Mutation::PlaceOverlapping,
        Mutation::AcknowledgeMissing,
        Mutation::ResendReceived,
        Mutation::NeverProbe,
    ];
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

    /// Whether it has any.
    #[inline(always)]
    pub(crate) fn is_mutated(&self) -> bool {
        cfg!(feature = "mutations") && self.mutation != 0
    }

    /// Gives the QP a fault, for tests of tests.
    #[cfg(feature = "mutations")]
    pub fn mutate(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation.map_or(0, |m| m as u8);
    }
}
