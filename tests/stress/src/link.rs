//! Two connected QPs of one worker, the memory they move data between, and what they were made to do.
use rnic_abi::{AtomicOperands, Sge, Wqe, event_kind, wqe_flags};
use rnic_tests::probe::Rng;
use rnic_tests::raw::Memory;

/// Messages of a round.
pub const WINDOW: usize = 4;
/// Longest message.
pub const LONGEST: usize = 2000;
/// Room of one message with guards around it.
const ROOM: usize = 2304;
/// Where data begins in its room.
const MARGIN: usize = 64;
/// Memory of one end: what it sends, then what it is sent.
pub const LANE: usize = 2 * WINDOW * ROOM;
const GUARD: u8 = 0xA5;

/// Every event a QP can raise for an error.
pub const ERRORS: u32 = event_kind::QP_FATAL | event_kind::QP_REQ_ERR | event_kind::QP_ACCESS_ERR;

/// One end of a link.
#[derive(Copy, Clone, Debug)]
pub struct End {
    /// Session it belongs to.
    pub side: usize,
    /// Handle of the QP.
    pub qp: u32,
    /// Handle of the region.
    pub mr: u32,
    /// Part of the region.
    pub lane: usize,
}

/// An operation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Send,
    Write,
    Read,
    /// Fetch and add of [`ADD`].
    FetchAdd,
}

/// What a fetch and add adds.
pub const ADD: u64 = 0x0102_0304_0506_0708;

impl Kind {
    /// Whether data comes from the other end to the one that posts.
    pub fn fetches(self) -> bool {
        matches!(self, Kind::Read | Kind::FetchAdd)
    }
}

/// Messages in flight on a link, all one way.
#[derive(Clone, Debug)]
pub struct Round {
    /// The end that posts.
    pub from: usize,
    pub messages: Vec<(Kind, usize)>,
    pub seed: u64,
    /// Memory under it was punched or deregistered: the data says nothing.
    pub unverified: bool,
}

/// What must come of an error that was provoked.
#[derive(Copy, Clone, Debug)]
pub struct Expected {
    /// The end that posted.
    pub from: usize,
    /// Statuses its request may end with; none when it has no completion.
    pub statuses: &'static [u8],
    /// Events each end must raise.
    pub events: [u32; 2],
    /// For messages.
    pub what: &'static str,
}

/// A link.
#[derive(Clone, Debug)]
pub struct Link {
    /// Both ends, as long as they exist.
    pub ends: [Option<End>; 2],
    pub round: Option<Round>,
    pub expected: Option<Expected>,
    /// An end or its memory was taken away under traffic: requests may fail.
    pub spoiled: bool,
}

impl Link {
    /// Whether nothing is known against using it.
    pub fn is_usable(&self) -> bool {
        self.round.is_none()
            && self.expected.is_none()
            && !self.spoiled
            && self.ends.iter().all(Option::is_some)
    }
}

/// A region a client has registered.
#[derive(Debug)]
pub struct Region {
    pub handle: u32,
    pub key: u32,
    pub pd: u32,
    pub file: std::os::fd::OwnedFd,
    pub memory: Memory,
    /// Which lanes are in use.
    pub lanes: Vec<bool>,
}

impl Region {
    /// Where the data of message `i` to be sent stands.
    pub fn outgoing(lane: usize, i: usize) -> usize {
        lane * LANE + i * ROOM + MARGIN
    }

    /// Where the data of message `i` is to arrive.
    pub fn incoming(lane: usize, i: usize) -> usize {
        Self::outgoing(lane, WINDOW + i)
    }

    /// The entry for `len` bytes at `offset`.
    pub fn sge(&self, offset: usize, len: usize) -> Sge {
        Sge {
            addr: self.memory.address() + offset as u64,
            length: len as u32,
            lkey: self.key,
        }
    }

    /// Puts data where it is sent from.
    pub fn fill(&self, lane: usize, i: usize, data: &[u8]) {
        self.memory.write(Self::outgoing(lane, i), data);
    }

    /// Whether an addition was made, once, to the data of message `i`.
    pub fn was_added(&self, lane: usize, i: usize, data: &[u8]) -> bool {
        let [mut before, mut after] = [[0; 8]; 2];
        before.copy_from_slice(data);
        self.memory.read(Self::outgoing(lane, i), &mut after);
        u64::from_ne_bytes(before).wrapping_add(ADD) == u64::from_ne_bytes(after)
    }

    /// Puts guards where data is to arrive.
    pub fn guard(&self, lane: usize, i: usize) {
        self.memory
            .write(Self::incoming(lane, i) - MARGIN, &[GUARD; ROOM]);
    }

    /// Compares what arrived, and the guards around it.
    pub fn compare(&self, lane: usize, i: usize, data: &[u8]) -> Result<(), String> {
        let mut found = [0; ROOM];
        self.memory.read(Self::incoming(lane, i) - MARGIN, &mut found);
        let mut wanted = [GUARD; ROOM];
        wanted[MARGIN..][..data.len()].copy_from_slice(data);
        match found.iter().zip(&wanted).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(format!(
                "byte {} of {} is {:#04x} and not {:#04x}",
                at as i64 - MARGIN as i64,
                data.len(),
                found[at],
                wanted[at]
            )),
        }
    }
}

/// The data of message `i` of a round.
pub fn data(seed: u64, i: usize, len: usize) -> Vec<u8> {
    Rng::new(&[seed, i as u64]).bytes(len)
}

/// A signalled request of one entry.
pub fn request(kind: Kind, wr_id: u64, local: Sge, remote: (u64, u32)) -> Wqe {
    let operands = match kind {
        Kind::FetchAdd => AtomicOperands {
            compare_add: ADD,
            swap: 0,
        },
        _ => AtomicOperands::default(),
    };
    Wqe {
        wr_id,
        opcode: match kind {
            Kind::Write => 0,
            Kind::Send => 2,
            Kind::Read => 4,
            Kind::FetchAdd => 6,
        },
        flags: wqe_flags::SIGNALED,
        num_sge: 1,
        units: 1,
        remote_addr: remote.0,
        rkey: remote.1,
        sges: [local, operands.into()],
        ..Wqe::default()
    }
}
