//! Atomics as an application sees them.
mod common;
mod mock;

use std::sync::atomic::Ordering;

use common::{Daemon, Side, connect, everything, pair};
use rnic::{Access, Opcode, Status};

#[test]
fn compare_swap_and_fetch_add_change_the_peers_word_and_bring_back_what_was_there() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    b.mr.store_u64(16, 7, Ordering::SeqCst);
    let word = b.mr.remote().at(16);
    let result = |n: usize| a.mr.slice(n * 8..(n + 1) * 8);
    a.qp.post(|batch| {
        batch
            .compare_swap(result(0), word, 7, u64::MAX)
            .wr_id(0)
            .signaled();
        batch.compare_swap(result(1), word, 7, 99).wr_id(1).signaled();
        batch.fetch_add(result(2), word, 3).wr_id(2).signaled();
    })
    .unwrap();
    let done = a.completions(3);
    let seen: Vec<_> = done
        .iter()
        .map(|c| (c.ok().unwrap().wr_id, c.opcode, c.byte_len))
        .collect();
    let swap = Opcode::CompareSwap;
    assert_eq!(seen, [(0, swap, 8), (1, swap, 8), (2, Opcode::FetchAdd, 8)]);
    let found = [0, 8, 16].map(|at| a.mr.load_u64(at, Ordering::SeqCst));
    assert_eq!(found, [7, u64::MAX, u64::MAX]);
    assert_eq!(b.mr.load_u64(16, Ordering::SeqCst), 2);
}

#[test]
fn the_programs_own_atomics_work_on_the_same_words() {
    let daemon = Daemon::start();
    let (_, b) = pair(&daemon);
    assert_eq!(b.mr.fetch_add_u64(8, 5, Ordering::SeqCst), 0);
    let swap = |current| {
        b.mr.compare_exchange_u64(8, current, 9, Ordering::SeqCst, Ordering::SeqCst)
    };
    assert_eq!((swap(4), swap(5)), (Err(5), Ok(5)));
    assert_eq!(b.mr.load_u64(8, Ordering::SeqCst), 9);
}

#[test]
fn an_atomic_needs_one_slice_of_eight_bytes() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let word = b.mr.remote();
    let half = |at: usize| a.mr.slice(at..at + 4);
    for wrong in [
        vec![],
        vec![half(0)],
        vec![half(0), half(4)],
        vec![a.mr.slice(..16)],
    ] {
        let error =
            a.qp.post(|batch| {
                batch.fetch_add(wrong, word, 1).signaled();
            })
            .unwrap_err();
        assert!(error.to_string().contains("one slice of 8 bytes"), "{error}");
    }
    a.qp.post(|batch| {
        batch.fetch_add(a.mr.slice(..8), word, 1).signaled();
    })
    .unwrap();
    a.completion();
    assert_eq!(
        b.mr.load_u64(0, Ordering::SeqCst),
        1,
        "what was refused was not posted"
    );
}

#[test]
fn a_region_that_does_not_grant_atomics_refuses_them() {
    let daemon = Daemon::start();
    let (a, b) = (
        Side::open(&daemon, "rnic0", |config| config),
        Side::open(&daemon, "rnic1", |config| config),
    );
    connect(&a.qp, &b.qp).unwrap();
    let access = Access::LOCAL_WRITE | Access::REMOTE_READ | Access::REMOTE_WRITE;
    assert!(!access.contains(Access::REMOTE_ATOMIC) && everything().contains(Access::REMOTE_ATOMIC));
    let closed = b.pd.alloc_mr(64, access).unwrap();
    a.qp.post(|batch| {
        batch.fetch_add(a.mr.slice(..8), closed.remote(), 1).signaled();
    })
    .unwrap();
    assert_eq!(a.completions(1)[0].status, Status::RemoteAccess);
    assert_eq!(closed.load_u64(0, Ordering::SeqCst), 0);
}
