//! QP states: drain, error, flush, reset, events.

mod common;

use common::*;
use rnic_sim::{Node, connect, default_attr};
use rnic_transport::{
    Cause, Check, DropReason, EventKind, ModifyError, PostError, QpAttr, QpAttrMask, QpState, RcQp, Received,
    SendFlags, SendWr, WcStatus, WrOpcode,
};
use rnic_wire::{Mtu, Operation, Syndrome};

#[test]
fn the_record_stays_compact_and_plain() {
    assert!(size_of::<SendWr>() <= 64, "{}", size_of::<SendWr>());
    assert!(size_of::<RcQp>() <= 1_424, "{}", size_of::<RcQp>());
    fn plain<T: Copy + Send + 'static>() {}
    plain::<(RcQp, SendWr)>();
}

#[test]
fn comm_est_is_raised_once_by_the_first_packet_in_rtr() {
    let mut b = Node::new(RcQp::new(0x22), 16);
    let attr = QpAttr {
        dest_qpn: 0x11,
        rq_psn: 100,
        ..default_attr()
    };
    b.to_rtr(&attr).expect("legal");
    b.host.post_recv(0, 16);
    b.host.post_recv(1, 16);
    b.receive(&request(Operation::SendOnly, 100, b"x"));
    b.receive(&request(Operation::SendOnly, 101, b"x"));
    assert_eq!(b.event_kinds(), [EventKind::CommEst]);
    assert_eq!(recvs(&b).len(), 2);
    assert_eq!(answer(&mut b), (Syndrome::ACK, 101));
    let (_, mut live) = connect(Mtu::M256, |_| ());
    live.receive(&request(Operation::SendOnly, 100, b"x"));
    assert_eq!(live.event_kinds(), [], "RTS is established already");
}

#[test]
fn packets_are_dropped_before_rtr_and_responses_before_rts() {
    let mut b = Node::new(RcQp::new(0x22), 16);
    let attr = default_attr();
    let send = request(Operation::SendOnly, 0, b"x");
    assert_eq!(b.receive(&send), Received::Dropped(DropReason::State));
    b.to_rtr(&attr).expect("legal");
    assert_eq!(
        b.receive(&ack(0, Syndrome::ACK)),
        Received::Dropped(DropReason::State)
    );
    assert_eq!(b.receive(&send), Received::NotReady);
}

#[test]
fn sends_are_accepted_in_rts_and_sqd_and_flushed_in_err() {
    let mut a = Node::new(RcQp::new(0x11), 16);
    let wr = SendWr::default();
    assert_eq!(
        a.post(wr),
        Err(PostError::BadState {
            state: QpState::Reset
        })
    );
    a.to_rtr(&default_attr()).expect("legal");
    assert_eq!(a.post(wr), Err(PostError::BadState { state: QpState::Rtr }));
    a.to_rts(&default_attr()).expect("legal");
    assert_eq!(a.post(wr), Ok(()));
    a.set_state(QpState::Sqd).expect("legal");
    assert_eq!(a.post(wr), Ok(()));
    a.set_state(QpState::Err).expect("legal");
    assert_eq!(a.post(SendWr { wr_id: 7, ..wr }), Ok(()));
    assert!(a.qp.has_work());
    a.flush_all();
    let flushed = WcStatus::WrFlushErr;
    assert_eq!(
        sends(&a),
        [(0, flushed), (0, flushed), (7, flushed)],
        "signalled or not"
    );
    assert!(!a.qp.has_work());
    assert_eq!(a.post(SendWr { wr_id: 8, ..wr }), Ok(()));
    a.flush_all();
    assert_eq!(sends(&a).len(), 4);
}

#[test]
fn unsignalled_requests_complete_silently() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    b.host.post_recv(0, 16);
    let data = a.host.add_send_buf(b"x".to_vec());
    a.post(SendWr {
        length: 1,
        data,
        ..SendWr::default()
    })
    .expect("room");
    pump(&mut a, &mut b);
    assert_eq!((sends(&a), recvs(&b)), (vec![], vec![(0, WcStatus::Success)]));
    assert_eq!(a.qp.sq_room(64), 64);
}

#[test]
fn a_full_ring_refuses_and_completion_makes_room() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.sq.truncate(2);
    let wr = SendWr {
        flags: SendFlags::SIGNALED,
        ..SendWr::default()
    };
    assert_eq!(
        [a.post(wr), a.post(wr), a.post(wr)],
        [Ok(()), Ok(()), Err(PostError::Full)]
    );
    a.transmit_all();
    a.receive(&ack(100, Syndrome::ACK));
    assert_eq!((a.qp.sq_room(2), a.post(wr)), (1, Ok(())));
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 102)]);
}

#[test]
fn messages_too_long_for_the_wire_are_refused_when_posted() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    let length = (1 << 31) + 1;
    assert_eq!(
        a.post(SendWr {
            length,
            ..SendWr::default()
        }),
        Err(PostError::TooLong { length })
    );
}

/// Goes to SQD and asks for SQ_DRAINED.
fn drain(a: &mut Node) {
    let attr = QpAttr {
        state: QpState::Sqd,
        sqd_async_notify: true,
        ..QpAttr::default()
    };
    a.modify(&attr, QpAttrMask::STATE | QpAttrMask::EN_SQD_ASYNC_NOTIFY)
        .expect("legal");
}

#[test]
fn sqd_finishes_what_was_started_raises_sq_drained_and_begins_nothing_new() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    for wr_id in 0..2 {
        b.host.post_recv(wr_id, 2_000);
    }
    a.post_bytes(0, &[1; 1_000]);
    a.post_bytes(1, b"later");
    let first = a.transmit().expect("the first packet");
    drain(&mut a);
    assert!(a.qp.query().sq_draining);
    b.receive(&first);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
    assert_eq!(a.event_kinds(), [EventKind::SqDrained]);
    assert!(!a.qp.query().sq_draining);
    assert_eq!(a.transmit_all(), []);
    a.set_state(QpState::Rts).expect("legal");
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::Success)]);
    assert_eq!(a.event_kinds().len(), 1);
}

#[test]
fn an_idle_send_queue_is_drained_at_once_and_silently_unless_asked() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    drain(&mut a);
    assert_eq!(a.event_kinds(), [EventKind::SqDrained]);
    b.set_state(QpState::Sqd).expect("legal");
    assert_eq!(b.event_kinds(), []);
}

#[test]
fn sqd_goes_on_receiving() {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    b.set_state(QpState::Sqd).expect("legal");
    b.host.post_recv(0, 16);
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 100, b"x")),
        Received::Accepted
    );
    assert_eq!(answer(&mut b), (Syndrome::ACK, 100));
}

#[test]
fn path_attributes_change_only_once_drained() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.post_bytes(0, b"x");
    a.transmit_all();
    drain(&mut a);
    let attr = QpAttr {
        port: 2,
        ..QpAttr::default()
    };
    let refused = a.modify(&attr, QpAttrMask::PORT);
    assert_eq!(
        refused,
        Err(ModifyError::NotDrained {
            attribute: QpAttrMask::PORT
        })
    );
    a.receive(&ack(100, Syndrome::ACK));
    assert_eq!(a.modify(&attr, QpAttrMask::PORT), Ok(()));
    assert_eq!(a.qp.query().port, 2);
}

#[test]
fn lowering_max_dest_rd_atomic_answers_the_reads_already_accepted() {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 64);
    for psn in 100..104 {
        b.receive(&rdma(Operation::ReadRequest, psn, 4, b""));
    }
    b.set_state(QpState::Sqd).expect("legal");
    b.modify(
        &QpAttr {
            max_dest_rd_atomic: 1,
            ..QpAttr::default()
        },
        QpAttrMask::MAX_DEST_RD_ATOMIC,
    )
    .expect("legal");
    let psns: Vec<u32> = b.transmit_all().iter().map(|packet| packet.psn()).collect();
    assert_eq!(psns, [100, 101, 102, 103]);
    assert_eq!(
        b.receive(&rdma(Operation::ReadRequest, 104, 4, b"")),
        Received::Accepted
    );
    let second = b.receive(&rdma(Operation::ReadRequest, 105, 4, b""));
    assert_eq!(second, Received::Refused(Check::RdAtomicResources));
}

#[test]
fn nothing_succeeds_in_err_whatever_still_arrives() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    register(&mut a, 600);
    register(&mut b, 600);
    a.host.post_recv(50, 64);
    a.post_bytes(0, b"x");
    a.post_op(1, WrOpcode::Read, &[0; 4], KEY, BASE);
    a.transmit_all();
    a.set_state(QpState::Err).expect("legal");
    for packet in [
        ack(100, Syndrome::ACK),
        response(Operation::ReadResponseOnly, 101, &[0; 4]),
        request(Operation::SendOnly, 200, b"x"),
        rdma(Operation::WriteOnly, 200, 4, b"data"),
    ] {
        assert_eq!(a.receive(&packet), Received::Dropped(DropReason::State));
    }
    a.wait(u64::MAX / 2);
    assert_eq!((a.transmit_all(), a.qp.poll_timeout()), (vec![], None));
    a.flush_all();
    let flushed = WcStatus::WrFlushErr;
    assert_eq!(
        (sends(&a), recvs(&a)),
        (vec![(0, flushed), (1, flushed)], vec![(50, flushed)])
    );
    assert_eq!(a.host.effects, []);
}

#[test]
fn a_receive_wqe_in_use_is_flushed_first() {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    b.host.post_recv(1, 600);
    b.host.post_recv(2, 600);
    b.receive(&request(Operation::SendFirst, 100, &[0; 256]));
    b.set_state(QpState::Err).expect("legal");
    b.flush_all();
    assert_eq!(recvs(&b), [(1, WcStatus::WrFlushErr), (2, WcStatus::WrFlushErr)]);
}

#[test]
fn flushing_is_bounded_per_call() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    for id in 0..10 {
        a.post_bytes(id, b"x");
    }
    a.set_state(QpState::Err).expect("legal");
    assert!(a.with(|qp, ctx| qp.flush(ctx, 4)));
    assert_eq!(a.host.completions.len(), 4);
    assert!(
        a.with(|qp, ctx| qp.flush(ctx, 0)),
        "there is more, though nothing may be done"
    );
    assert_eq!(a.host.completions.len(), 4);
    a.flush_all();
    assert_eq!(a.host.completions.len(), 10);
}

#[test]
fn last_wqe_reached_is_raised_for_a_qp_on_an_srq_which_is_not_flushed() {
    let mut b = Node::new(RcQp::new(0x22).with_srq(), 16);
    let attr = QpAttr {
        dest_qpn: 0x11,
        rq_psn: 100,
        ..default_attr()
    };
    b.to_rtr(&attr).expect("legal");
    b.host.post_recv(1, 600);
    b.host.post_recv(2, 600);
    b.receive(&request(Operation::SendFirst, 100, &[0; 256]));
    b.set_state(QpState::Err).expect("legal");
    b.flush_all();
    b.flush_all();
    assert_eq!(b.event_kinds(), [EventKind::CommEst, EventKind::LastWqeReached]);
    assert_eq!(
        recvs(&b),
        [(1, WcStatus::WrFlushErr)],
        "the one in use; the rest is the SRQ's"
    );
    assert_eq!(b.host.recv_queue.len(), 1);
}

#[test]
fn a_fatal_error_raises_its_cause_once() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.post_bytes(0, b"x");
    for _ in 0..2 {
        a.with(|qp, ctx| qp.fatal(ctx, Cause::of(Check::SendQueue)));
    }
    a.flush_all();
    assert_eq!(a.event_kinds(), [EventKind::QpFatal]);
    assert_eq!(a.host.events[0].cause.check, Check::SendQueue);
    assert_eq!(sends(&a), [(0, WcStatus::WrFlushErr)]);
}

#[test]
fn reset_forgets_everything_without_completions() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.host.post_recv(1, 16);
    a.post_bytes(0, b"x");
    a.transmit_all();
    a.set_state(QpState::Reset).expect("legal");
    a.flush_all();
    assert_eq!(
        (a.host.completions.len(), a.qp.poll_timeout(), a.qp.has_work()),
        (0, None, false)
    );
    assert_eq!(a.qp.query(), RcQp::new(0x11).query());
    a.to_rtr(&default_attr()).expect("a reset QP can be used again");
}

#[test]
fn query_returns_what_was_set() {
    let (a, _) = connect(Mtu::M2048, |attr| attr.timeout = 14);
    let attr = a.qp.query();
    let wanted = QpAttr {
        path_mtu: Mtu::M2048,
        timeout: 14,
        dest_qpn: 0x22,
        sq_psn: 100,
        rq_psn: 200,
        ..default_attr()
    };
    assert_eq!(
        attr,
        QpAttr {
            state: QpState::Rts,
            cur_state: QpState::Rts,
            ..wanted
        }
    );
}
