//! The ring pair in Rust alone.
use std::sync::Arc;

use rnic_engine::{
    frame::{BURST, FrameBurst, FramePool, SharedPool},
    port::{HeapPool, OpenPort, RING_FRAMES, ring_pair},
};

fn pair(queues: u16, buffers: u32) -> (OpenPort, OpenPort, Arc<HeapPool>) {
    let pool = Arc::new(HeapPool::new(buffers, 1600));
    let shared: SharedPool = pool.clone();
    let (a, b) = ring_pair("rnic0", "rnic1", queues, 1500, shared);
    (a, b, pool)
}

/// Frames of different lengths, whose bytes tell which they are.
fn fill(pool: &dyn FramePool, n: usize, first: usize) -> FrameBurst {
    let mut burst = FrameBurst::new();
    assert_eq!(pool.alloc_burst(n, &mut burst), n);
    for (i, frame) in burst.iter_mut().enumerate() {
        assert!(frame.fill(&pattern(first + i)));
    }
    burst
}

fn pattern(i: usize) -> Vec<u8> {
    (0..60 + i % 1400).map(|at| (at * 7 + i) as u8).collect()
}

#[test]
fn frames_cross_byte_exact_and_in_order_both_ways() {
    let (mut a, mut b, pool) = pair(1, 256);
    let (mut from, mut to) = (&mut a.queues[0], &mut b.queues[0]);
    for round in 0..100 {
        let mut burst = fill(&*pool, BURST, round * BURST);
        assert_eq!(from.tx_burst(&mut burst), BURST);
        assert!(burst.is_empty());
        let mut received = FrameBurst::new();
        assert_eq!(to.rx_burst(&mut received), BURST);
        for (i, frame) in received.iter().enumerate() {
            assert_eq!(frame.bytes(), pattern(round * BURST + i));
        }
        std::mem::swap(&mut from, &mut to);
    }
    let (a, b) = (a.queues[0].stats(), b.queues[0].stats());
    assert_eq!((a.tx_frames, a.rx_frames), (1600, 1600));
    assert_eq!((a.tx_bytes, a.rx_bytes), (b.rx_bytes, b.tx_bytes));
    assert_eq!(pool.available(), pool.size());
}

#[test]
fn what_a_full_ring_does_not_take_stays_with_the_caller_in_order() {
    let (mut a, mut b, pool) = pair(1, RING_FRAMES as u32 + 2 * BURST as u32);
    for round in 0..RING_FRAMES / BURST - 1 {
        assert_eq!(
            a.queues[0].tx_burst(&mut fill(&*pool, BURST, round * BURST)),
            BURST
        );
    }
    let mut short = fill(&*pool, BURST - 3, RING_FRAMES - BURST);
    assert_eq!(a.queues[0].tx_burst(&mut short), BURST - 3);
    let mut last = fill(&*pool, BURST, RING_FRAMES - 3);
    assert_eq!(a.queues[0].tx_burst(&mut last), 3);
    assert_eq!(a.queues[0].tx_burst(&mut last), 0);
    assert_eq!(last.len(), BURST - 3);
    assert_eq!(last[0].bytes(), pattern(RING_FRAMES));

    let mut next = 0;
    let mut received = FrameBurst::new();
    while b.queues[0].rx_burst(&mut received) > 0 {
        for frame in received.drain(..) {
            assert_eq!(frame.bytes(), pattern(next));
            next += 1;
        }
    }
    assert_eq!(next, RING_FRAMES);
}

#[test]
fn no_more_come_than_were_asked_for_and_the_rest_comes_later() {
    let (mut a, mut b, pool) = pair(1, 2 * BURST as u32);
    assert_eq!(a.queues[0].tx_burst(&mut fill(&*pool, BURST, 0)), BURST);
    let mut received = FrameBurst::new();
    for most in [1, 5, 0, BURST] {
        let before = received.len();
        let came = b.queues[0].rx_at_most(&mut received, most);
        assert_eq!(came, most.min(BURST - before));
        assert_eq!(received.len(), before + came);
    }
    for (i, frame) in received.iter().enumerate() {
        assert_eq!(frame.bytes(), pattern(i));
    }
}

#[test]
fn a_burst_that_holds_frames_already_is_filled_up() {
    let (mut a, mut b, pool) = pair(1, 64);
    let mut received = fill(&*pool, BURST - 2, 0);
    a.queues[0].tx_burst(&mut fill(&*pool, 5, 100));
    assert_eq!(b.queues[0].rx_burst(&mut received), 2);
    assert_eq!(received[BURST - 1].bytes(), pattern(101));
    assert_eq!(b.queues[0].rx_burst(&mut received), 0);
}

#[test]
fn queues_do_not_mix() {
    let (mut a, mut b, pool) = pair(3, 64);
    for queue in 0..3 {
        a.queues[queue].tx_burst(&mut fill(&*pool, 1, queue));
    }
    for queue in (0..3).rev() {
        let mut received = FrameBurst::new();
        assert_eq!(b.queues[queue].rx_burst(&mut received), 1);
        assert_eq!(received[0].bytes(), pattern(queue));
    }
}

#[test]
fn closing_gives_every_frame_back_in_any_order() {
    for b_first in [false, true] {
        let (mut a, mut b, pool) = pair(2, 128);
        a.queues[0].tx_burst(&mut fill(&*pool, 20, 0));
        b.queues[1].tx_burst(&mut fill(&*pool, 30, 0));
        assert_eq!(pool.available(), 78);
        assert!(a.link.is_up() && b.link.is_up());
        let (mut first, mut second) = if b_first { (b, a) } else { (a, b) };
        first.queues.clear();
        first.link.close();
        assert!(!second.link.is_up());
        second.queues.clear();
        second.link.close();
        assert_eq!(pool.available(), pool.size());
    }
}

#[test]
fn ends_have_addresses_of_their_own_and_an_mtu_their_buffers_hold() {
    let (a, b, _pool) = pair(1, 8);
    assert_ne!(a.mac, b.mac);
    assert_eq!((a.mtu, a.queues[0].caps().max_frame), (1500, 1514));
    let small: SharedPool = Arc::new(HeapPool::new(8, 1000));
    let (c, _d) = ring_pair("rnic2", "rnic3", 1, 9000, small);
    assert_eq!((c.mtu, c.queues[0].caps().max_frame), (986, 1000));
}

#[test]
fn frames_cross_between_threads() {
    let (mut a, mut b, pool) = pair(1, 512);
    let total = if cfg!(miri) { 200 } else { 50_000 };
    let (mut tx, mut rx) = (a.queues.remove(0), b.queues.remove(0));
    std::thread::scope(|scope| {
        let pool = &pool;
        let sender = scope.spawn(move || {
            let (mut sent, mut burst) = (0, FrameBurst::new());
            while sent < total {
                if burst.is_empty() {
                    let n = pool.alloc_burst(BURST.min(total - sent), &mut burst);
                    for (i, frame) in burst.iter_mut().enumerate().take(n) {
                        assert!(frame.fill(&(sent + i).to_be_bytes()));
                    }
                }
                match tx.tx_burst(&mut burst) {
                    0 => std::thread::yield_now(),
                    n => sent += n,
                }
            }
            tx
        });
        let (mut next, mut burst) = (0usize, FrameBurst::new());
        while next < total {
            if rx.rx_burst(&mut burst) == 0 {
                std::thread::yield_now();
            }
            for frame in burst.drain(..) {
                assert_eq!(frame.bytes(), next.to_be_bytes());
                next += 1;
            }
        }
        drop(sender.join().expect("the sender has sent everything"));
    });
    drop((a, b));
    assert_eq!(pool.available(), pool.size());
}
