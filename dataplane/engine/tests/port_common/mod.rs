//! What the tests of ports share.
#![allow(dead_code, reason = "each test binary uses a part")]
use std::time::{Duration, Instant};

use rnic_engine::{
    frame::{BURST, FrameBurst, FramePool},
    port::{OpenPort, Port},
};

/// Frame `i` of a test: a length up to `longest`, and bytes that tell frames apart. The destination is multicast
/// and the EtherType one that nobody listens to.
pub fn pattern(i: usize, longest: usize) -> Vec<u8> {
    let len = 60 + i * 131 % (longest - 59);
    let mut bytes: Vec<u8> = (0..len).map(|at| (at * 7 + i * 13) as u8).collect();
    bytes[..14].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, i as u8, 0x88, 0xb5]);
    bytes
}

/// `n` frames of `pool`, the first of which is frame `first`.
pub fn burst(pool: &dyn FramePool, n: usize, first: usize, longest: usize) -> FrameBurst {
    let mut burst = FrameBurst::new();
    assert_eq!(pool.alloc_burst(n, &mut burst), n, "the pool has enough frames");
    for (i, frame) in burst.iter_mut().enumerate() {
        assert!(frame.fill(&pattern(first + i, longest)));
    }
    burst
}

/// Sends `total` frames, receives them at the other end, and compares every byte.
pub fn exchange(from: &mut dyn Port, to: &mut dyn Port, total: usize, longest: usize) {
    let pool = from.pool().clone();
    let deadline = deadline();
    let (mut made, mut received) = (0, 0);
    let (mut outgoing, mut incoming) = (FrameBurst::new(), FrameBurst::new());
    while received < total {
        assert!(
            Instant::now() < deadline,
            "{received} of {total} frames came in 20 s; {:?} {:?}",
            from.stats(),
            to.stats()
        );
        // Not more under way than any driver's rings hold.
        if outgoing.is_empty() && made < total && made - received <= 64 {
            outgoing = burst(&*pool, BURST.min(total - made), made, longest);
            made += outgoing.len();
        }
        from.tx_burst(&mut outgoing);
        if to.rx_burst(&mut incoming) == 0 {
            std::thread::yield_now();
        }
        for frame in incoming.drain(..) {
            if frame.bytes().get(12..14) == Some(&[0x88, 0xb5]) {
                assert_eq!(frame.bytes(), pattern(received, longest), "frame {received}");
                received += 1;
            }
        }
    }
}

pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Waits for something that another thread brings about.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = deadline();
    while !done() {
        assert!(Instant::now() < deadline, "not after 20 s: {what}");
        std::thread::yield_now();
    }
}

/// The value of a counter of the port's link.
pub fn counter(port: &OpenPort, name: &str) -> u64 {
    let counters = port.link.counters();
    let found = counters.iter().find(|(n, _)| *n == name);
    found
        .unwrap_or_else(|| panic!("no counter {name} in {counters:?}"))
        .1
}

/// Drops the queues of ports, then closes them.
pub fn close(ports: impl IntoIterator<Item = OpenPort>) {
    for mut port in ports {
        port.queues.clear();
        port.link.close();
    }
}
