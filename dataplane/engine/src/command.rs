//! What the control thread and the poll cores tell each other, through bounded queues.
//!
//! What a core takes in comes in boxes, so that it allocates nothing; what it gives up goes to the reclaimer
//! ([`crate::retire`]), or back with the answer, so that it frees nothing.
use std::fmt;

use rnic_qsbr::spsc::INLINE;
use rnic_transport::{Cause, Congestion, ModifyError, QpAttr, QpAttrMask, QpState};

use crate::{
    core::{ClientDoorbells, CompletionQueue, PortPart, Qp, Srq},
    frame::Frame,
    retire::Retired,
};

/// Names a request of the control thread in the answer.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// Control thread to poll core. Each is answered by exactly one [`Message`], except `Transmit` and `Stop`.
pub enum Command {
    /// Watch a client's doorbells. Answered by `Done`.
    AddClient {
        /// Index of the client, below `Limits::clients`.
        client: u32,
        /// The client's doorbell block for this core.
        doorbells: Box<ClientDoorbells>,
        /// For the answer.
        token: Token,
    },
    /// Stop doing so. Answered by `Removed`.
    RemoveClient {
        /// Index of the client.
        client: u32,
        /// For the answer.
        token: Token,
    },
    /// Take a completion queue (its sub-ring for this core). Answered by `Done`.
    AddCq {
        /// Slot of the CQ, below `Limits::cqs`.
        cq: u32,
        /// This core's producer side.
        queue: Box<CompletionQueue>,
        /// For the answer.
        token: Token,
    },
    /// Give it up; no QP uses it any more. Answered by `Removed`.
    RemoveCq {
        /// Slot of the CQ.
        cq: u32,
        /// For the answer.
        token: Token,
    },
    /// Have a completion queue go on in another place of the client's region, whose indices are the control thread's to
    /// zero and nobody's yet. Answered by `Done`: from then on this core writes to the old place no more.
    ResizeCq {
        /// Slot of the CQ.
        cq: u32,
        /// Where it goes on.
        offset: u64,
        /// Entries of each sub-ring there, a power of two.
        depth: u32,
        /// For the answer.
        token: Token,
    },
    /// Moderate a completion queue: wake its client after `count` completions of this core, or `period` after the first
    /// of them. Answered by `Done`.
    ModerateCq {
        /// Slot of the CQ.
        cq: u32,
        /// Completions; 0 and 1 for each.
        count: u16,
        /// Microseconds; 0 does not wait.
        period: u16,
        /// For the answer.
        token: Token,
    },
    /// Take a shared receive queue. Answered by `Done`.
    AddSrq {
        /// The SRQ; its slot is below `Limits::srqs`.
        srq: Box<Srq>,
        /// For the answer.
        token: Token,
    },
    /// Give it up; no QP uses it any more. Answered by `Removed`.
    RemoveSrq {
        /// Slot of the SRQ.
        slot: u32,
        /// For the answer.
        token: Token,
    },
    /// Arm the limit of an SRQ: SRQ_LIMIT_REACHED is raised once fewer WQEs are posted. Answered by `Done`.
    ArmSrq {
        /// Slot of the SRQ.
        slot: u32,
        /// WQEs; 0 disarms it.
        limit: u32,
        /// For the answer.
        token: Token,
    },
    /// Take a QP, and change it at once. Answered by `Modified`, or by `Done` without a change; only then may it be
    /// published, and it is there whether the change succeeded or not.
    AddQp {
        /// Slot in the core's arena: the slot of the QP's number.
        slot: u32,
        /// The QP. No core has had it: it is in RESET or INIT, or taken over from another process.
        qp: Box<Qp>,
        /// As for `ModifyQp`.
        change: Option<Box<QpChange>>,
        /// For the answer.
        token: Token,
    },
    /// Look at every QP: those that were taken over from another process have timers, events and work. Once all cores
    /// have theirs, so that nobody sends to a peer that is not there yet. Answered by `Done`.
    Begin {
        /// For the answer.
        token: Token,
    },
    /// Stop a QP that was unpublished and give it up: its work requests are discarded without completions,
    /// its timers cancelled. Answered by `Removed` when the core has passed a quiescent state after that: whoever has
    /// the answer waits for the other cores only, which may hold what they found before it was unpublished.
    RemoveQp {
        /// Slot in the core's arena.
        slot: u32,
        /// For the answer.
        token: Token,
    },
    /// Change attributes of a QP. Answered by `Modified`.
    ModifyQp {
        /// Slot in the core's arena.
        slot: u32,
        /// What to change. It comes back with the answer, since no core frees anything.
        change: Box<QpChange>,
        /// For the answer.
        token: Token,
    },
    /// The next hop of a QP has another MAC address: packets go there from now on; nothing else of the QP
    /// changes. Answered by `Repathed`; without effect when the QP has another path meanwhile, or is gone.
    Repath {
        /// Slot in the core's arena.
        slot: u32,
        /// The path of the QP, but for the MAC address of the next hop. It comes back with the answer.
        path: Box<Path>,
    },
    /// Read the attributes of a QP. Answered by `Queried`.
    QueryQp {
        /// Slot in the core's arena.
        slot: u32,
        /// Where they are to stand. It comes back with the answer.
        state: Box<Option<QpStatus>>,
        /// For the answer.
        token: Token,
    },
    /// Move a QP to the error state with a cause (port gone, memory fault); its path is forgotten. Answered by `Done`.
    FailQp {
        /// Slot in the core's arena.
        slot: u32,
        /// Why.
        cause: Cause,
        /// For the answer.
        token: Token,
    },
    /// Flush a bounded part of a QP in the error state. Answered by `Flushed`; ask again while there is more.
    FlushQp {
        /// Slot in the core's arena.
        slot: u32,
        /// For the answer.
        token: Token,
    },
    /// Take a port. Answered by `Removed` when what was in its place has come back.
    AddPort {
        /// Index of the port.
        port: u16,
        /// This core's part of it.
        part: Box<PortPart>,
        /// For the answer.
        token: Token,
    },
    /// Give a port up, with its queue and all frames made for it or waiting to be sent. Answered by `Removed` when
    /// they are freed.
    RemovePort {
        /// Index of the port.
        port: u16,
        /// An empty part, to take its place.
        part: Box<PortPart>,
        /// For the answer.
        token: Token,
    },
    /// Let go of frames of a port that other cores have handed over, after all of them have given it up. Answered
    /// by `Done`.
    DropFrames {
        /// Index of the port.
        port: u16,
        /// For the answer.
        token: Token,
    },
    /// Send a frame of the slow path. Not answered; dropped and counted when the port has no room.
    Transmit {
        /// Index of the port.
        port: u16,
        /// The frame, complete with its Ethernet header.
        frame: Frame,
    },
    /// Leave the loop. Not answered.
    Stop,
}

impl Command {
    /// To read the attributes of the QP at `slot`.
    pub fn query_qp(slot: u32, token: Token) -> Self {
        let state = Box::new(None);
        Command::QueryQp { slot, state, token }
    }
}

// Each crosses to the other core in one line.
const _: () = assert!(size_of::<Command>() <= INLINE && size_of::<Sent>() <= INLINE);

/// A change of a QP's attributes.
pub struct QpChange {
    /// The values.
    pub attr: QpAttr,
    /// Which of them count.
    pub mask: QpAttrMask,
    /// The path, with `IBV_QP_AV`.
    pub path: Option<Path>,
}

/// The network path of a connected QP, resolved by the control thread.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Index of the local port.
    pub port: u16,
    /// Local address: IPv6, or IPv4 mapped into it.
    pub local_ip: [u8; 16],
    /// Address of the peer, of the same family.
    pub remote_ip: [u8; 16],
    /// Local MAC address.
    pub local_mac: [u8; 6],
    /// MAC address of the next hop.
    pub remote_mac: [u8; 6],
    /// VLAN tag (TCI).
    pub vlan: Option<u16>,
    /// Hop limit or TTL.
    pub hop_limit: u8,
    /// Traffic class or TOS.
    pub traffic_class: u8,
    /// IPv6 flow label, 20 bits.
    pub flow_label: u32,
    /// UDP source port, 0xC000 to 0xFFFF.
    pub udp_source: u16,
    /// The peer is on this appliance and is reached without frames.
    pub direct: bool,
}

impl Path {
    /// The same path over a next hop with another MAC address.
    pub fn over(self, remote_mac: [u8; 6]) -> Path {
        Path { remote_mac, ..self }
    }
}

/// Poll core to control thread.
pub enum Message {
    /// A command was carried out.
    Done {
        /// Of the command.
        token: Token,
    },
    /// Something was given up. It is with the reclaimer, which frees it a grace period later: when
    /// [`Engine::passed`](crate::Engine::passed) is true for an epoch that [`Engine::start_grace`](crate::Engine) or a
    /// publication has begun after this message, it is freed. A QP is freed with the epoch that is current as this
    /// message is heard.
    Removed {
        /// Of the command.
        token: Token,
        /// Whether there was anything at that place.
        found: bool,
    },
    /// A QP was changed, or not.
    Modified {
        /// Of the command.
        token: Token,
        /// The state it is in now; `None` when there is no such QP.
        result: Option<Result<QpState, ModifyError>>,
        /// What was asked for.
        change: Box<QpChange>,
    },
    /// A QP was told another MAC address.
    Repathed {
        /// What it was told.
        path: Box<Path>,
    },
    /// Attributes of a QP.
    Queried {
        /// Of the command.
        token: Token,
        /// `None` when there is no such QP.
        state: Box<Option<QpStatus>>,
    },
    /// A QP was flushed, or a part of it.
    Flushed {
        /// Of the command.
        token: Token,
        /// The QP's slot.
        slot: u32,
        /// Whether there may be more. When not, all that was posted before has its completion, which the client
        /// sees a grace period later at the latest; or the QP is gone, or in another state.
        more: bool,
    },
    /// Asynchronous events of an object.
    Event(ObjectEvent),
    /// A frame that is not RoCE, for the slow path.
    Frame {
        /// Port it came from.
        port: u16,
        /// The frame.
        frame: Frame,
    },
}

/// What a poll core sends.
pub(crate) enum Sent {
    Message(Message),
    /// What a command asked for: the engine keeps it for a grace period, and says `Removed`.
    GivenUp {
        token: Token,
        what: Retired,
    },
}

/// Attributes and progress of a QP.
#[derive(Copy, Clone, Debug)]
pub struct QpStatus {
    /// The attributes.
    pub attr: QpAttr,
    /// Why it is in the error state.
    pub cause: Cause,
    /// Messages completed as requester.
    pub sent_messages: u64,
    /// Packets received and accepted.
    pub received_packets: u64,
    /// Packets dropped.
    pub dropped_packets: u64,
    /// Retransmissions begun.
    pub retries: u64,
    /// How it deals with congestion.
    pub congestion: Congestion,
    /// Bytes a second that it sends at most now; none when it is not limited.
    pub rate: Option<u64>,
    /// Units of its send queue.
    pub sq_depth: u32,
    /// Units of its receive queue; 0 on an SRQ.
    pub rq_depth: u32,
    /// Every send WQE is signalled.
    pub sig_all: bool,
}

/// Events of one object.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ObjectEvent {
    /// Index of the client.
    pub client: u32,
    /// Handle of the object, generation included.
    pub handle: u32,
    /// Bits of [`rnic_abi::event_kind`].
    pub kinds: u32,
    /// QPN, CQ slot or number of an SRQ.
    pub number: u32,
    /// Cause of the first.
    pub cause: Cause,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Done { token } => write!(f, "Done({})", token.0),
            Message::Removed { token, .. } => write!(f, "Removed({})", token.0),
            Message::Modified { token, result, .. } => write!(f, "Modified({}, {result:?})", token.0),
            Message::Repathed { path } => write!(f, "Repathed({path:?})"),
            Message::Queried { token, .. } => write!(f, "Queried({})", token.0),
            Message::Flushed { token, more, .. } => write!(f, "Flushed({}, more: {more})", token.0),
            Message::Event(event) => write!(f, "{event:?}"),
            Message::Frame { port, frame } => write!(f, "Frame({port}, {frame:?})"),
        }
    }
}
