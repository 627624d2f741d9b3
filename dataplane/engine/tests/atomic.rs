//! Atomics through poll cores: one word, many that work on it, whatever the way to it.
mod common;

use std::sync::atomic::Ordering;

use common::{EVERY_RIGHT, PD, Rig, path, wqe};
use rnic_abi::{AtomicOperands, Wqe, event_kind, wqe_flags};
use rnic_engine::{
    mem::{MrDescriptor, MrTable},
    nonblocking::CheckedAllocator,
    port::{HeapPool, OpenPort, ring_pair},
};
use rnic_transport::Check;
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const COMP_SWAP: u8 = 5;
const FETCH_ADD: u8 = 6;

/// Where results go, and the word that the atomics work on.
const A: usize = 0;
const WORD: usize = 1 << 20;

fn wired(queues: u16) -> Vec<OpenPort> {
    let pool = HeapPool::for_mtu(2048, 4200);
    let (a, b) = ring_pair("rnic0", "rnic1", queues, 4200, pool);
    vec![a, b]
}

/// An atomic on `addr` whose result goes to `A + wr_id * 8`.
fn atomic(rig: &Rig, wr_id: u64, opcode: u8, addr: u64, compare_add: u64, swap: u64) -> Wqe {
    let mut wqe = wqe(wr_id, opcode, rig.sge(A as u64 + wr_id * 8, 8), addr, rig.key);
    wqe.sges[1] = AtomicOperands { compare_add, swap }.into();
    wqe
}

fn word(rig: &Rig, at: usize) -> u64 {
    rig.data.u64(at).unwrap().load(Ordering::SeqCst)
}

fn pair(rig: &mut Rig, slots: [u32; 2], direct: bool) -> (usize, usize) {
    let [a, b] = slots.map(|slot| rig.create_qp(slot));
    rig.connect(a, b, path(1, 2, direct), path(2, 1, direct), Mtu::M1024);
    (a, b)
}

/// Compare and swap that hits, one that misses, and fetch and add.
fn work(rig: &mut Rig, a: usize) {
    rig.data.u64(WORD).unwrap().store(7, Ordering::SeqCst);
    for (wr_id, opcode, compare_add, swap) in [
        (0, COMP_SWAP, 7, u64::MAX),
        (1, COMP_SWAP, 7, 99),
        (2, FETCH_ADD, 3, 0),
    ] {
        let wqe = atomic(rig, wr_id, opcode, WORD as u64, compare_add, swap);
        rig.post_send(a, wqe);
        let done = rig.wait_cqe(a);
        assert_eq!(
            (done.wr_id, done.status, done.opcode, done.byte_len),
            (wr_id, 0, opcode - 2, 8)
        );
    }
    assert_eq!([0, 8, 16].map(|at| word(rig, A + at)), [7, u64::MAX, u64::MAX]);
    assert_eq!(word(rig, WORD), 2);
}

#[test]
fn atomics_work_over_the_wire_between_cores_and_without_frames() {
    // Slots 10 and 11 belong to different cores of two, 10 and 12 to one.
    for slots in [[10, 11], [10, 12]] {
        for direct in [false, true] {
            let mut rig = Rig::new(2, wired(1));
            let (a, b) = pair(&mut rig, slots, direct);
            work(&mut rig, a);
            work(&mut rig, b);
            rig.engine.stop();
        }
    }
}

#[test]
fn no_addition_is_lost_between_two_cores_and_the_clients_own_atomics() {
    const ROUNDS: u64 = 2_000;
    let mut rig = Rig::new(2, vec![]);
    // Both on one word: responder 12 on core 0, responder 13 on core 1.
    let (a, _) = pair(&mut rig, [10, 12], true);
    let [c, d] = [11, 13].map(|slot| rig.create_qp(slot));
    rig.connect(c, d, path(3, 4, true), path(4, 3, true), Mtu::M1024);
    assert_ne!(rig.qps[a].core, rig.qps[c].core);
    let own = rig.data.u64(WORD).unwrap();
    own.store(0, Ordering::SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                own.fetch_add(1 << 40, Ordering::SeqCst);
                std::thread::yield_now();
            }
        });
        for _ in 0..ROUNDS {
            for (qp, add) in [(a, 1), (c, 1 << 20)] {
                let wqe = atomic(&rig, 0, FETCH_ADD, WORD as u64, add, 0);
                rig.post_send(qp, wqe);
            }
            for qp in [a, c] {
                assert_eq!(rig.wait_cqe(qp).status, 0);
            }
        }
    });
    assert_eq!(word(&rig, WORD), ROUNDS << 40 | ROUNDS << 20 | ROUNDS);
    rig.engine.stop();
}

/// The completion of an atomic that the responder refuses, and the check that its event names.
fn refused(mr: MrDescriptor<'_>, rig: &mut Rig, addr: u64) -> (u8, Check, u32) {
    let key = MrTable::key(4, 1, 0);
    assert!(rig.engine.mrs().validate(key, &mr));
    let (a, _) = pair(rig, [10, 12], true);
    let wqe = Wqe {
        rkey: key,
        ..atomic(rig, 0, FETCH_ADD, addr, 1, 0)
    };
    rig.post_send(a, wqe);
    let status = rig.wait_cqe(a).status;
    let errors = event_kind::QP_ACCESS_ERR | event_kind::QP_REQ_ERR;
    loop {
        if let Some(event) = rig.events.iter().find(|event| event.kinds & errors != 0) {
            return (status, event.cause.check, event.kinds & errors);
        }
        rig.poll();
        std::thread::yield_now();
    }
}

#[test]
fn an_atomic_needs_an_aligned_address_aligned_memory_and_the_right() {
    let cases = [
        (EVERY_RIGHT, 0, 4, 9, Check::Alignment, event_kind::QP_REQ_ERR),
        // Address 8 of a region that says its first byte, which is aligned, has address 4.
        (EVERY_RIGHT, 4, 8, 9, Check::Alignment, event_kind::QP_REQ_ERR),
        (
            rnic_transport::Access::REMOTE_WRITE,
            0,
            8,
            10,
            Check::Access,
            event_kind::QP_ACCESS_ERR,
        ),
    ];
    for (access, iova, addr, status, check, event) in cases {
        let mut rig = Rig::new(1, vec![]);
        let data = rig.data.clone();
        let mr = MrDescriptor {
            mem: &data,
            pd: PD,
            access,
            iova,
            len: 4096,
            invalidatable: false,
        };
        assert_eq!(refused(mr, &mut rig, addr), (status, check, event));
        assert!(
            rig.bytes(0, 64).iter().all(|byte| *byte == 0),
            "nothing was changed"
        );
        rig.engine.stop();
    }
}

#[test]
fn atomic_wqes_that_are_malformed_complete_in_error() {
    let mut rig = Rig::new(1, vec![]);
    let (a, _) = pair(&mut rig, [10, 12], true);
    let good = atomic(&rig, 0, FETCH_ADD, WORD as u64, 1, 0);
    let mut short = good;
    short.sges[0].length = 4;
    let wrong = [
        Wqe { num_sge: 2, ..good },
        Wqe { num_sge: 0, ..good },
        Wqe {
            num_sge: 0,
            inline_len: 8,
            flags: wqe_flags::INLINE,
            ..good
        },
        short,
    ];
    for (wr_id, wqe) in (0..).zip(wrong) {
        rig.post_send(a, Wqe { wr_id, ..wqe });
        let done = rig.wait_cqe(a);
        assert_eq!((done.wr_id, done.status), (wr_id, 2), "local QP operation error");
    }
    assert_eq!(word(&rig, WORD), 0);
    rig.engine.stop();
}
