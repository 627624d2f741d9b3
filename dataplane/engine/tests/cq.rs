//! Completion queues that are resized and moderated while cores complete to them.
mod common;

use std::{
    os::unix::net::UnixDatagram,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{KEY, Rig, path, wqe};
use rnic_abi::{RingIndices, arm, event_kind, protocol};
use rnic_engine::{
    command::Command, core::Idle, mem::SharedU32, nonblocking::CheckedAllocator, view::slot_of,
};
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const WRITE: u8 = 0;
/// Where CQs go on, behind all others.
const SPACE: u64 = 8 * (256 << 10);

/// Two connected QPs, and the client's end of the completion channel of their CQs.
fn appliance(cores: usize, idle: Idle) -> (Rig, usize, UnixDatagram) {
    let mut rig = Rig::with_idle(cores, vec![], idle);
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    rig.channel = Some(Arc::new(theirs.into()));
    // On one core: without a port there are no frames for another one.
    let (a, b) = (rig.create_qp(10), rig.create_qp(12));
    rig.connect(a, b, path(1, 2, true), path(2, 1, true), Mtu::M1024);
    (rig, a, ours)
}

fn write(rig: &mut Rig, qp: usize, wr_id: u64) {
    let sge = rig.sge(0, 100);
    rig.post_send(qp, wqe(wr_id, WRITE, sge, 4096, KEY));
}

/// Waits until the core has placed completions up to this index.
fn placed(rig: &mut Rig, qp: usize, index: u32) {
    let core = rig.qps[qp].core;
    let tail = rig
        .region
        .u32(rig.subring(qp, core).0 + RingIndices::TAIL)
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while tail.load(std::sync::atomic::Ordering::Acquire) != index {
        assert!(Instant::now() < deadline, "completion {index} does not come");
        rig.poll();
        std::thread::yield_now();
    }
}

fn arm_word(rig: &Rig, qp: usize) -> SharedU32 {
    rig.region.u32(rig.qps[qp].cq as usize).unwrap()
}

fn woken(channel: &UnixDatagram) -> bool {
    channel.recv(&mut [0; 8]).is_ok()
}

fn wait_for_wake(channel: &UnixDatagram) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !woken(channel) {
        assert!(Instant::now() < deadline, "nobody is woken");
        std::thread::yield_now();
    }
}

fn moderate(rig: &mut Rig, qp: usize, count: u16, period: u16) {
    for core in 0..rig.engine.core_count() {
        let (cq, token) = (slot_of(rig.qps[qp].qpn), rig.token());
        let command = Command::ModerateCq {
            cq,
            count,
            period,
            token,
        };
        rig.engine.submit(core, command);
        rig.answer(token);
    }
}

const SLEEPY: Idle = Idle::Sleep {
    spin_for_ns: 0,
    max_sleep_ns: 3_600_000_000_000,
};

#[test]
fn a_resized_queue_loses_nothing_and_has_the_room_it_was_given() {
    for cores in [1, 2] {
        let (mut rig, a, _) = appliance(cores, Idle::Spin);
        let mut told = Vec::new();
        let (mut next, mut room) = (0, 64);
        for (round, depth) in [16, 256, 4, 64, 8].into_iter().enumerate() {
            for _ in 0..room.min(9) {
                write(&mut rig, a, next);
                next += 1;
            }
            placed(&mut rig, a, next as u32);
            // What is left is more than fits the smaller ones: it is the client's to read.
            let left = rig.resize_cq(a, SPACE + (round as u64 % 2) * (128 << 10), depth);
            for cqe in left {
                assert_eq!(cqe.status, 0);
                told.push(cqe.wr_id);
            }
            for _ in 0..depth.min(40) {
                write(&mut rig, a, next);
                next += 1;
            }
            room = depth;
            placed(&mut rig, a, next as u32);
            while let Some(cqe) = rig.poll_cq(a) {
                assert_eq!(cqe.status, 0);
                told.push(cqe.wr_id);
            }
        }
        assert_eq!(told, (0..next).collect::<Vec<_>>(), "each once, in order");
        assert!(rig.events.is_empty(), "{:?}", rig.events);
        rig.engine.stop();
    }
}

#[test]
fn a_queue_resized_to_less_overflows_where_its_new_room_ends() {
    let (mut rig, a, _) = appliance(1, Idle::Spin);
    assert!(rig.resize_cq(a, SPACE, 4).is_empty());
    for wr_id in 0..5 {
        write(&mut rig, a, wr_id);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while rig.events.iter().all(|event| event.kinds != event_kind::CQ_ERR) {
        assert!(Instant::now() < deadline, "no CQ_ERR");
        rig.poll();
        std::thread::yield_now();
    }
    let told: Vec<u64> = std::iter::from_fn(|| rig.poll_cq(a))
        .map(|cqe| cqe.wr_id)
        .collect();
    assert_eq!(told, [0, 1, 2, 3]);
    rig.engine.stop();
}

#[test]
fn a_resize_asked_for_twice_and_one_that_does_not_fit_change_nothing() {
    let (mut rig, a, _) = appliance(1, Idle::Spin);
    rig.resize_cq(a, SPACE, 16);
    write(&mut rig, a, 7);
    placed(&mut rig, a, 1);
    let cq = slot_of(rig.qps[a].qpn);
    for (offset, depth) in [(SPACE, 16), (u64::MAX - 127, 16), (SPACE + 1, 16), (SPACE, 3)] {
        let token = rig.token();
        let command = Command::ResizeCq {
            cq,
            offset,
            depth,
            token,
        };
        rig.engine.submit(0, command);
        rig.answer(token);
    }
    assert_eq!(rig.wait_cqe(a).wr_id, 7);
    write(&mut rig, a, 8);
    assert_eq!(rig.wait_cqe(a).wr_id, 8);
    rig.engine.stop();
}

#[test]
fn an_armed_queue_wakes_for_what_came_before_it_was_resized_and_its_new_place_is_not_armed() {
    let (mut rig, a, channel) = appliance(1, Idle::Spin);
    protocol::arm_cq(&arm_word(&rig, a), arm::ANY);
    write(&mut rig, a, 1);
    placed(&mut rig, a, 1);
    assert_eq!(rig.resize_cq(a, SPACE, 16).len(), 1);
    wait_for_wake(&channel);
    write(&mut rig, a, 2);
    placed(&mut rig, a, 2);
    assert_eq!(rig.wait_cqe(a).wr_id, 2);
    assert!(!woken(&channel), "nobody has armed the new place");
    protocol::arm_cq(&arm_word(&rig, a), arm::ANY);
    write(&mut rig, a, 3);
    wait_for_wake(&channel);
    rig.engine.stop();
}

#[test]
fn a_moderated_queue_wakes_at_its_count() {
    let (mut rig, a, channel) = appliance(1, Idle::Spin);
    moderate(&mut rig, a, 3, u16::MAX);
    for round in 0..3 {
        protocol::arm_cq(&arm_word(&rig, a), arm::ANY);
        for n in 1..=3 {
            assert!(!woken(&channel), "after {} of 3", n - 1);
            write(&mut rig, a, n);
            placed(&mut rig, a, round * 3 + n as u32);
        }
        wait_for_wake(&channel);
        assert!(!woken(&channel), "one wake for one arming");
        while rig.poll_cq(a).is_some() {}
    }
    rig.engine.stop();
}

#[test]
fn a_moderated_queue_wakes_when_its_time_is_over_though_the_core_sleeps() {
    let (mut rig, a, channel) = appliance(1, SLEEPY);
    moderate(&mut rig, a, 100, 2000);
    for wr_id in 0..3 {
        protocol::arm_cq(&arm_word(&rig, a), arm::ANY);
        write(&mut rig, a, wr_id);
        // Nothing else would ever wake this core.
        wait_for_wake(&channel);
        assert_eq!(rig.wait_cqe(a).wr_id, wr_id);
    }
    rig.engine.stop();
}

#[test]
fn moderation_counts_from_the_arming_on_and_ends_when_it_is_taken_back() {
    let (mut rig, a, channel) = appliance(1, Idle::Spin);
    moderate(&mut rig, a, 2, u16::MAX);
    for wr_id in 0..5 {
        write(&mut rig, a, wr_id);
        placed(&mut rig, a, wr_id as u32 + 1);
    }
    protocol::arm_cq(&arm_word(&rig, a), arm::ANY);
    while rig.poll_cq(a).is_some() {}
    write(&mut rig, a, 5);
    placed(&mut rig, a, 6);
    rig.query(a);
    assert!(!woken(&channel), "those before were not waited for");
    moderate(&mut rig, a, 0, 0);
    wait_for_wake(&channel);
    protocol::arm_cq(&arm_word(&rig, a), arm::ANY);
    write(&mut rig, a, 6);
    wait_for_wake(&channel);
    rig.engine.stop();
}

#[test]
fn a_queue_armed_for_solicited_completions_is_not_moderated_by_others() {
    let (mut rig, a, channel) = appliance(1, Idle::Spin);
    moderate(&mut rig, a, 2, 1);
    protocol::arm_cq(&arm_word(&rig, a), arm::SOLICITED);
    for wr_id in 0..4 {
        write(&mut rig, a, wr_id);
        placed(&mut rig, a, wr_id as u32 + 1);
    }
    rig.query(a);
    assert!(!woken(&channel));
    // A refused request completes in error, which counts as solicited.
    let sge = rig.sge(0, 100);
    rig.post_send(a, wqe(9, WRITE, sge, 0, KEY ^ 1));
    wait_for_wake(&channel);
    rig.engine.stop();
}
