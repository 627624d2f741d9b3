//! Completion queues that are resized, moderated and asked.
mod common;
mod mock;

use std::time::Duration;

use common::*;
use rnic::{Arm, Completion, QpConfig};

/// Posts signalled sends of no bytes, with these numbers; the peer takes them.
fn send(a: &Side, b: &Side, wr_ids: std::ops::Range<u64>) {
    let count = wr_ids.end - wr_ids.start;
    b.qp.post_recv(|batch| {
        (0..count).for_each(|_| {
            batch.recv([]);
        })
    })
    .unwrap();
    a.qp.post(|batch| {
        for wr_id in wr_ids {
            batch.send_inline(&[]).wr_id(wr_id).signaled();
        }
    })
    .unwrap();
    // When the peer has them all, so has the sender its completions, or soon.
    let mut got = 0;
    while got < count as usize {
        got += b.cq.wait(&mut [Completion::default(); 16], SOON).unwrap();
    }
}

/// The numbers of so many completions.
fn numbers(side: &Side, count: usize) -> Vec<u64> {
    let mut all = Vec::new();
    while all.len() < count {
        let found = side.cq.wait_vec(3, SOON).unwrap();
        assert!(!found.is_empty(), "{all:?} and no more");
        all.extend(found.into_iter().map(|completion| completion.ok().unwrap().wr_id));
    }
    all
}

fn two(daemon: &Daemon) -> (Side, Side) {
    pair_with(daemon, |config: QpConfig| config.max_send_wr(64).max_recv_wr(64))
}

#[test]
fn what_waits_is_carried_over_in_its_order_whenever_a_queue_is_resized() {
    let daemon = Daemon::start();
    let (a, b) = two(&daemon);
    let mut next = 0;
    let mut left = Vec::new();
    for depth in [256, 16, 64, 32] {
        send(&a, &b, next..next + 5);
        next += 5;
        a.cq.resize(depth).unwrap();
        assert!(a.cq.depth() >= depth);
        assert_eq!(a.cq.query().unwrap().depth, a.cq.depth());
        send(&a, &b, next..next + 3);
        next += 3;
        // Some are polled, some are carried over again.
        left.extend(numbers(&a, 6));
    }
    left.extend(numbers(&a, next as usize - left.len()));
    assert_eq!(left, (0..next).collect::<Vec<_>>());
}

#[test]
fn a_resize_to_less_than_waits_is_refused_and_changes_nothing() {
    let daemon = Daemon::start();
    if daemon.mock.is_some() {
        // The daemon in miniature does not look.
        return;
    }
    let (a, b) = two(&daemon);
    send(&a, &b, 0..9);
    let refused = a.cq.resize(8).unwrap_err().to_string();
    assert!(refused.contains("9 completions wait"), "{refused}");
    assert_eq!(numbers(&a, 9), (0..9).collect::<Vec<_>>());
    a.cq.resize(8).unwrap();
}

#[test]
fn an_arming_goes_along_with_its_queue_and_fires_once() {
    let daemon = Daemon::start();
    let (a, b) = two(&daemon);
    a.cq.arm(Arm::Any);
    a.cq.resize(128).unwrap();
    assert!(
        a.cq.channel().next(NOW).unwrap().is_none(),
        "nothing has completed"
    );
    send(&a, &b, 0..1);
    let fired =
        a.cq.channel()
            .next(SOON)
            .unwrap()
            .expect("armed before it was resized");
    assert_eq!(fired.number(), a.cq.number());
    assert!(a.cq.channel().next(NOW).unwrap().is_none());
    assert_eq!(numbers(&a, 1), [0]);
}

#[test]
fn what_fires_before_a_resize_fires_once() {
    let daemon = Daemon::start();
    let (a, b) = two(&daemon);
    a.cq.arm(Arm::Any);
    send(&a, &b, 0..1);
    a.cq.resize(128).unwrap();
    assert!(a.cq.channel().next(SOON).unwrap().is_some());
    assert!(a.cq.channel().next(NOW).unwrap().is_none());
    assert_eq!(numbers(&a, 1), [0]);
}

#[test]
fn a_waiter_sleeps_through_resizes_until_its_completion_comes() {
    let daemon = Daemon::start();
    let (a, b) = two(&daemon);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| numbers(&a, 40));
        for round in 0..40u64 {
            a.cq.resize(16 << (round % 5)).unwrap();
            send(&a, &b, round..round + 1);
        }
        assert_eq!(waiter.join().unwrap(), (0..40).collect::<Vec<_>>());
    });
}

#[test]
fn completions_of_a_destroyed_qp_are_not_carried_over() {
    let daemon = Daemon::start();
    let (a, b) = two(&daemon);
    send(&a, &b, 0..3);
    let Side { qp, cq, .. } = a;
    cq.resize(128).unwrap();
    qp.destroy().unwrap();
    cq.resize(256).unwrap();
    assert_eq!(cq.poll(&mut [Completion::default(); 4]), 0);
}

#[test]
fn a_period_that_does_not_fit_is_refused() {
    let daemon = Daemon::start();
    let (a, _) = two(&daemon);
    let refused =
        a.cq.moderate(2, Duration::from_millis(66))
            .unwrap_err()
            .to_string();
    assert!(refused.contains("65535"), "{refused}");
}

#[test]
fn there_is_one_pkey_and_it_is_the_default_partitions() {
    let daemon = Daemon::start();
    let (a, _) = two(&daemon);
    assert_eq!(a.context.pkey(0).unwrap(), 0xFFFF);
}
