//! Damage to frames on purpose, the same for the same seed and frames.
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{OpenPort, Port, PortCaps, PortStats, packet, wrap};
use crate::frame::{BURST, Frame, FrameBurst, SharedPool};

/// Frames held back at most in each direction of a queue. When that many are, frames to send stay with the caller,
/// and received ones in the device.
const HELD: usize = 1024;
/// Nanoseconds after which a frame to be overtaken goes on though none has followed.
const OVERTAKE_NS: u64 = 1_000_000;

/// Faults of both directions of a port.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultSpec {
    /// Seed of the random choices.
    pub seed: u64,
    /// Faults of frames received.
    pub rx: FaultRates,
    /// Faults of frames sent.
    pub tx: FaultRates,
}

/// How often each fault happens to a frame, in parts per million (1,000,000: always). They are independent of each
/// other.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Lost.
    pub drop_ppm: u32,
    /// Delivered twice.
    pub duplicate_ppm: u32,
    /// Delivered after the one that follows, or 1 ms later if none does.
    pub reorder_ppm: u32,
    /// One bit flipped: of RoCEv2 frames one that the ICRC covers, of others one behind the Ethernet header.
    pub corrupt_ppm: u32,
    /// Marked "congestion experienced", if the packet is ECN-capable.
    pub ecn_mark_ppm: u32,
    /// Nanoseconds by which every frame is held back.
    pub delay_ns: u64,
}

/// What happened to the frames of one direction.
#[derive(Copy, Clone)]
enum Fault {
    Drop,
    Duplicate,
    NoDuplicate,
    Reorder,
    Corrupt,
    EcnMark,
}

type Counts = [AtomicU64; 6];

const RX_NAMES: [&str; 6] = [
    "fault_rx_dropped",
    "fault_rx_duplicated",
    "fault_rx_duplicates_without_buffer",
    "fault_rx_reordered",
    "fault_rx_corrupted",
    "fault_rx_ecn_marked",
];
const TX_NAMES: [&str; 6] = [
    "fault_tx_dropped",
    "fault_tx_duplicated",
    "fault_tx_duplicates_without_buffer",
    "fault_tx_reordered",
    "fault_tx_corrupted",
    "fault_tx_ecn_marked",
];

/// Puts faults around every queue of a port. Each queue and direction has a random sequence of its own.
pub(super) fn wrap(port: OpenPort, spec: &FaultSpec) -> OpenPort {
    let counts = [(); 2].map(|()| Arc::new(Counts::default()));
    let shown = counts.clone();
    let mut seeds = Random(spec.seed);
    let around = |inner: Box<dyn Port>| -> Box<dyn Port> {
        let mut lane = |rates, counts: &Arc<Counts>| Lane {
            rates,
            random: Random(seeds.next()),
            line: VecDeque::with_capacity(HELD),
            overtaken: None,
            counts: Arc::clone(counts),
        };
        Box::new(FaultPort {
            rx: lane(spec.rx, &counts[0]),
            tx: lane(spec.tx, &counts[1]),
            leaving: FrameBurst::new(),
            now: 0,
            inner,
        })
    };
    let counters = move || {
        let names = RX_NAMES
            .iter()
            .zip(&*shown[0])
            .chain(TX_NAMES.iter().zip(&*shown[1]));
        names
            .map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
            .collect()
    };
    wrap::wrap(port, around, counters, || ())
}

struct FaultPort {
    // Before the inner port, which keeps their pool.
    rx: Lane,
    tx: Lane,
    /// Due to be sent, not yet taken by the device.
    leaving: FrameBurst,
    now: u64,
    inner: Box<dyn Port>,
}

/// One direction of a queue.
struct Lane {
    rates: FaultRates,
    random: Random,
    /// Frames in order, each with the time at which it is due.
    line: VecDeque<(u64, Frame)>,
    /// A frame that the next one is to overtake, and since when it waits.
    overtaken: Option<(u64, Frame)>,
    counts: Arc<Counts>,
}

impl Lane {
    /// Frames that can be admitted: each may become two, and let out the one it overtakes.
    fn room(&self) -> usize {
        (HELD - self.line.len()).saturating_sub(1) / 2
    }

    fn hit(&mut self, ppm: u32, fault: Fault) -> bool {
        let hit = self.random.chance(ppm);
        if hit {
            self.count(fault);
        }
        hit
    }

    fn count(&self, fault: Fault) {
        self.counts[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Lets one frame in. There is room.
    fn admit(&mut self, mut frame: Frame, now: u64, pool: &SharedPool) {
        let rates = self.rates;
        if self.hit(rates.drop_ppm, Fault::Drop) {
            return;
        }
        if self.random.chance(rates.corrupt_ppm) && self.corrupt(frame.bytes_mut()) {
            self.count(Fault::Corrupt);
        }
        if self.random.chance(rates.ecn_mark_ppm) && packet::mark_congestion(frame.bytes_mut()) {
            self.count(Fault::EcnMark);
        }
        let twin = if self.random.chance(rates.duplicate_ppm) {
            let twin = duplicate(&frame, pool);
            self.count(twin.as_ref().map_or(Fault::NoDuplicate, |_| Fault::Duplicate));
            twin
        } else {
            None
        };
        let overtaken = self.overtaken.take();
        if overtaken.is_none() && self.hit(rates.reorder_ppm, Fault::Reorder) {
            self.overtaken = Some((now, frame));
        } else {
            self.enqueue(frame, now);
        }
        for frame in twin.into_iter().chain(overtaken.map(|(_, frame)| frame)) {
            self.enqueue(frame, now);
        }
    }

    fn enqueue(&mut self, frame: Frame, now: u64) {
        debug_assert!(self.line.len() < HELD);
        self.line
            .push_back((now.saturating_add(self.rates.delay_ns), frame));
    }

    /// Flips a bit; `false` when the frame has none to flip.
    fn corrupt(&mut self, bytes: &mut [u8]) -> bool {
        let range = packet::covered(bytes);
        if range.is_empty() {
            return false;
        }
        let choice = self.random.below(range.len() as u64 * 8) as usize;
        let mut at = range.start + choice / 8;
        if packet::is_masked(bytes, at) {
            at = range.start;
        }
        bytes[at] ^= 1 << (choice % 8);
        true
    }

    /// Lets a frame go on that none has overtaken for long.
    fn tick(&mut self, now: u64) {
        if let Some((since, _)) = self.overtaken
            && now.saturating_sub(since) >= OVERTAKE_NS
            && self.line.len() < HELD
            && let Some((_, frame)) = self.overtaken.take()
        {
            self.enqueue(frame, now);
        }
    }

    /// Moves frames that are due to `out`, at most `most`, and tells how many.
    fn release(&mut self, now: u64, out: &mut FrameBurst, most: usize) -> usize {
        let mut n = 0;
        while n < most && !out.is_full() && self.line.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, frame)) = self.line.pop_front() {
                out.push(frame);
                n += 1;
            }
        }
        n
    }
}

fn duplicate(frame: &Frame, pool: &SharedPool) -> Option<Frame> {
    let mut twin = pool.alloc()?;
    let len = packet::copy_tagged(frame, twin.buffer_mut());
    if len > twin.room() {
        return None;
    }
    twin.set_len(len);
    Some(twin)
}

impl FaultPort {
    fn send(&mut self) {
        loop {
            self.tx.release(self.now, &mut self.leaving, BURST);
            if self.leaving.is_empty() {
                return;
            }
            self.inner.tx_burst(&mut self.leaving);
            if !self.leaving.is_empty() {
                return;
            }
        }
    }
}

impl Port for FaultPort {
    fn caps(&self) -> PortCaps {
        self.inner.caps()
    }

    fn rx_at_most(&mut self, out: &mut FrameBurst, most: usize) -> usize {
        if self.rx.room() >= BURST {
            let mut arrived = FrameBurst::new_const();
            self.inner.rx_at_most(&mut arrived, most);
            for frame in arrived {
                self.rx.admit(frame, self.now, self.inner.pool());
            }
        }
        self.rx.release(self.now, out, most)
    }

    fn tx_burst(&mut self, frames: &mut FrameBurst) -> usize {
        let n = frames.len().min(self.tx.room());
        for frame in frames.drain(..n) {
            self.tx.admit(frame, self.now, self.inner.pool());
        }
        self.send();
        n
    }

    fn pool(&self) -> &SharedPool {
        self.inner.pool()
    }

    fn stats(&self) -> PortStats {
        self.inner.stats()
    }

    fn tick(&mut self, now_ns: u64) {
        self.now = now_ns;
        self.rx.tick(now_ns);
        self.tx.tick(now_ns);
        self.inner.tick(now_ns);
        self.send();
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Whether something of that many parts per million happens. Draws nothing for "never".
    fn chance(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }
}
