//! A first look at the whole trace: which lane answers which, and what the path MTU is.
//!
//! A frame names only the QP it goes to. What goes to one QP is a *lane*; a connection is two lanes with addresses
//! swapped, and which two is told by the PSNs: the responses in one lane answer the requests in the other.

use crate::report::Report;
use rnic_wire::{Frame, Mtu, Operation, Syndrome, Transport};
use std::collections::HashMap;
use std::net::IpAddr;

/// What identifies a lane.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey {
    pub transport: Transport,
    pub src: IpAddr,
    pub dst: IpAddr,
    /// The QP it goes to.
    pub qpn: u32,
}

impl LaneKey {
    pub fn of(frame: &Frame<'_>) -> Self {
        let net = frame.net();
        LaneKey {
            // Selective acknowledgements belong to RC.
            transport: match frame.bth().opcode.transport {
                Transport::Rnic => Transport::Rc,
                transport => transport,
            },
            src: net.src(),
            dst: net.dst(),
            qpn: frame.bth().dest_qpn,
        }
    }

    fn answers(&self, other: &LaneKey) -> bool {
        self.transport == other.transport && self.src == other.dst && self.dst == other.src
    }
}

/// The path MTU of a connection, as far as the trace shows it.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Path {
    /// The size of FIRST and MIDDLE packets.
    pub mtu: Option<Mtu>,
    /// The longest payload of any packet.
    pub largest: usize,
}

impl Path {
    /// Packets that a message of `len` bytes takes; `None` when nothing tells.
    pub fn packets(&self, len: u32) -> Option<i64> {
        match self.mtu {
            Some(mtu) => Some(i64::from(mtu.packets(len))),
            None => (len as usize <= self.largest.max(Mtu::M256.bytes())).then_some(1),
        }
    }
}

#[derive(Default)]
struct Seen {
    /// PSNs of requests, and how many PSNs each may take.
    requests: HashMap<u32, u32>,
    /// READs alone, whose responses have PSNs of their own.
    reads: Vec<(u32, u32)>,
    /// PSNs of positive responses.
    responses: Vec<u32>,
    sizes: HashMap<usize, usize>,
    largest: usize,
    source_port: u16,
}

impl Seen {
    fn requested(&self, psn: u32) -> bool {
        let within = |&(first, count): &(u32, u32)| psn.wrapping_sub(first) & 0xFF_FFFF < count;
        self.requests.contains_key(&psn) || self.reads.iter().any(within)
    }
}

/// Collects what the first look sees.
#[derive(Default)]
pub(crate) struct Survey {
    index: HashMap<LaneKey, usize>,
    keys: Vec<LaneKey>,
    seen: Vec<Seen>,
}

impl Survey {
    /// Looks at a frame of RC, UC or XRC.
    pub fn look(&mut self, frame: &Frame<'_>) {
        let key = LaneKey::of(frame);
        let lane = *self.index.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.seen.push(Seen::default());
            self.keys.len() - 1
        });
        let seen = &mut self.seen[lane];
        let bth = frame.bth();
        let (psn, len) = (bth.psn.get(), frame.payload().len());
        seen.source_port = frame.udp_src_port();
        seen.largest = seen.largest.max(len);
        if (bth.opcode.is_first() || bth.opcode.is_middle()) && Mtu::from_bytes(len).is_some() {
            *seen.sizes.entry(len).or_default() += 1;
        }
        let headers = frame.headers();
        if bth.opcode.is_request() {
            seen.requests.insert(psn, 1);
            if let Some(reth) = headers.reth
                && bth.opcode.operation == Operation::ReadRequest
            {
                seen.reads.push((psn, Mtu::M256.packets(reth.dma_len)));
            }
        } else if headers
            .aeth
            .is_none_or(|aeth| matches!(aeth.syndrome, Syndrome::Ack { .. }))
        {
            seen.responses.push(psn);
        }
    }

    /// Pairs the lanes.
    pub fn finish(self, report: &mut Report) -> Lanes {
        let mut peers: Vec<Option<usize>> = vec![None; self.keys.len()];
        for (lane, seen) in self.seen.iter().enumerate() {
            if seen.responses.is_empty() {
                continue;
            }
            peers[lane] = self.requester_of(lane, report);
        }
        // Who only requests is the peer of who only responds.
        for lane in 0..peers.len() {
            if let Some(peer) = peers[lane]
                && peers[peer].is_none()
            {
                peers[peer] = Some(lane);
            }
        }
        report.connections = (0..peers.len())
            .filter(|&lane| peers[lane].is_some_and(|peer| peer >= lane))
            .count();
        let paths = (0..peers.len())
            .map(|lane| self.path(lane, peers[lane]))
            .collect();
        Lanes {
            index: self.index,
            keys: self.keys,
            peers,
            paths,
        }
    }

    /// The lane whose requests the responses in `lane` answer.
    fn requester_of(&self, lane: usize, report: &mut Report) -> Option<usize> {
        let seen = &self.seen[lane];
        let score = |other: usize| {
            let requests = &self.seen[other];
            let matched = seen
                .responses
                .iter()
                .filter(|psn| requests.requested(**psn))
                .count();
            // Both directions of a connection usually have the same source port.
            (matched, requests.source_port == seen.source_port)
        };
        let candidates = (0..self.keys.len()).filter(|&other| self.keys[other].answers(&self.keys[lane]));
        let mut scored: Vec<_> = candidates.map(|other| (score(other), other)).collect();
        scored.sort_unstable();
        let (best, peer) = scored.pop().filter(|((matched, _), _)| *matched > 0)?;
        if scored.last().is_some_and(|(next, _)| *next == best) {
            let LaneKey { src, dst, qpn, .. } = self.keys[lane];
            report.note(format!(
                "{src}>{dst} qp={qpn:#08x}: whose requests its {} responses answer cannot be told; they are not checked",
                seen.responses.len()
            ));
            return None;
        }
        Some(peer)
    }

    fn path(&self, lane: usize, peer: Option<usize>) -> Path {
        let mut sizes: HashMap<usize, usize> = HashMap::new();
        let mut largest = 0;
        for lane in [Some(lane), peer].into_iter().flatten() {
            for (size, count) in &self.seen[lane].sizes {
                *sizes.entry(*size).or_default() += count;
            }
            largest = largest.max(self.seen[lane].largest);
        }
        let usual = sizes.into_iter().max_by_key(|&(size, count)| (count, size));
        Path {
            mtu: usual.and_then(|(size, _)| Mtu::from_bytes(size)),
            largest,
        }
    }
}

/// What the first look found.
pub(crate) struct Lanes {
    index: HashMap<LaneKey, usize>,
    keys: Vec<LaneKey>,
    /// The lane in the other direction of the same connection.
    peers: Vec<Option<usize>>,
    paths: Vec<Path>,
}

impl Lanes {
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn find(&self, key: &LaneKey) -> Option<usize> {
        self.index.get(key).copied()
    }

    pub fn key(&self, lane: usize) -> &LaneKey {
        &self.keys[lane]
    }

    pub fn peer(&self, lane: usize) -> Option<usize> {
        self.peers[lane]
    }

    pub fn path(&self, lane: usize) -> Path {
        self.paths[lane]
    }
}
