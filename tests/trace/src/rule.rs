//! The rules, the section of the specification each stands in, and what of it holds at the point of the capture.

use std::fmt;

/// What is demanded of a trace.
///
/// A capture sees frames at one point. Every frame of a connection goes by that point, but it may have met trouble
/// before it, and may meet trouble after it. Two things follow for every rule:
///
/// - What a host *knew* when it sent a frame is bounded from above by what has gone by: a responder cannot acknowledge
///   a request that was never seen. Such bounds hold wherever the capture was taken.
/// - What a host *sent* is known exactly only if nothing is lost, damaged, doubled or reordered between that host and
///   the point. Such hosts are called *near*, and the rules on the order of what somebody sends are demanded of near
///   hosts alone. A frame that was sent may still be lost behind the point, so no rule demands an answer to anything,
///   except [`Rule::CnpMissing`], which is off unless asked for.
///
/// Sections are those of the InfiniBand Architecture Specification, volume 1; A17 is its annex on RoCEv2.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // `demands` and `holds` say what each is
pub enum Rule {
    Malformed,
    ReservedOpcode,
    Icrc,
    AckReq,
    MigReq,
    SourcePort,
    RequestGap,
    GoBackN,
    Retransmission,
    OpcodeSequence,
    XrcSrq,
    Length,
    ReadResume,
    RnrWait,
    UcPsn,
    UdPsn,
    AckUnseen,
    NakWithoutGap,
    AckMonotony,
    SingleNak,
    AckBeforeRead,
    Msn,
    AfterError,
    ResponseKind,
    ReadResponsePsn,
    ReadResponseSequence,
    ReadResponseLength,
    AtomicReplay,
    CnpCause,
    CnpPacing,
    CnpMissing,
}

use Rule::*;

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 31] = [
        Malformed,
        ReservedOpcode,
        Icrc,
        AckReq,
        MigReq,
        SourcePort,
        RequestGap,
        GoBackN,
        Retransmission,
        OpcodeSequence,
        XrcSrq,
        Length,
        ReadResume,
        RnrWait,
        UcPsn,
        UdPsn,
        AckUnseen,
        NakWithoutGap,
        AckMonotony,
        SingleNak,
        AckBeforeRead,
        Msn,
        AfterError,
        ResponseKind,
        ReadResponsePsn,
        ReadResponseSequence,
        ReadResponseLength,
        AtomicReplay,
        CnpCause,
        CnpPacing,
        CnpMissing,
    ];

    /// Name, section, what is demanded, and why it holds at the point of the capture.
    const fn text(self) -> [&'static str; 4] {
        match self {
            Malformed => [
                "malformed",
                "9.2, 9.3, A17.3",
                "a frame to RoCE's port is consistent within itself: lengths, pad, headers, payload only where the opcode has any",
                "anywhere; a far host's frame may be damaged where the options allow damage before the point",
            ],
            ReservedOpcode => [
                "reserved-opcode",
                "9.2.1",
                "no reserved opcode is sent",
                "as malformed",
            ],
            Icrc => ["icrc", "7.8.1, A17.3.3", "the ICRC is right", "as malformed"],
            AckReq => [
                "ack-req",
                "9.2.1, 9.8, 9.10",
                "AckReq is set on RC and XRC only; QP1 is excepted, where Linux sets it and receivers do not look",
                "anywhere: no router changes the bit",
            ],
            MigReq => [
                "mig-req",
                "9.2.1, 17.2.8",
                "MigReq is 1 in what the capturing host sends, CNPs excepted; of others 0 is taken too, which rxe sends",
                "anywhere: no router changes the bit",
            ],
            SourcePort => [
                "source-port",
                "A17.3.2",
                "the UDP source port of a connected QP lies in 0xC000 to 0xFFFF and stays the same",
                "anywhere: a router that translates ports is no RoCE router",
            ],
            RequestGap => [
                "request-gap",
                "9.7.3.1",
                "the first transmission of each request packet has the PSN after the one before; a READ takes as many as its response has packets",
                "near requester: all it sends goes by in order",
            ],
            GoBackN => [
                "go-back-n",
                "9.7.5.2.1, 9.9.2.1",
                "who resends begins at or before the oldest PSN not acknowledged, and goes on without a gap; what a selective \
                 ACK says is there may be left out, and one packet may go alone to ask for such an ACK",
                "near requester: an acknowledgement may be lost behind the point, so it may go back further than would be needed, but never less than to the highest one seen",
            ],
            Retransmission => [
                "retransmission",
                "9.7.3.1, 9.9.2.1",
                "a PSN sent again carries the same opcode, headers and length",
                "anywhere: both copies went by",
            ],
            OpcodeSequence => [
                "opcode-sequence",
                "9.7.4.1.1, table 37; 9.8.2.2",
                "FIRST and MIDDLE are followed by MIDDLE or LAST of the same kind, everything else by the start of a message",
                "anywhere for two packets of adjacent PSNs that both went by",
            ],
            XrcSrq => [
                "xrc-srq",
                "A14",
                "all packets of a message name the same XRC SRQ",
                "anywhere for two packets of adjacent PSNs that both went by",
            ],
            Length => [
                "length",
                "9.7.4.1.6, 9.3.3",
                "FIRST and MIDDLE are full, LAST is not empty, nothing exceeds the path MTU, and a WRITE carries what its RETH announces",
                "anywhere, for messages of which every packet went by; the path MTU is the size of FIRST packets",
            ],
            ReadResume => [
                "read-resume",
                "9.7.3.1, 9.7.5.1.8",
                "a READ asked for again from the middle names the address and the length that are left, with the same key",
                "anywhere: the first request went by, or the rule says nothing",
            ],
            RnrWait => [
                "rnr-wait",
                "9.7.5.2.8",
                "the request that got an RNR NAK is not sent again before the delay is over",
                "near requester; copies that leave within the crossing time of the NAK may have been on their way",
            ],
            UcPsn => [
                "uc-psn",
                "9.8.2.1",
                "each UC packet has the PSN after the one before",
                "near requester",
            ],
            UdPsn => [
                "ud-psn",
                "9.10.2",
                "the PSNs of a UD QP move forward; there may be gaps, since not every destination is behind the point",
                "near sender",
            ],
            AckUnseen => [
                "ack-unseen",
                "9.7.5.1",
                "nobody answers a request that it cannot have received, nor acknowledges across one",
                "anywhere: what did not go by before cannot have arrived",
            ],
            NakWithoutGap => [
                "nak-without-gap",
                "9.7.5.2.1",
                "a sequence error NAK names a PSN before one that has been sent",
                "anywhere: the packet that came too early has gone by",
            ],
            AckMonotony => [
                "ack-monotony",
                "9.7.5.1",
                "the PSN expected, as ACKs, sequence error NAKs and RNR NAKs tell it, never goes back (24-bit compare)",
                "near responder: what it says goes by in order. A duplicate in front of READs and atomics may be acknowledged \
                 without them",
            ],
            SingleNak => [
                "single-nak",
                "9.7.5.2.1",
                "no second sequence error NAK for a PSN, unless that PSN got an RNR NAK in between",
                "near responder. If the PSN arrived the responder expects a later one; if not, its NAK is outstanding",
            ],
            AckBeforeRead => [
                "ack-before-read",
                "9.7.5.1.2, 9.7.4.2",
                "nothing behind a READ or an atomic is acknowledged before its last response",
                "near responder, for requests whose first copy went by",
            ],
            Msn => [
                "msn",
                "9.7.7.1",
                "the MSN never goes back (24-bit compare), and between two ACKs grows by the messages acknowledged",
                "near responder; replayed atomic ACKs may carry the MSN they had. The count needs every request between both ACKs",
            ],
            AfterError => [
                "after-error",
                "9.9.3, 10.3.1.7",
                "who refuses a request (invalid, access, operational) sends no further request nor response on that connection",
                "near responder",
            ],
            ResponseKind => [
                "response-kind",
                "9.7.5.1",
                "READ responses answer READs, atomic ACKs answer atomics",
                "anywhere: the request went by before",
            ],
            ReadResponsePsn => [
                "read-response-psn",
                "9.7.5.1.8",
                "FIRST and ONLY have the PSN of a request, a retry's too; LAST and ONLY the last that it takes; MIDDLE lies between",
                "anywhere: the request went by before",
            ],
            ReadResponseSequence => [
                "read-response-sequence",
                "9.7.5.1.8, table 37",
                "MIDDLE and LAST follow FIRST or MIDDLE with the PSN after it; only the start of another response may break it off",
                "near responder",
            ],
            ReadResponseLength => [
                "read-response-length",
                "9.7.5.1.8",
                "FIRST and MIDDLE are full, LAST and ONLY carry exactly what is left of the READ",
                "anywhere: the request went by before",
            ],
            AtomicReplay => [
                "atomic-replay",
                "9.4.5, 9.7.5.1.5",
                "every ACK of an atomic's PSN carries the same original value",
                "anywhere: both ACKs went by",
            ],
            CnpCause => [
                "cnp-cause",
                "A17.9.2",
                "a host sends no more CNPs about a QP than it got marked frames from it",
                "near notifier: every mark was seen here, and no CNP was doubled",
            ],
            CnpPacing => [
                "cnp-pacing",
                "A17.9.2",
                "CNPs about one QP are at least the given interval apart",
                "near notifier",
            ],
            CnpMissing => [
                "cnp-missing",
                "A17.9.2",
                "a marked frame is followed by a CNP within the given time, unless one went not long before",
                "near notifier, and only when asked for: it has to have congestion control on, and to have got the frame",
            ],
        }
    }

    /// The name, "single-nak" say.
    pub const fn name(self) -> &'static str {
        self.text()[0]
    }

    /// The section of the specification.
    pub const fn section(self) -> &'static str {
        self.text()[1]
    }

    /// What it demands.
    pub const fn demands(self) -> &'static str {
        self.text()[2]
    }

    /// At which point of capture it holds, and why.
    pub const fn holds(self) -> &'static str {
        self.text()[3]
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
