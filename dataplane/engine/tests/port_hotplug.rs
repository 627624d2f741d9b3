//! Ports that come and go while the engine runs. The allocator aborts the test when a poll core allocates or frees.
mod common;

use std::sync::Arc;

use common::{Rig, path, wqe};
use rnic_engine::{
    AddPortError, PORT_SLOTS,
    command::{Command, Message},
    frame::{FrameBurst, SharedPool},
    nonblocking::CheckedAllocator,
    port::{HeapPool, OpenPort, ring_pair},
};
use rnic_transport::{Cause, Check, QpAttr, QpAttrMask, QpState};
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const WRITE: u8 = 0;
const FRAMES: usize = 2048;
const HALF: u64 = 4 << 20;

/// Two ports joined back to back, with one queue each, and their pool.
fn ports() -> (OpenPort, OpenPort, SharedPool) {
    let pool = HeapPool::for_mtu(FRAMES as u32, 1500);
    let (a, b) = ring_pair("rnic0", "rnic1", 1, 1500, pool.clone());
    (a, b, pool)
}

fn add(rig: &mut Rig, index: u16, port: OpenPort) {
    let parts = rig.engine.add_port(index, port).unwrap();
    let token = rig.token();
    let cores = parts.len();
    for (core, part) in parts.into_iter().enumerate() {
        let port = index;
        rig.engine.submit(core, Command::AddPort { port, part, token });
    }
    (0..cores).for_each(|_| drop(rig.answer(token)));
}

/// The order of a removal; the port is closed when this returns.
fn remove(rig: &mut Rig, index: u16) {
    let (info, parts) = rig.engine.remove_port(index).expect("there is a port");
    let token = rig.token();
    let cores = parts.len();
    for (core, part) in parts.into_iter().enumerate() {
        let port = index;
        rig.engine.submit(core, Command::RemovePort { port, part, token });
    }
    for _ in 0..cores {
        let answer = rig.answer(token);
        assert!(
            matches!(answer, Message::Removed { found: true, .. }),
            "{answer:?}"
        );
    }
    let token = rig.token();
    for core in 0..cores {
        rig.engine
            .submit(core, Command::DropFrames { port: index, token });
    }
    (0..cores).for_each(|_| drop(rig.answer(token)));
    drop(info);
}

fn fail(rig: &mut Rig, qp: usize) {
    let (core, slot) = (rig.qps[qp].core, rnic_engine::view::slot_of(rig.qps[qp].qpn));
    let token = rig.token();
    let cause = Cause::of(Check::DeviceRemoved);
    rig.engine.submit(core, Command::FailQp { slot, cause, token });
    rig.answer(token);
}

fn reset(rig: &mut Rig, qp: usize) {
    let attr = QpAttr {
        state: QpState::Reset,
        ..QpAttr::default()
    };
    rig.modify(qp, attr, QpAttrMask::STATE, None).unwrap();
}

fn move_some(rig: &mut Rig, a: usize, seed: u8) {
    let sent = rig.fill(0, 50_000, seed);
    let source = rig.sge(0, 50_000);
    rig.post_send(a, wqe(1, WRITE, source, HALF, rig.key));
    assert_eq!(rig.wait_cqe(a).status, 0);
    assert_eq!(rig.bytes(HALF as usize, 50_000), sent);
}

/// Every buffer of a pool, to show that none is missing.
fn all_back(pool: &SharedPool) -> usize {
    let mut count = 0;
    let mut held = Vec::new();
    loop {
        let mut burst = FrameBurst::new_const();
        if pool.alloc_burst(32, &mut burst) == 0 {
            return count;
        }
        count += burst.len();
        held.push(burst);
    }
}

#[test]
fn ports_come_and_go_under_traffic_and_all_their_frames_are_given_back() {
    // Two cores, but one queue: frames and slow-path answers are handed over.
    let mut rig = Rig::new(2, vec![]);
    // One QP on each core.
    let (a, b) = (rig.create_qp(10), rig.create_qp(11));
    assert_ne!(rig.qps[a].core, rig.qps[b].core);
    for round in 0..20u8 {
        let (first, second, pool) = ports();
        add(&mut rig, 0, first);
        add(&mut rig, 1, second);
        rig.connect(a, b, path(1, 2, false), path(2, 1, false), Mtu::M1024);
        move_some(&mut rig, a, round);
        // Leave frames everywhere: requests whose answers are still to come.
        let source = rig.sge(0, 100_000);
        for id in 0..8 {
            rig.post_send(a, wqe(id, WRITE, source, HALF, rig.key));
        }
        fail(&mut rig, a);
        fail(&mut rig, b);
        for id in 0..8 {
            let cqe = rig.wait_cqe(a);
            assert_eq!(cqe.wr_id, id);
            assert!([0, 5].contains(&cqe.status), "done, or flushed");
        }
        assert_eq!(rig.query(a).cause.check, Check::DeviceRemoved);
        let frame = pool.alloc().unwrap();
        rig.engine.transmit(0, frame);
        remove(&mut rig, 0);
        rig.engine.transmit(0, pool.alloc().unwrap());
        remove(&mut rig, 1);
        // Frames for the slow path went through the rig, which drops them.
        assert_eq!(all_back(&pool), FRAMES, "round {round}");
        assert_eq!(Arc::strong_count(&pool), 1, "nobody holds the pool");
        reset(&mut rig, a);
        reset(&mut rig, b);
    }
    rig.engine.stop();
}

#[test]
fn other_ports_run_on_while_one_goes() {
    let (first, second, _pool) = ports();
    let mut rig = Rig::new(1, vec![first, second]);
    let (a, b) = (rig.create_qp(10), rig.create_qp(11));
    rig.connect(a, b, path(1, 2, false), path(2, 1, false), Mtu::M1024);
    for round in 0..10 {
        let (third, fourth, pool) = ports();
        add(&mut rig, 7, third);
        add(&mut rig, 3, fourth);
        move_some(&mut rig, a, round);
        let source = rig.sge(0, 50_000);
        rig.post_send(a, wqe(1, WRITE, source, HALF, rig.key));
        remove(&mut rig, 7);
        remove(&mut rig, 3);
        assert_eq!(rig.wait_cqe(a).status, 0);
        assert_eq!(all_back(&pool), FRAMES);
    }
    let _ = b;
    rig.engine.stop();
}

#[test]
fn a_qp_failed_with_its_port_sends_nothing_on_the_next_one_there() {
    let (first, second, _pool) = ports();
    let mut rig = Rig::new(1, vec![first, second]);
    let (a, b) = (rig.create_qp(10), rig.create_qp(11));
    rig.connect(a, b, path(1, 2, false), path(2, 1, false), Mtu::M1024);
    move_some(&mut rig, a, 1);
    fail(&mut rig, a);
    remove(&mut rig, 0);
    let (next, mut other, _pool) = ports();
    add(&mut rig, 0, next);
    assert_eq!(rig.engine.port_stats(0).tx_frames, 0, "counted from the start");
    let source = rig.sge(0, 100);
    rig.post_send(a, wqe(9, WRITE, source, HALF, rig.key));
    assert_eq!(rig.wait_cqe(a).status, 5, "flushed");
    let mut burst = FrameBurst::new_const();
    assert_eq!(other.queues[0].rx_burst(&mut burst), 0, "sent on another port");
    rig.engine.stop();
}

#[test]
fn a_place_that_is_taken_or_not_there_is_refused() {
    let (first, second, _pool) = ports();
    let mut rig = Rig::new(1, vec![first, second]);
    for index in [0, 1, PORT_SLOTS as u16, u16::MAX] {
        let (port, _other, _pool) = ports();
        let refused = rig.engine.add_port(index, port).err().expect("refused");
        assert!(matches!(refused, AddPortError::Index { .. }), "{refused}");
    }
    assert!(rig.engine.remove_port(9).is_none());
    assert!(rig.engine.remove_port(u16::MAX).is_none());
    rig.engine.stop();
}

#[test]
fn a_qp_that_is_told_to_be_flushed_has_a_completion_for_everything_posted_before() {
    const POSTED: usize = 60;
    let (first, second, _pool) = ports();
    let mut rig = Rig::new(1, vec![first, second]);
    let (a, b) = (rig.create_qp(10), rig.create_qp(11));
    rig.connect(a, b, path(1, 2, false), path(2, 1, false), Mtu::M1024);
    let flush = |rig: &mut Rig| {
        let (token, slot) = (rig.token(), rnic_engine::view::slot_of(rig.qps[a].qpn));
        rig.engine.submit(0, Command::FlushQp { slot, token });
        match rig.answer(token) {
            Message::Flushed { more, slot: of, .. } => {
                assert_eq!(of, slot);
                more
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(!flush(&mut rig), "it has not failed");
    for id in 0..POSTED {
        rig.post_recv(a, id as u64, &[]);
    }
    fail(&mut rig, a);
    while flush(&mut rig) {}
    // What was completed in a pass is shown at the end of it or of the next one.
    let epoch = rig.engine.start_grace();
    while !rig.engine.passed(epoch) {
        rig.poll();
    }
    for id in 0..POSTED {
        let cqe = rig.poll_cq(a).unwrap_or_else(|| panic!("only {id} completions"));
        assert_eq!((cqe.wr_id, cqe.status), (id as u64, 5));
    }
    rig.destroy_qp(a);
    assert!(!flush(&mut rig), "it is gone");
    rig.engine.stop();
}
