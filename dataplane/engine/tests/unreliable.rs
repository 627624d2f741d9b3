//! UC and UD through poll cores, played by hand.
mod common;

use std::time::{Duration, Instant};

use common::{Rig, path, wqe};
use rnic_engine::core::CoreCounters;
use rnic_engine::nonblocking::CheckedAllocator;
use rnic_engine::port::{HeapPool, OpenPort, ring_pair};
use rnic_transport::{QpState, QpType};
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const WRITE: u8 = 0;
const WRITE_WITH_IMM: u8 = 1;
const SEND: u8 = 2;
const READ: u8 = 4;

const A: usize = 0;
const B: usize = 1 << 20;

fn wired() -> Vec<OpenPort> {
    let (a, b) = ring_pair("rnic0", "rnic1", 1, 4200, HeapPool::for_mtu(2048, 4200));
    vec![a, b]
}

/// Two QPs of one type, on different cores where there are two.
fn uc_pair(rig: &mut Rig, direct: bool) -> (usize, usize) {
    rig.qp_type = QpType::Uc;
    let (a, b) = (rig.create_qp(10), rig.create_qp(11));
    rig.connect(a, b, path(1, 2, direct), path(2, 1, direct), Mtu::M1024);
    (a, b)
}

/// Waits until the first core has told such counters.
fn settle(rig: &Rig, good: impl Fn(&CoreCounters) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !good(&rig.engine.core_status(0).counters) {
        assert!(
            Instant::now() < deadline,
            "{:?}",
            rig.engine.core_status(0).counters
        );
        std::thread::yield_now();
    }
}

#[test]
fn uc_moves_sends_and_writes_over_wires_and_within_the_appliance() {
    for (cores, direct) in [(1, true), (1, false), (2, true), (2, false)] {
        let mut rig = Rig::new(cores, wired());
        let (a, b) = uc_pair(&mut rig, direct);
        for (i, len) in [0, 1, 1024, 1025, 9000].into_iter().enumerate() {
            let sent = rig.fill(A, len, i as u8);
            let (source, target) = (rig.sge(A as u64, len as u32), rig.sge(B as u64, len as u32));
            rig.post_recv(b, 7, &[target]);
            rig.post_send(a, wqe(1, SEND, source, 0, 0));
            let (done, received) = (rig.wait_cqe(a), rig.wait_cqe(b));
            assert_eq!((done.wr_id, done.status), (1, 0));
            assert_eq!(
                (received.wr_id, received.status, received.byte_len),
                (7, 0, len as u32)
            );
            assert_eq!(received.src_qpn, rig.qps[a].qpn);
            assert_eq!(rig.bytes(B, len), sent, "SEND of {len} bytes");
            let sent = rig.fill(A, len, !(i as u8));
            rig.post_recv(b, 8, &[]);
            rig.post_send(a, wqe(2, WRITE_WITH_IMM, source, B as u64, rig.key));
            assert_eq!((rig.wait_cqe(a).status, rig.wait_cqe(b).wr_id), (0, 8));
            assert_eq!(rig.bytes(B, len), sent, "WRITE of {len} bytes");
        }
        // 1 + 1 + 1 + 2 + 9 packets each way of moving data, and nothing comes back.
        let packets = [a, b].map(|qp| rig.query(qp).received_packets);
        assert_eq!(packets, [0, 28]);
        rig.engine.stop();
    }
}

#[test]
fn a_uc_send_without_a_receive_and_a_write_with_a_bad_key_are_lost_and_counted_and_nothing_else_happens() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = uc_pair(&mut rig, true);
    let sge = rig.sge(0, 64);
    rig.post_send(a, wqe(1, SEND, sge, 0, 0));
    rig.post_send(a, wqe(2, WRITE, sge, 0, rig.key ^ 1));
    assert_eq!(
        [rig.wait_cqe(a), rig.wait_cqe(a)].map(|c| (c.wr_id, c.status)),
        [(1, 0), (2, 0)]
    );
    assert_eq!([a, b].map(|qp| rig.query(qp).attr.state), [QpState::Rts; 2]);
    settle(&rig, |c| (c.no_receive_wqe, c.message_refused) == (1, 1));
    assert!(rig.events.is_empty());
    rig.engine.stop();
}

#[test]
fn a_bad_send_wqe_stops_the_send_queue_of_uc_and_flushes_what_follows() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = uc_pair(&mut rig, true);
    let sge = rig.sge(0, 64);
    rig.post_send(a, wqe(1, READ, sge, B as u64, rig.key));
    rig.post_send(a, wqe(2, WRITE, sge, B as u64, rig.key));
    let seen = [rig.wait_cqe(a), rig.wait_cqe(a)].map(|c| (c.wr_id, c.status));
    assert_eq!(seen, [(1, 2), (2, 5)], "no READ on UC; flushed");
    assert_eq!(rig.query(a).attr.state, QpState::Sqe);
    rig.post_send(a, wqe(3, WRITE, sge, B as u64, rig.key));
    assert_eq!(rig.wait_cqe(a).status, 5, "flushed");
    // It still receives.
    rig.post_recv(a, 4, &[sge]);
    rig.post_send(b, wqe(5, SEND, sge, 0, 0));
    assert_eq!((rig.wait_cqe(b).status, rig.wait_cqe(a).wr_id), (0, 4));
    let rts = rnic_transport::QpAttr {
        state: QpState::Rts,
        ..Default::default()
    };
    rig.modify(a, rts, rnic_transport::QpAttrMask::STATE, None)
        .unwrap();
    rig.post_send(a, wqe(6, WRITE, sge, B as u64, rig.key));
    let done = rig.wait_cqe(a);
    assert_eq!((done.wr_id, done.status), (6, 0));
    assert!(rig.events.is_empty(), "SQE raises no event");
    rig.engine.stop();
}
