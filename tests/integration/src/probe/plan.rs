//! What two clients do.
use serde::{Deserialize, Serialize};

use super::Rng;

/// An operation of the RC service.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// SEND.
    Send,
    /// SEND with immediate.
    SendImm,
    /// RDMA WRITE.
    Write,
    /// RDMA WRITE with immediate.
    WriteImm,
    /// RDMA READ.
    Read,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 5] = [Op::Send, Op::SendImm, Op::Write, Op::WriteImm, Op::Read];

    /// Whether it takes a receive of the peer.
    pub const fn consumes(self) -> bool {
        !matches!(self, Op::Write | Op::Read)
    }

    /// Whether the peer sees immediate data.
    pub const fn has_imm(self) -> bool {
        matches!(self, Op::SendImm | Op::WriteImm)
    }
}

/// What two clients do; both carry out the same, each with data of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// Operations used.
    pub ops: Vec<Op>,
    /// Path MTUs in bytes; none means all that both ports allow.
    pub mtus: Vec<u32>,
    /// Of the sizes, alignments, and data.
    pub seed: u64,
    /// Bytes of the longest message.
    pub size_max: usize,
    /// Messages of a round.
    pub window: usize,
    /// How often every operation meets every size at an MTU.
    pub repeat: usize,
    /// Go on until the standard input ends, printing a report after each round.
    pub endless: bool,
    /// Which GID to use on either side: of the port's address of that index.
    pub gid_index: u8,
    /// Exponent of the local ACK timeout.
    pub timeout: u8,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            ops: Op::ALL.to_vec(),
            mtus: Vec::new(),
            seed: 1,
            size_max: 40_000,
            window: 10,
            repeat: 1,
            endless: false,
            gid_index: 0,
            // 34 ms, times eight: a busy machine makes nobody give up, and a lost last packet costs little.
            timeout: 13,
        }
    }
}

/// One operation of one side.
#[derive(Clone, Debug)]
pub struct Message {
    /// What it is.
    pub op: Op,
    /// Bytes.
    pub len: usize,
    /// Immediate data, for operations that have some.
    pub imm: u32,
    /// Misalignment of the data at the requester, 0 to 63.
    pub local: usize,
    /// Misalignment of the data at the responder, 0 to 63.
    pub remote: usize,
    /// Parts into which the requester's list cuts the data, 1 to 3.
    pub local_parts: usize,
    /// Parts into which the responder's scatter list cuts the data, 1 to 3.
    pub remote_parts: usize,
    /// The data stands in the WQE, if that is possible.
    pub inline: bool,
    /// Room of the receive beyond the message.
    pub spare: usize,
    /// Seed of its bytes.
    pub data_seed: u64,
}

impl Message {
    /// The bytes it carries.
    pub fn data(&self) -> Vec<u8> {
        Rng::new(&[self.data_seed]).bytes(self.len)
    }
}

/// Longest payload that is put into a WQE.
pub const INLINE_MAX: usize = 120;

impl Plan {
    /// Lengths worth trying at a path MTU: around its multiples, and the longest.
    fn lengths(&self, mtu: usize) -> Vec<usize> {
        let near = [1, 2]
            .into_iter()
            .flat_map(|n| [n * mtu - 1, n * mtu, n * mtu + 1]);
        let mut all: Vec<usize> = [0, 1, 4, 67]
            .into_iter()
            .chain(near)
            .chain([3 * mtu + 7])
            .collect();
        all.push(self.size_max);
        all.retain(|len| *len <= self.size_max);
        all
    }

    /// The messages of one side (0 or 1) at a path MTU, in rounds of [`Plan::window`]. Endless plans have as many
    /// as `rounds` says, others as many as it takes.
    pub fn rounds(&self, mtu: u32, side: u64) -> Vec<Vec<Message>> {
        let mut rng = Rng::new(&[self.seed, u64::from(mtu), side]);
        let lengths = self.lengths(mtu as usize);
        let mut pairs: Vec<(Op, usize)> = (0..self.repeat.max(1))
            .flat_map(|_| self.ops.iter())
            .flat_map(|op| lengths.iter().map(move |len| (*op, *len)))
            .collect();
        for i in (1..pairs.len()).rev() {
            pairs.swap(i, rng.below(i + 1));
        }
        let messages = pairs.into_iter().map(|(op, len)| Message {
            op,
            len,
            imm: rng.next() as u32,
            local: rng.below(64),
            remote: rng.below(64),
            local_parts: 1 + rng.below(3),
            remote_parts: 1 + rng.below(3),
            inline: rng.below(2) == 0,
            spare: 16 * rng.below(4),
            data_seed: rng.next(),
        });
        let messages: Vec<_> = messages.collect();
        messages.chunks(self.window.max(1)).map(<[_]>::to_vec).collect()
    }
}
