//! Captures of frames in pcapng files.
//!
//! A poll core copies each frame into a buffer made beforehand and passes it to a writer thread through a bounded
//! queue; buffers come back through another. When none is left the frame goes on uncaptured, and the next one that
//! is captured tells how many were missed.
use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use arrayvec::ArrayVec;
use rtrb::{Consumer, Producer, RingBuffer};
use rustix::time::{ClockId, clock_gettime};

use super::{CaptureSpec, OpenPort, Port, PortCaps, PortStats, packet, wrap};
use crate::frame::{BURST, Frame, FrameBurst, SharedPool};

mod writer;

/// Bytes of copies on their way to the writer, for each queue of a port.
const IN_FLIGHT: usize = 4 << 20;

/// The way a frame went, as the flags of an enhanced packet block have it.
#[derive(Copy, Clone)]
enum Direction {
    Received = 1,
    Sent = 2,
}

/// A copy of a frame.
struct Record {
    /// Room for the longest frame of the port.
    bytes: Box<[u8]>,
    /// Bytes used of it.
    captured: usize,
    /// Bytes the frame has.
    original: usize,
    direction: Direction,
    /// Nanoseconds of the wall clock.
    time: u64,
    /// Frames missed since the last record that told of any, by whichever queue.
    missed: u64,
}

/// What poll cores and the writer tell each other and the control thread.
#[derive(Default)]
struct Shared {
    captured: AtomicU64,
    missed: AtomicU64,
    /// Of these, frames that no record tells of yet. Common to all queues: what one has missed, another may have answered
    /// before the first captures its next frame.
    untold: AtomicU64,
    /// The file is full or broken: nothing more is wanted.
    ended: AtomicBool,
    /// No poll core has a queue of the port any more.
    closing: AtomicBool,
}

/// Both ends of what one queue of the port and the writer exchange.
struct Exchange {
    full: Consumer<Record>,
    empty: Producer<Record>,
}

/// Puts a capture around every queue of a port, and starts the writer.
pub(super) fn wrap(port: OpenPort, spec: &CaptureSpec) -> io::Result<OpenPort> {
    let file = File::create(&spec.path)?;
    let longest = port.queues.iter().map(|queue| queue.caps().max_frame).max();
    // A frame may have its VLAN tag put back.
    let snap = longest.unwrap_or(0) + 8;
    let shared = Arc::new(Shared::default());
    let mut exchanges = Vec::new();
    let mut taps = Vec::new();
    for _ in &port.queues {
        let (tap, exchange) = tap(snap, &shared);
        taps.push(tap);
        exchanges.push(exchange);
    }
    let writer = writer::Writer::new(file, &port, snap, spec, Arc::clone(&shared), exchanges)?;
    let thread = thread::Builder::new()
        .name("rnic-capture".to_owned())
        .spawn(move || writer.run())?;

    let mut taps = taps.into_iter();
    let around = |inner| match taps.next() {
        Some(tap) => Box::new(CapturePort { tap, inner }),
        None => inner,
    };
    let ending = Arc::clone(&shared);
    let counters = move || {
        vec![
            ("capture_frames", shared.captured.load(Ordering::Relaxed)),
            ("capture_missed", shared.missed.load(Ordering::Relaxed)),
        ]
    };
    let on_close = move || {
        ending.closing.store(true, Ordering::Release);
        thread.thread().unpark();
        let _ = thread.join();
    };
    Ok(wrap::wrap(port, around, counters, on_close))
}

fn tap(snap: usize, shared: &Arc<Shared>) -> (Tap, Exchange) {
    let records = (IN_FLIGHT / snap).clamp(8 * BURST, 128 * BURST);
    let (full_in, full) = RingBuffer::new(records);
    let (mut empty, mut empty_out) = RingBuffer::new(records);
    for _ in 0..records {
        let record = Record {
            bytes: vec![0; snap].into(),
            captured: 0,
            original: 0,
            direction: Direction::Received,
            time: 0,
            missed: 0,
        };
        // There is room for all.
        let _ = empty.push(record);
    }
    let spare = std::iter::from_fn(|| empty_out.pop().ok()).take(BURST).collect();
    let tap = Tap {
        full: full_in,
        empty: empty_out,
        spare,
        shared: Arc::clone(shared),
    };
    (tap, Exchange { full, empty })
}

/// A poll core's end.
struct Tap {
    full: Producer<Record>,
    empty: Consumer<Record>,
    /// Empty records at hand, so that copies made before sending can be taken back.
    spare: ArrayVec<Record, BURST>,
    shared: Arc<Shared>,
}

impl Tap {
    fn is_on(&self) -> bool {
        !self.shared.ended.load(Ordering::Relaxed)
    }

    /// Fills up the empty records at hand.
    fn refill(&mut self) {
        while !self.spare.is_full()
            && let Ok(record) = self.empty.pop()
        {
            self.spare.push(record);
        }
    }

    /// Copies frames to the records at hand, as many as there are, and tells how many.
    fn copy(&mut self, frames: &[Frame], direction: Direction) -> usize {
        self.refill();
        let time = wall_clock();
        for (frame, record) in frames.iter().zip(&mut self.spare) {
            record.original = packet::copy_tagged(frame, &mut record.bytes);
            record.captured = record.original.min(record.bytes.len());
            record.direction = direction;
            record.time = time;
            record.missed = 0;
        }
        frames.len().min(self.spare.len())
    }

    /// Passes on the first `n` records at hand, for `frames` frames that went.
    fn pass(&mut self, n: usize, frames: usize) {
        if let Some(first) = self.spare[..n].first_mut()
            && self.shared.untold.load(Ordering::Acquire) > 0
        {
            first.missed = self.shared.untold.swap(0, Ordering::AcqRel);
        }
        for record in self.spare.drain(..n) {
            // There are as many places as records.
            let _ = self.full.push(record);
        }
        let missed = (frames - n) as u64;
        if missed > 0 {
            self.shared.untold.fetch_add(missed, Ordering::AcqRel);
            self.shared.missed.fetch_add(missed, Ordering::Relaxed);
        }
    }
}

struct CapturePort {
    tap: Tap,
    inner: Box<dyn Port>,
}

impl Port for CapturePort {
    fn caps(&self) -> PortCaps {
        self.inner.caps()
    }

    fn rx_at_most(&mut self, out: &mut FrameBurst, most: usize) -> usize {
        let before = out.len();
        let n = self.inner.rx_at_most(out, most);
        if n > 0 && self.tap.is_on() {
            let copied = self.tap.copy(&out[before..], Direction::Received);
            self.tap.pass(copied, n);
        }
        n
    }

    fn tx_burst(&mut self, frames: &mut FrameBurst) -> usize {
        if frames.is_empty() || !self.tap.is_on() {
            return self.inner.tx_burst(frames);
        }
        // Frames are gone once they are sent, so all are copied, and then the copies of those that went passed on.
        let copied = self.tap.copy(frames, Direction::Sent);
        let n = self.inner.tx_burst(frames);
        self.tap.pass(copied.min(n), n);
        n
    }

    fn pool(&self) -> &SharedPool {
        self.inner.pool()
    }

    fn stats(&self) -> PortStats {
        self.inner.stats()
    }

    fn tick(&mut self, now_ns: u64) {
        self.inner.tick(now_ns);
    }
}

/// Nanoseconds since 1970 (no system call: the vDSO's).
fn wall_clock() -> u64 {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{frame::FramePool, port::HeapPool};

    #[test]
    fn what_one_queue_has_missed_the_next_record_of_any_queue_tells() {
        let shared = Arc::new(Shared::default());
        let (mut busy, _slow_writer) = tap(64, &shared);
        let (mut other, mut exchange) = tap(64, &shared);
        let pool = HeapPool::new(BURST as u32, 64);
        let mut frames = FrameBurst::new();
        pool.alloc_burst(BURST, &mut frames);
        let capture = |tap: &mut Tap, frames: &[Frame]| {
            let copied = tap.copy(frames, Direction::Received);
            tap.pass(copied, frames.len());
        };
        while shared.missed.load(Ordering::Relaxed) == 0 {
            capture(&mut busy, &frames);
        }
        let missed = shared.missed.load(Ordering::Relaxed);
        capture(&mut other, &frames[..2]);
        let told = [(); 2].map(|()| exchange.full.pop().unwrap().missed);
        assert_eq!(told, [missed, 0]);
    }
}
