//! Memory windows (10.6.7): a bind is a work request without a packet, in order with all others, and the key it makes is
//! one like any other to the peer.

mod common;

use common::*;
use rnic_sim::{Effect, Node, connect, connect_as};
use rnic_transport::{
    Access, Cause, Check, DropReason, EventKind, Mutation, PostError, QpAttr, QpAttrMask, QpState, QpType,
    Received, SendFlags, SendWr, WcOpcode, WcStatus, WrOpcode,
};
use rnic_wire::{Mtu, Operation};

/// Key of a region that windows may be bound to.
const REGION: u32 = 0x99;
const REGION_BASE: u64 = 0x20_0000;
/// Number of the window.
const WINDOW: u32 = 0x1234;
/// Its key after the first bind.
const BOUND: u32 = WINDOW << 8 | 1;
/// How often a QP that binds is told that the window's former range is still in use.
const BUSY: u32 = 3;

/// A node with memory for windows, and a window.
fn prepare(node: &mut Node) {
    let bytes = (0..1024).map(|at| at as u8).collect();
    node.host.register(REGION, REGION_BASE, bytes, Access::MW_BIND);
    node.host.alloc_window(WINDOW);
    register(node, 1024);
    node.host.grace = BUSY + 1;
}

fn nodes() -> (Node, Node) {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    prepare(&mut a);
    prepare(&mut b);
    (a, b)
}

fn bind(wr_id: u64, key: u32, addr: u64, len: u64, access: Access) -> SendWr {
    SendWr {
        wr_id,
        opcode: WrOpcode::BindMw,
        flags: SendFlags::SIGNALED,
        imm_or_rkey: key,
        rkey: REGION,
        remote_addr: addr,
        compare_add: len,
        swap: access.bits().into(),
        ..SendWr::default()
    }
}

/// Binds the window of `node` to 100 bytes at 200 of the region, and sees it done.
fn bound(node: &mut Node, access: Access) {
    node.post(bind(0, BOUND, REGION_BASE + 200, 100, access))
        .expect("RTS takes it");
    assert!(node.transmit_all().is_empty(), "it sends nothing");
    assert_eq!(sends(node), [(0, WcStatus::Success)]);
}

fn is_bound(node: &Node) -> bool {
    node.host.bound(BOUND).is_some()
}

#[test]
fn a_bind_waits_for_all_before_it_and_holds_all_behind_it() {
    let (mut a, mut b) = nodes();
    b.host.post_recv(9, 16);
    a.post_op(1, WrOpcode::Write, b"before", KEY, BASE);
    a.post(bind(2, BOUND, REGION_BASE, 8, Access::REMOTE_READ))
        .expect("RTS takes it");
    a.post_op(3, WrOpcode::Send, b"behind", 0, 0);
    let write = a.transmit().expect("the WRITE");
    assert!(a.transmit_all().is_empty());
    assert!(!is_bound(&a), "the WRITE is not acknowledged yet");
    assert!(!a.qp.has_work(), "it waits for the peer, not for its core");
    b.receive(&write);
    a.receive_all(&b.transmit_all());
    for _ in 0..BUSY {
        assert!(a.with(|qp, ctx| qp.poll_transmit(ctx)).is_none());
        assert!(a.qp.has_work(), "its core asks again");
        assert_eq!(sends(&a).len(), 1, "completed while somebody uses the old range");
        assert!(!is_bound(&a));
    }
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 101)]);
    assert_eq!(sends(&a), [(1, WcStatus::Success), (2, WcStatus::Success)]);
    assert_eq!(a.host.completions[1].opcode, WcOpcode::BindMw);
    assert!(is_bound(&a));
}

#[test]
fn a_bind_that_is_refused_fails_its_request_and_the_qp() {
    let rights = Access::REMOTE_READ;
    for (wr, check) in [
        (bind(1, 0xBAD << 8, REGION_BASE, 8, rights), Check::Key),
        (bind(1, BOUND, REGION_BASE + 1020, 8, rights), Check::Range),
        (
            SendWr {
                rkey: KEY,
                ..bind(1, BOUND, BASE, 8, rights)
            },
            Check::Access,
        ),
        (bind(1, BOUND, REGION_BASE, 8, Access::LOCAL_WRITE), Check::Access),
        (
            SendWr {
                swap: u64::MAX,
                ..bind(1, BOUND, REGION_BASE, 8, rights)
            },
            Check::Access,
        ),
    ] {
        let (mut a, _) = nodes();
        a.post(wr).expect("RTS takes it");
        a.post_bytes(2, b"behind");
        assert!(a.transmit_all().is_empty());
        a.flush_all();
        assert_eq!(sends(&a), [(1, WcStatus::MwBindErr), (2, WcStatus::WrFlushErr)]);
        let cause = Cause {
            psn: 100,
            ..Cause::of(check)
        };
        assert_eq!(a.host.completions[0].cause, cause);
        assert_eq!(a.qp.state(), QpState::Err);
        assert!(!is_bound(&a));
    }
}

#[test]
fn the_peer_uses_a_window_within_its_range_and_its_rights() {
    let (mut a, mut b) = nodes();
    bound(&mut b, Access::REMOTE_READ.union(Access::REMOTE_WRITE));
    a.post_op(0, WrOpcode::Write, &[0xAB; 100], BOUND, REGION_BASE + 200);
    a.post_op(1, WrOpcode::Read, &[0; 100], BOUND, REGION_BASE + 200);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::Success)]);
    assert_eq!(a.host.send_bufs[1], [0xAB; 100]);
    a.post_op(2, WrOpcode::Read, &[0; 2], BOUND, REGION_BASE + 299);
    pump(&mut a, &mut b);
    a.flush_all();
    assert_eq!(sends(&a)[2], (2, WcStatus::RemAccessErr));
    let told = b.host.events.last().expect("told");
    assert_eq!(
        (told.kind, told.cause.check),
        (EventKind::QpAccessErr, Check::Range)
    );
}

#[test]
fn an_atomic_needs_the_right_of_the_window() {
    let (mut a, mut b) = nodes();
    bound(&mut b, Access::REMOTE_READ.union(Access::REMOTE_WRITE));
    let add = rnic_transport::AtomicOp::FetchAdd { add: 1 };
    a.post_atomic(0, add, BOUND, REGION_BASE + 200);
    pump(&mut a, &mut b);
    a.flush_all();
    assert_eq!(sends(&a), [(0, WcStatus::RemAccessErr)]);
}

#[test]
fn a_window_that_the_peer_or_the_owner_invalidates_is_used_no_more() {
    for by_peer in [true, false] {
        let (mut a, mut b) = nodes();
        b.host.post_recv(9, 16);
        bound(&mut b, Access::REMOTE_READ);
        let wr = SendWr {
            wr_id: 1,
            opcode: if by_peer {
                WrOpcode::SendInv
            } else {
                WrOpcode::LocalInv
            },
            imm_or_rkey: BOUND,
            ..SendWr::default()
        };
        let owner = if by_peer { &mut a } else { &mut b };
        owner.post(wr).expect("RTS takes it");
        pump(&mut a, &mut b);
        assert!(!is_bound(&b));
        a.post_op(2, WrOpcode::Read, &[0; 8], BOUND, REGION_BASE + 200);
        pump(&mut a, &mut b);
        a.flush_all();
        assert_eq!(sends(&a), [(2, WcStatus::RemAccessErr)]);
        assert_eq!(b.host.events.last().expect("told").cause.check, Check::Key);
    }
}

#[test]
fn a_window_closed_behind_a_read_that_is_answered_again_ends_neither_qp() {
    // Whether the SEND is acknowledged while the last responses are still due, or only later.
    for grace in [0, BUSY + 1] {
        let (mut a, mut b) = nodes();
        b.host.grace = grace;
        b.host.post_recv(9, 16);
        b.post(bind(0, BOUND, REGION_BASE, 600, Access::REMOTE_READ))
            .expect("RTS takes it");
        assert!(b.transmit_all().is_empty());
        a.post_op(1, WrOpcode::Read, &[0; 600], BOUND, REGION_BASE);
        let read = only(&mut a);
        b.receive(&read);
        a.receive_all(&b.transmit_all());
        assert_eq!(b.receive(&read), Received::Duplicate);
        assert_eq!(trace(&[b.transmit().expect("again")]), [("READ_RESP_FIRST", 100)]);
        a.post(SendWr {
            wr_id: 2,
            opcode: WrOpcode::SendInv,
            flags: SendFlags::SIGNALED.union(SendFlags::FENCE),
            imm_or_rkey: BOUND,
            ..SendWr::default()
        })
        .expect("RTS takes it");
        assert_eq!(b.receive(&only(&mut a)), Received::Accepted);
        pump(&mut a, &mut b);
        assert!(!is_bound(&b));
        assert_eq!(sends(&a), [(1, WcStatus::Success), (2, WcStatus::Success)]);
        assert_eq!(recvs(&b), [(9, WcStatus::Success)]);
        assert_eq!([a.qp.state(), b.qp.state()], [QpState::Rts; 2]);
        assert_eq!(b.event_kinds(), []);
    }
}

#[test]
fn a_window_whose_region_is_invalidated_reaches_no_memory() {
    let (mut a, mut b) = nodes();
    bound(&mut b, Access::REMOTE_WRITE);
    b.host.region_mut(REGION).expect("registered").valid = false;
    a.post_op(0, WrOpcode::Write, &[1; 8], BOUND, REGION_BASE + 200);
    pump(&mut a, &mut b);
    a.flush_all();
    assert_eq!(sends(&a), [(0, WcStatus::RemAccessErr)]);
    assert!(
        !b.host
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Write { .. }))
    );
}

#[test]
fn a_bind_under_way_is_flushed_when_the_qp_fails() {
    let (mut a, _) = nodes();
    a.post(bind(1, BOUND, REGION_BASE, 8, Access::REMOTE_READ))
        .expect("RTS takes it");
    assert!(a.with(|qp, ctx| qp.poll_transmit(ctx)).is_none());
    a.set_state(QpState::Err).expect("always legal");
    a.flush_all();
    assert_eq!(sends(&a), [(1, WcStatus::WrFlushErr)]);
    assert_eq!(a.host.completions[0].opcode, WcOpcode::BindMw);
    assert!(!is_bound(&a));
}

#[test]
fn a_send_queue_is_drained_only_when_its_bind_is_done() {
    let (mut a, _) = nodes();
    a.post(bind(1, BOUND, REGION_BASE, 8, Access::REMOTE_READ))
        .expect("RTS takes it");
    assert!(a.with(|qp, ctx| qp.poll_transmit(ctx)).is_none());
    let attr = QpAttr {
        state: QpState::Sqd,
        sqd_async_notify: true,
        ..QpAttr::default()
    };
    a.modify(&attr, QpAttrMask::STATE | QpAttrMask::EN_SQD_ASYNC_NOTIFY)
        .expect("RTS to SQD");
    assert_eq!(a.event_kinds(), []);
    assert!(a.transmit_all().is_empty());
    assert_eq!(a.event_kinds(), [EventKind::SqDrained]);
    assert!(is_bound(&a));
}

#[test]
fn uc_binds_and_invalidates_in_order_and_goes_to_sqe_when_it_cannot() {
    let (mut a, mut b) = connect_as(QpType::Uc, Mtu::M256, [100, 200], |_| ());
    prepare(&mut a);
    prepare(&mut b);
    b.post_bytes(0, b"before");
    b.post(bind(1, BOUND, REGION_BASE + 200, 100, Access::REMOTE_WRITE))
        .expect("RTS takes it");
    b.post_bytes(2, b"behind");
    assert_eq!(trace(&b.transmit_all()), [("SEND_ONLY", 200), ("SEND_ONLY", 201)]);
    assert_eq!(sends(&b), [0, 1, 2].map(|id| (id, WcStatus::Success)));
    a.post_op(0, WrOpcode::Write, &[0xAB; 100], BOUND, REGION_BASE + 200);
    assert_eq!(b.receive_all(&a.transmit_all()), [Received::Accepted]);
    let unbind = SendWr {
        wr_id: 3,
        opcode: WrOpcode::LocalInv,
        flags: SendFlags::SIGNALED,
        imm_or_rkey: BOUND,
        ..SendWr::default()
    };
    b.post(unbind).expect("RTS takes it");
    assert!(b.transmit_all().is_empty());
    a.post_op(1, WrOpcode::Write, &[0xCD; 100], BOUND, REGION_BASE + 200);
    let dropped = Received::Dropped(DropReason::Refused(Check::Key));
    assert_eq!(b.receive_all(&a.transmit_all()), [dropped]);
    b.post(SendWr { wr_id: 4, ..unbind }).expect("RTS takes it");
    assert!(b.transmit_all().is_empty());
    assert_eq!(sends(&b)[3..], [(3, WcStatus::Success), (4, WcStatus::MwBindErr)]);
    assert_eq!(b.qp.state(), QpState::Sqe);
}

#[test]
fn datagrams_bind_nothing() {
    let (mut a, _) = connect_as(QpType::Ud, Mtu::M256, [100, 200], |_| ());
    let opcode = WrOpcode::BindMw;
    let wr = bind(1, BOUND, REGION_BASE, 8, Access::REMOTE_READ);
    assert_eq!(a.post(wr), Err(PostError::Unsupported { opcode }));
}

/// Whether a bind with this fault ends as it must.
fn binds_soundly(mutation: Option<Mutation>) -> bool {
    let (mut a, _) = nodes();
    a.qp.mutate(mutation);
    a.post(bind(1, BOUND, REGION_BASE, 8, Access::REMOTE_READ))
        .expect("RTS takes it");
    let mut sound = true;
    for _ in 0..=BUSY {
        assert!(a.with(|qp, ctx| qp.poll_transmit(ctx)).is_none());
        sound &= sends(&a).is_empty() || is_bound(&a);
    }
    sound
}

#[test]
fn a_bind_not_made_is_caught() {
    assert!(binds_soundly(None));
    assert!(!binds_soundly(Some(Mutation::BindNothing)));
}

#[test]
fn a_bind_completed_too_soon_is_caught() {
    assert!(!binds_soundly(Some(Mutation::BindTooSoon)));
}

#[test]
fn a_write_that_began_before_its_window_went_ends_where_it_went() {
    let (_, mut b) = nodes();
    bound(&mut b, Access::REMOTE_WRITE);
    b.post(bind(1, BOUND, REGION_BASE, 512, Access::REMOTE_WRITE))
        .expect("RTS takes it");
    b.transmit_all();
    let first = with_headers(Operation::WriteFirst, 100, &[1; 256], |headers| {
        headers.reth = Some(rnic_wire::Reth {
            va: REGION_BASE,
            rkey: BOUND,
            dma_len: 300,
        });
    });
    assert_eq!(b.receive(&first), Received::Accepted);
    b.transmit_all();
    b.host.windows[0].bound = None;
    let refused = b.receive(&request(Operation::WriteLast, 101, &[1; 44]));
    assert_eq!(refused, Received::Refused(Check::Key));
    assert_eq!(answer(&mut b), (ACCESS, 101));
}
