//! What a core owes its clients however busy it is: to each its share, and every event.
mod common;

use std::sync::atomic::Ordering;

use common::{
    DEPTH, Rig,
    hold::{two_cores, until},
    path, port, wqe,
};
use rnic_abi::{RingIndices, event_kind};
use rnic_engine::{
    EngineConfig, Limits,
    core::Idle,
    frame::{FrameBurst, SharedPool},
    nonblocking::CheckedAllocator,
    port::{HeapPool, ring_pair},
};
use rnic_transport::{QpAttr, QpAttrMask, QpState};
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const WRITE: u8 = 0;
const READ: u8 = 4;
/// `IBV_WC_WR_FLUSH_ERR`.
const WR_FLUSH_ERR: u8 = 5;

#[test]
fn a_qp_with_much_to_move_leaves_others_their_turn() {
    const HUGE: u32 = 2 << 20;
    for (opcode, mtu) in [
        (WRITE, Mtu::M256),
        (WRITE, Mtu::M4096),
        (READ, Mtu::M256),
        (READ, Mtu::M4096),
    ] {
        let (mut rig, hold) = two_cores();
        let [hog, hogs_peer, other, others_peer] = [11, 13, 15, 17].map(|slot| rig.create_qp(slot));
        assert_eq!((rig.qps[hog].core, rig.qps[other].core), (1, 1));
        rig.connect(hog, hogs_peer, path(1, 1, true), path(1, 1, true), mtu);
        rig.connect(other, others_peer, path(1, 1, true), path(1, 1, true), mtu);
        // Both are there when the core goes on, the hog first.
        hold.hold();
        let huge = rig.sge(0, HUGE);
        for i in 0..4 {
            rig.post_send(hog, wqe(i, opcode, huge, 4 << 20, rig.key));
        }
        let small = rig.sge(0, 64);
        rig.post_send(other, wqe(9, WRITE, small, 4 << 20, rig.key));
        hold.release();
        let done = rig.wait_cqe(other);
        let first = rig.wait_cqe(hog);
        assert_eq!((done.status, first.status), (0, 0));
        assert!(
            done.timestamp < first.timestamp,
            "opcode {opcode}, {mtu:?}: a small request waited for one of {HUGE} bytes"
        );
        rig.engine.stop();
    }
}

#[test]
fn a_qp_with_much_to_flush_leaves_others_their_turn() {
    for queue in ["sends", "receives"] {
        let (mut rig, hold) = two_cores();
        let [hog, nobody, other] = [11, 13, 15].map(|slot| rig.create_qp(slot));
        assert_eq!((rig.qps[hog].core, rig.qps[other].core), (1, 1));
        // Nobody answers, and the hog does not give up.
        rig.timeout = 0;
        rig.connect_one(hog, nobody, path(1, 1, true), Mtu::M1024);
        rig.connect_one(other, nobody, path(1, 1, true), Mtu::M1024);
        let small = rig.sge(0, 64);
        for i in 0..u64::from(DEPTH) {
            match queue {
                "sends" => rig.post_send(hog, wqe(i, WRITE, small, 4 << 20, rig.key)),
                _ => rig.post_recv(hog, i, &[]),
            }
        }
        if queue == "sends" {
            let taken = rig.qps[hog].sq as usize + RingIndices::HEAD;
            let taken = rig.region.u32(taken).unwrap();
            until("the core has taken them over", || {
                taken.load(Ordering::Acquire) == DEPTH
            });
        }
        rig.post_recv(other, 99, &[]);
        // Both are to be flushed when the core goes on.
        hold.hold();
        let err = QpAttr {
            state: QpState::Err,
            ..QpAttr::default()
        };
        for qp in [hog, other] {
            rig.submit_modify(qp, err, QpAttrMask::STATE, None);
        }
        hold.release();
        let flushed = rig.wait_cqe(other);
        let hogs: Vec<_> = (0..DEPTH).map(|_| rig.wait_cqe(hog)).collect();
        for (wr_id, cqe) in (0..).zip(&hogs).chain([(99, &flushed)]) {
            assert_eq!((cqe.wr_id, cqe.status), (wr_id, WR_FLUSH_ERR), "{queue}");
        }
        let last = hogs.last().map(|cqe| cqe.timestamp);
        assert!(
            Some(flushed.timestamp) < last,
            "one receive waited for {DEPTH} {queue}"
        );
        rig.engine.stop();
    }
}

/// Takes frames for the slow path, which never end.
fn flood(pool: &SharedPool, out: &mut FrameBurst) -> usize {
    /// ARP, for the slow path.
    const FRAME: [u8; 60] = {
        let mut frame = [0; 60];
        (frame[12], frame[13]) = (0x08, 0x06);
        frame
    };
    for taken in 0..8 {
        let Some(mut frame) = pool.alloc() else {
            return taken;
        };
        frame.fill(&FRAME);
        if out.try_push(frame).is_err() {
            return taken;
        }
    }
    8
}

#[test]
fn no_event_is_lost_while_the_control_thread_hears_nothing_and_its_queue_is_full() {
    const QPS: u32 = 150;
    let pool: SharedPool = HeapPool::for_mtu(8192, 128);
    let queues = vec![port::queue(&pool, flood)];
    let port = port::open(128, pool, queues);
    let limits = Limits {
        qps: QPS + 2,
        cqs: QPS + 2,
        srqs: 1,
        ..Rig::config(1, vec![], Idle::Spin).limits
    };
    let config = EngineConfig {
        limits,
        ..Rig::config(1, vec![port], Idle::Spin)
    };
    let mut rig = Rig::sized(config, QPS as usize);
    let qps: Vec<usize> = (2..QPS + 2).map(|slot| rig.create_qp(slot)).collect();
    for pair in qps.chunks(2) {
        rig.connect(pair[0], pair[1], path(1, 1, true), path(1, 1, true), Mtu::M1024);
    }
    let dropped = |rig: &Rig| {
        let counters = rig.engine.core_status(0).counters;
        counters
            .named()
            .find(|(name, _)| *name == "slow_path_dropped")
            .map(|(_, n)| n)
    };
    let before = dropped(&rig);
    until("the queue is full", || dropped(&rig) > before);
    for qp in &qps {
        let (sq, handle) = (rig.qps[*qp].sq as usize, rig.qps[*qp].handle);
        rig.publish(sq, 1_000_000, handle, 0);
    }
    // The core has seen them all when it has dropped many more frames; nobody listens yet.
    let seen = dropped(&rig).map(|n| n + 100_000);
    until("the core has gone on", || dropped(&rig) > seen);
    until("every event is there", || {
        rig.poll();
        rig.events.len() >= qps.len()
    });
    let mut told: Vec<u32> = rig.events.iter().map(|event| event.number).collect();
    told.sort_unstable();
    told.dedup();
    assert_eq!(
        (told.len(), rig.events.len()),
        (qps.len(), qps.len()),
        "each once"
    );
    assert!(rig.events.iter().all(|event| event.kinds == event_kind::QP_FATAL));
    rig.engine.stop();
}

#[test]
fn of_more_qps_than_a_pass_serves_each_gets_its_turn() {
    const QPS: u32 = 300;
    const EACH: u64 = 32;
    let pool: SharedPool = HeapPool::for_mtu(4096, 1500);
    let (a, b) = ring_pair("rnic0", "rnic1", 1, 1500, pool);
    let limits = Limits {
        qps: QPS + 2,
        cqs: QPS + 2,
        ..Rig::config(1, vec![], Idle::Spin).limits
    };
    let config = EngineConfig {
        limits,
        ..Rig::config(1, vec![a, b], Idle::Spin)
    };
    let mut rig = Rig::sized(config, QPS as usize);
    let qps: Vec<usize> = (2..QPS + 2).map(|slot| rig.create_qp(slot)).collect();
    for pair in qps.chunks(2) {
        rig.connect(pair[0], pair[1], path(1, 2, false), path(2, 1, false), Mtu::M1024);
    }
    let sent = rig.fill(0, 4096, 7);
    for i in 0..EACH {
        for pair in qps.chunks(2) {
            // More than there is room for in the rings between the ports.
            let sge = rig.sge(i * 64, 64);
            rig.post_send(pair[0], wqe(i, WRITE, sge, (1 << 20) + i * 64, rig.key));
        }
    }
    for pair in qps.chunks(2) {
        let done: Vec<(u64, u8)> = (0..EACH)
            .map(|_| rig.wait_cqe(pair[0]))
            .map(|cqe| (cqe.wr_id, cqe.status))
            .collect();
        assert_eq!(done, (0..EACH).map(|i| (i, 0)).collect::<Vec<_>>());
    }
    let len = EACH as usize * 64;
    assert_eq!(rig.bytes(1 << 20, len), sent[..len]);
    rig.engine.stop();
}
