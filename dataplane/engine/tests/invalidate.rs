//! Invalidation of keys (DESIGN I9): refused at once, done when every online core has passed a quiescent state,
//! from preallocated state only.
mod common;

use std::{
    cmp::Ordering,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    PD, Rig,
    hold::{two_cores, until},
    path, wqe,
};
use rnic_abi::{Sge, Wqe, event_kind};
use rnic_engine::{
    command::ObjectEvent,
    mem::{ClientMem, MrDescriptor, MrTable},
    nonblocking::{CheckedAllocator, NonBlocking},
    port::{HeapPool, ring_pair},
};
use rnic_transport::{Access, Check, KeyError, QpAttr, QpAttrMask, QpState};
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const WRITE: u8 = 0;
const READ: u8 = 4;
const LOCAL_INV: u8 = 7;
const SEND_INV: u8 = 9;
/// `IBV_WC_*`.
const SUCCESS: u8 = 0;
const FLUSHED: u8 = 5;
const MW_BIND_ERR: u8 = 6;
const REM_INV_REQ_ERR: u8 = 9;
const REM_ACCESS_ERR: u8 = 10;

/// Registers all of the rig's data once more, under a key that may be invalidated.
fn register(rig: &Rig, generation: u32) -> u32 {
    let key = MrTable::key(5, generation, 0x11);
    let descriptor = MrDescriptor {
        mem: &rig.data,
        pd: PD,
        access: Access::LOCAL_WRITE.union(Access::REMOTE_WRITE),
        iova: 0,
        len: rig.data.len() as u64,
        invalidatable: true,
    };
    assert!(rig.engine.mrs().validate(key, &descriptor));
    key
}

fn is_refused(rig: &Rig, key: u32) -> bool {
    rig.engine
        .mrs()
        .resolve(key, PD, 0, 1, Access::REMOTE_WRITE)
        .err()
        == Some(KeyError::Key)
}

/// Two connected QPs of the first core.
fn pair(rig: &mut Rig, slots: [u32; 2]) -> (usize, usize) {
    let [a, b] = slots.map(|slot| rig.create_qp(slot));
    rig.connect(a, b, path(1, 1, true), path(1, 1, true), Mtu::M1024);
    assert_eq!((rig.qps[a].core, rig.qps[b].core), (0, 0));
    (a, b)
}

fn invalidating(opcode: u8, key: u32) -> Wqe {
    Wqe {
        num_sge: 0,
        imm_or_rkey: key,
        ..wqe(1, opcode, Sge::default(), 0, 0)
    }
}

/// Lets the first core do a good deal of other work.
fn work(rig: &mut Rig, a: usize) {
    for i in 0..50 {
        let sge = rig.sge(0, 64);
        rig.post_send(a, wqe(i, WRITE, sge, 4096, rig.key));
        assert_eq!(rig.wait_cqe(a).status, SUCCESS);
    }
}

#[test]
fn a_local_invalidate_is_done_when_every_online_core_has_passed_a_quiescent_state() {
    let (mut rig, hold) = two_cores();
    let (a, _) = pair(&mut rig, [10, 12]);
    let (other, _) = pair(&mut rig, [14, 16]);
    let key = register(&rig, 1);
    hold.hold();
    rig.post_send(a, invalidating(LOCAL_INV, key));
    until("the key is refused", || is_refused(&rig, key));
    work(&mut rig, other);
    assert!(
        rig.poll_cq(a).is_none(),
        "done while a core may still use the key"
    );
    hold.release();
    let done = rig.wait_cqe(a);
    assert_eq!((done.wr_id, done.status, done.opcode), (1, SUCCESS, 6));
    work(&mut rig, a);
    rig.engine.stop();
}

#[test]
fn a_send_with_invalidate_is_done_when_every_online_core_has_passed_a_quiescent_state() {
    let (mut rig, hold) = two_cores();
    let (a, b) = pair(&mut rig, [10, 12]);
    let (other, _) = pair(&mut rig, [14, 16]);
    let key = register(&rig, 1);
    rig.post_recv(b, 7, &[]);
    rig.post_recv(b, 8, &[]);
    hold.hold();
    rig.post_send(a, invalidating(SEND_INV, key));
    until("the key is refused", || is_refused(&rig, key));
    // One behind it is held up, not lost.
    let empty = Wqe {
        num_sge: 0,
        ..wqe(2, 2, Sge::default(), 0, 0)
    };
    rig.post_send(a, empty);
    work(&mut rig, other);
    assert!(
        rig.poll_cq(a).is_none() && rig.poll_cq(b).is_none(),
        "done too early"
    );
    hold.release();
    let received = [rig.wait_cqe(b), rig.wait_cqe(b)];
    assert_eq!(
        received.map(|cqe| (cqe.wr_id, cqe.status)),
        [(7, SUCCESS), (8, SUCCESS)]
    );
    assert_eq!(received[0].imm_or_rkey, key);
    assert_eq!(
        [rig.wait_cqe(a), rig.wait_cqe(a)].map(|cqe| (cqe.wr_id, cqe.status)),
        [(1, 0), (2, 0)]
    );
    rig.engine.stop();
}

#[test]
fn a_plain_region_is_invalidated_by_nobody_but_its_deregistration() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = (rig.create_qp(10), rig.create_qp(12));
    rig.connect(a, b, path(1, 1, true), path(1, 1, true), Mtu::M1024);
    rig.post_recv(b, 7, &[]);
    rig.post_send(a, invalidating(SEND_INV, rig.key));
    assert_eq!(rig.wait_cqe(a).status, REM_ACCESS_ERR);
    let refused = rig.wait_cqe(b);
    assert_eq!((refused.wr_id, refused.status), (7, REM_INV_REQ_ERR));
    assert_eq!(refused.cause.check, Check::Invalidate as u8);
    until("the event", || {
        rig.poll();
        !rig.events.is_empty()
    });
    assert_eq!(rig.events[0].kinds, event_kind::QP_ACCESS_ERR);
    let (c, _) = pair(&mut rig, [14, 16]);
    work(&mut rig, c);
    rig.post_send(c, invalidating(LOCAL_INV, rig.key));
    let failed = rig.wait_cqe(c);
    assert_eq!(
        (failed.status, failed.cause.check),
        (MW_BIND_ERR, Check::Access as u8)
    );
    assert!(!is_refused(&rig, rig.key), "the key is as it was");
    rig.engine.stop();
}

#[test]
fn a_local_invalidate_with_data_is_malformed() {
    let mut rig = Rig::new(1, vec![]);
    let (a, _) = pair(&mut rig, [10, 12]);
    let key = register(&rig, 1);
    let sge = rig.sge(0, 8);
    let bad = Wqe {
        imm_or_rkey: key,
        ..wqe(1, LOCAL_INV, sge, 0, 0)
    };
    rig.post_send(a, bad);
    let failed = rig.wait_cqe(a);
    assert_eq!(failed.cause.check, Check::SendQueue as u8);
    assert!(!is_refused(&rig, key));
    rig.engine.stop();
}

#[test]
fn invalidating_neither_allocates_nor_waits_wherever_it_is_done() {
    let (rig, hold) = two_cores();
    let key = register(&rig, 1);
    hold.hold();
    let section = NonBlocking::enter();
    let epoch = rig.engine.invalidate(key);
    let refused = is_refused(&rig, key);
    let early = rig.engine.is_past(epoch);
    hold.release();
    let mut looks = 0u64;
    while !rig.engine.is_past(epoch) && looks < 1 << 40 {
        looks += 1;
        std::hint::spin_loop();
    }
    drop(section);
    assert!(refused && !early && looks > 0, "{refused} {early} {looks}");
    rig.engine.stop();
}

#[test]
fn nothing_of_a_region_is_written_after_its_invalidation_is_done_whatever_is_under_way() {
    const LEN: usize = 64 << 10;
    const TARGET: usize = 1 << 20;
    let (mut rig, _) = two_cores();
    // Writers on both cores, each towards a QP of its own core.
    let pairs = [[10, 12], [11, 13], [14, 16], [15, 17]].map(|slots| slots.map(|slot| rig.create_qp(slot)));
    assert!(pairs.iter().any(|pair| rig.qps[pair[0]].core == 0));
    assert!(pairs.iter().any(|pair| rig.qps[pair[0]].core == 1));
    let mut cut_off = 0;
    for round in 1..=30 {
        for [a, b] in pairs {
            rig.connect(a, b, path(1, 1, true), path(1, 1, true), Mtu::M1024);
        }
        let key = register(&rig, round);
        rig.fill(0, LEN, round as u8);
        for i in 0..8 {
            for [a, _] in pairs {
                let sge = rig.sge(0, LEN as u32);
                rig.post_send(a, wqe(i, WRITE, sge, TARGET as u64, key));
            }
        }
        // Somewhere in the middle of it.
        for _ in 0..round * 40 {
            std::hint::spin_loop();
        }
        let epoch = rig.engine.invalidate(key);
        until("nobody uses the key", || rig.engine.is_past(epoch));
        rig.engine.mrs().release(key);
        let pattern = rig.fill(TARGET, LEN, 0xEE);
        for [a, _] in pairs {
            let failures = (0..8).filter(|_| rig.wait_cqe(a).status != SUCCESS).count();
            cut_off += failures;
        }
        assert_eq!(rig.bytes(TARGET, LEN), pattern, "round {round}");
        for qp in pairs.as_flattened() {
            let attr = QpAttr {
                state: QpState::Reset,
                ..QpAttr::default()
            };
            rig.modify(*qp, attr, QpAttrMask::STATE, None).unwrap();
        }
    }
    assert!(cut_off > 0, "no round cut anything off: the test is blind");
    rig.engine.stop();
}

/// A region that nobody but its keys leads to, with the right to read it remotely.
fn readable(rig: &Rig, generation: u32, len: usize) -> (ClientMem, u32) {
    let (mem, _) = ClientMem::create("read", len, Arc::default()).unwrap();
    assert!(mem.copy_in(0, &vec![generation as u8; len]));
    let key = MrTable::key(6, generation, 0x22);
    let descriptor = MrDescriptor {
        mem: &mem,
        pd: PD,
        access: Access::REMOTE_READ,
        iova: 0,
        len: len as u64,
        invalidatable: false,
    };
    assert!(rig.engine.mrs().validate(key, &descriptor));
    (mem, key)
}

#[test]
fn a_read_whose_region_goes_while_it_is_answered_ends_in_an_access_error_and_touches_nothing_freed() {
    const LEN: usize = 256 << 10;
    const READS: u64 = 8;
    for direct in [true, false] {
        let mut cut_off = 0;
        for round in 1..=30 {
            // Afresh: a frame of an earlier round would be taken for one of this.
            let pool = HeapPool::for_mtu(2048, 4200);
            let (a, b) = ring_pair("rnic0", "rnic1", 1, 4200, pool);
            let mut rig = Rig::new(1, vec![a, b]);
            let (a, b) = (rig.create_qp(10), rig.create_qp(11));
            rig.connect(a, b, path(1, 2, direct), path(2, 1, direct), Mtu::M1024);
            let (mem, key) = readable(&rig, round, LEN);
            for i in 0..READS {
                let sge = rig.sge(0, LEN as u32);
                rig.post_send(a, wqe(i, READ, sge, 0, key));
            }
            let spins = Instant::now();
            while spins.elapsed() < Duration::from_micros(u64::from(round) * 30) {
                std::hint::spin_loop();
            }
            let epoch = rig.engine.invalidate(key);
            until("nobody uses the key", || rig.engine.is_past(epoch));
            rig.engine.mrs().release(key);
            // Debug builds fence its addresses off: whoever still reads there dies of it.
            drop(mem);
            let statuses: Vec<u8> = (0..READS).map(|_| rig.wait_cqe(a).status).collect();
            let read = statuses.iter().take_while(|status| **status == SUCCESS).count();
            let expected = |i: usize| match i.cmp(&read) {
                Ordering::Less => SUCCESS,
                Ordering::Equal => REM_ACCESS_ERR,
                Ordering::Greater => FLUSHED,
            };
            let expected: Vec<u8> = (0..READS as usize).map(expected).collect();
            assert_eq!(statuses, expected, "direct: {direct}, round {round}");
            if read < READS as usize {
                cut_off += 1;
                until("the responder's event", || {
                    rig.poll();
                    let of_b = |e: &&ObjectEvent| e.kinds & event_kind::QP_ACCESS_ERR != 0;
                    rig.events.iter().find(of_b).is_some_and(|event| {
                        assert_eq!((event.number, event.cause.check), (rig.qps[b].qpn, Check::Key));
                        true
                    })
                });
            }
            rig.engine.stop();
        }
        assert!(
            cut_off > 0,
            "no round cut anything off: the test is blind (direct: {direct})"
        );
    }
}
