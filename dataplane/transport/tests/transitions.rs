//! Every transition of QPs of every type with every attribute (10.3.1, 11.2.5.2), and what a change does to a QP that is
//! in use.

mod common;

use QpState::{Err as Error, Init, Reset, Rtr, Rts, Sqd, Sqe};
use common::*;
use rnic_sim::{Node, QKEY, connect, connect_as, default_attr};
use rnic_transport::{
    Access, Cause, Check, EventKind, MIGRATED, ModifyError, QpAttr, QpAttrMask as M, QpState, QpType, RcQp,
    Received, WcStatus, WrOpcode, check_modify,
};
use rnic_wire::{Mtu, NakCode, Operation, Syndrome};

const TYPES: [QpType; 3] = [QpType::Rc, QpType::Uc, QpType::Ud];
/// Those of XRC too, whose targets send nothing.
const ALL_TYPES: [QpType; 5] = [QpType::Rc, QpType::Uc, QpType::Ud, QpType::XrcIni, QpType::XrcTgt];
const STATES: [QpState; 7] = [Reset, Init, Rtr, Rts, Sqd, Sqe, Error];

/// Attributes that differ from those of `default_attr` wherever more than one value is legal.
fn others() -> QpAttr {
    QpAttr {
        path_mtu: Mtu::M512,
        qkey: 0x2222_2222,
        rq_psn: 1234,
        sq_psn: 4321,
        dest_qpn: 0x77,
        access: Access::REMOTE_READ,
        port: 1,
        sqd_async_notify: true,
        max_rd_atomic: 3,
        max_dest_rd_atomic: 4,
        min_rnr_timer: 5,
        timeout: 6,
        retry_cnt: 2,
        rnr_retry: 1,
        path_mig_state: MIGRATED,
        ..default_attr()
    }
}

/// What of `attr` a bit stands for, as a number.
fn value(attr: &QpAttr, bit: M) -> Option<u32> {
    Some(match bit {
        M::EN_SQD_ASYNC_NOTIFY => attr.sqd_async_notify.into(),
        M::ACCESS_FLAGS => attr.access.bits().into(),
        M::PKEY_INDEX => attr.pkey_index.into(),
        M::PORT => attr.port.into(),
        M::QKEY => attr.qkey,
        M::PATH_MTU => attr.path_mtu.bytes() as u32,
        M::TIMEOUT => attr.timeout.into(),
        M::RETRY_CNT => attr.retry_cnt.into(),
        M::RNR_RETRY => attr.rnr_retry.into(),
        M::RQ_PSN => attr.rq_psn,
        M::MAX_QP_RD_ATOMIC => attr.max_rd_atomic.into(),
        M::MIN_RNR_TIMER => attr.min_rnr_timer.into(),
        M::SQ_PSN => attr.sq_psn,
        M::MAX_DEST_RD_ATOMIC => attr.max_dest_rd_atomic.into(),
        M::PATH_MIG_STATE => attr.path_mig_state.into(),
        M::DEST_QPN => attr.dest_qpn,
        _ => return None,
    })
}

/// A QP of a type in a state; reliable ones are never in SQE.
fn in_state(qp_type: QpType, state: QpState) -> Option<Node> {
    let attr = QpAttr {
        qkey: QKEY,
        ..default_attr()
    };
    let qp = match qp_type {
        QpType::Ud => RcQp::new_ud(0x11, Mtu::M1024),
        connected => RcQp::new(0x11).with_type(connected),
    };
    let mut node = Node::new(qp, 16);
    match state {
        Reset => {}
        Init => {
            let own = match qp_type {
                QpType::Ud => M::QKEY,
                _ => M::ACCESS_FLAGS,
            };
            let attr = QpAttr { state, ..attr };
            node.modify(&attr, M::STATE | M::PKEY_INDEX | M::PORT | own)
                .unwrap();
        }
        Rtr => node.to_rtr(&attr).unwrap(),
        Error => node.set_state(Error).unwrap(),
        Rts | Sqd | Sqe => {
            node.to_rtr(&attr).unwrap();
            node.to_rts(&attr).unwrap();
            if state == Sqd {
                node.set_state(Sqd).unwrap();
            } else if state == Sqe && !matches!(qp_type, QpType::Uc | QpType::Ud) {
                return None;
            } else if state == Sqe {
                let cause = Cause::of(Check::SendQueue);
                node.with(|qp, ctx| qp.refuse_send(ctx, 0, cause));
            }
        }
    }
    assert_eq!(node.qp.state(), state);
    Some(node)
}

/// Posts a SEND; of a datagram, to the second node of a pair by any address handle.
fn send(node: &mut Node, wr_id: u64, bytes: &[u8]) {
    node.post_op(wr_id, WrOpcode::Send, bytes, QKEY, 1 << 32 | 0x22);
}

/// What a transition needs, found by asking.
fn needed(qp_type: QpType, from: QpState, to: QpState) -> M {
    let mut mask = M::STATE;
    while let Err(ModifyError::Missing { attribute, .. }) = check_modify(qp_type, from, to, mask) {
        mask = mask | attribute;
    }
    mask
}

#[test]
fn every_transition_with_every_attribute_does_what_the_table_says_or_changes_nothing() {
    let mut changed = 0;
    for qp_type in ALL_TYPES {
        for (from, to) in STATES.iter().flat_map(|from| STATES.map(|to| (*from, to))) {
            for bit in (0..32).map(|bit| M::from_bits(1 << bit)) {
                let Some(mut node) = in_state(qp_type, from) else {
                    continue;
                };
                let before = node.qp.query();
                let attr = QpAttr {
                    state: to,
                    cur_state: from,
                    ..others()
                };
                let mask = needed(qp_type, from, to) | bit;
                let expected = match check_modify(qp_type, from, to, mask) {
                    Ok(()) if bit == M::ALT_PATH => Err(ModifyError::Unsupported { attribute: bit }),
                    judged => judged,
                };
                let case = format!("{qp_type} {from} to {to} with {bit}");
                assert_eq!(node.modify(&attr, mask), expected, "{case}");
                let after = node.qp.query();
                if expected.is_err() {
                    assert_eq!(after, before, "{case}");
                    continue;
                }
                assert_eq!(after.state, to, "{case}");
                if to != Reset && mask.contains(bit) {
                    assert_eq!(value(&after, bit), value(&attr, bit), "{case}");
                    changed += usize::from(value(&before, bit) != value(&after, bit));
                }
            }
        }
    }
    assert!(changed > 50, "{changed} attributes took another value");
}

#[test]
fn each_attribute_that_is_not_asked_for_stays_as_it_is() {
    for qp_type in ALL_TYPES {
        for state in [Init, Rts, Sqd] {
            for bit in (1..32).map(|bit| M::from_bits(1 << bit)) {
                let mut node = in_state(qp_type, state).unwrap();
                let before = node.qp.query();
                let attr = QpAttr {
                    cur_state: state,
                    ..others()
                };
                if node.modify(&attr, bit).is_err() {
                    continue;
                }
                let after = node.qp.query();
                for other in (0..32)
                    .map(|bit| M::from_bits(1 << bit))
                    .filter(|other| *other != bit)
                {
                    assert_eq!(
                        value(&after, other),
                        value(&before, other),
                        "{state}: {bit} changed {other}"
                    );
                }
            }
        }
    }
}

#[test]
fn from_any_state_a_qp_goes_to_err_and_from_there_by_reset_to_work_again() {
    for qp_type in ALL_TYPES {
        for state in STATES {
            let Some(mut node) = in_state(qp_type, state) else {
                continue;
            };
            node.set_state(Error).unwrap();
            node.flush_all();
            for to in [Init, Rtr, Rts, Sqd] {
                let refused = node.set_state(to);
                assert_eq!(refused, Err(ModifyError::IllegalTransition { from: Error, to }));
            }
            node.set_state(Reset).unwrap();
            let fresh = in_state(qp_type, Reset).unwrap().qp.query();
            assert_eq!(node.qp.query(), fresh, "{qp_type}: nothing of before is left");
            let attr = QpAttr {
                qkey: QKEY,
                ..default_attr()
            };
            node.to_rtr(&attr).unwrap();
            node.to_rts(&attr).unwrap();
            assert_eq!(node.qp.state(), Rts);
        }
    }
}

#[test]
fn the_state_the_caller_believes_in_is_checked_where_it_may_be_given() {
    for qp_type in ALL_TYPES {
        for (from, wrong) in [(Rtr, Rts), (Rts, Sqd), (Sqd, Rts), (Sqe, Rts)] {
            let Some(mut node) = in_state(qp_type, from) else {
                continue;
            };
            let mask = needed(qp_type, from, Rts) | M::CUR_STATE;
            let attr = |cur_state| QpAttr {
                state: Rts,
                cur_state,
                ..others()
            };
            let refused = node.modify(&attr(wrong), mask);
            let given = ModifyError::WrongCurrentState {
                given: wrong,
                actual: from,
            };
            assert_eq!((refused, node.qp.state()), (Err(given), from));
            node.modify(&attr(from), mask).unwrap();
        }
    }
}

#[test]
fn migration_is_refused_by_its_name_and_migrated_is_what_a_qp_is() {
    let mut node = in_state(QpType::Rc, Rts).unwrap();
    assert_eq!(node.qp.query().path_mig_state, MIGRATED);
    for (path_mig_state, refusal) in [
        (0, None),
        (
            1,
            Some("PATH_MIG_STATE is not supported: without an alternate path it is always MIGRATED (0)"),
        ),
        (
            2,
            Some("PATH_MIG_STATE is not supported: without an alternate path it is always MIGRATED (0)"),
        ),
        (3, Some("PATH_MIG_STATE is 3; it must be 0 to 2")),
    ] {
        let attr = QpAttr {
            path_mig_state,
            ..QpAttr::default()
        };
        let text = node
            .modify(&attr, M::PATH_MIG_STATE)
            .err()
            .map(|error| error.to_string());
        assert_eq!(text.as_deref(), refusal);
    }
    let refused = node.modify(&others(), M::ALT_PATH).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "ALT_PATH is not supported: a QP has no second path to migrate to; leave its mask bit clear"
    );
}

#[test]
fn rights_given_to_a_live_qp_or_taken_from_it_hold_from_the_next_request_on() {
    for state in [Rts, Sqd] {
        let (_, mut b) = connect(Mtu::M256, |attr| attr.access = Access::REMOTE_READ);
        register(&mut b, 64);
        b.set_state(state).unwrap();
        let grant = |access| QpAttr {
            access,
            ..QpAttr::default()
        };
        b.modify(&grant(Access::REMOTE_WRITE), M::ACCESS_FLAGS).unwrap();
        assert_eq!(
            b.receive(&rdma(Operation::WriteOnly, 100, 4, b"data")),
            Received::Accepted
        );
        let refused = b.receive(&rdma(Operation::ReadRequest, 101, 4, b""));
        assert_eq!(refused, Received::Refused(Check::QpAccess), "no longer granted");
    }
}

#[test]
fn the_rnr_timer_of_a_live_qp_is_that_of_its_next_nak() {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    let change = QpAttr {
        min_rnr_timer: 20,
        ..QpAttr::default()
    };
    b.modify(&change, M::MIN_RNR_TIMER).unwrap();
    assert_eq!(
        b.receive(&request(Operation::SendOnly, 100, b"x")),
        Received::NotReady
    );
    assert_eq!(answer(&mut b).0, Syndrome::RnrNak { timer: 20 });
}

#[test]
fn what_depends_on_requests_under_way_changes_only_once_they_are_done() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    a.post_op(1, WrOpcode::Read, &[0; 4], KEY, BASE);
    a.transmit_all();
    a.set_state(Sqd).unwrap();
    for attribute in [M::AV, M::PORT, M::PKEY_INDEX, M::MAX_QP_RD_ATOMIC] {
        let refused = a.modify(&others(), attribute);
        assert_eq!(refused, Err(ModifyError::NotDrained { attribute }));
    }
    // The rest of what SQD permits does not depend on them.
    a.modify(
        &others(),
        M::TIMEOUT | M::RETRY_CNT | M::RNR_RETRY | M::MAX_DEST_RD_ATOMIC,
    )
    .unwrap();
    a.receive(&response(Operation::ReadResponseOnly, 100, &[7; 4]));
    a.modify(&others(), M::AV | M::PORT | M::PKEY_INDEX | M::MAX_QP_RD_ATOMIC)
        .unwrap();
    assert_eq!(a.qp.query().max_rd_atomic, 3);
}

#[test]
fn a_read_posted_before_max_rd_atomic_became_0_fails_when_its_turn_comes() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    b.host.post_recv(5, 100);
    a.set_state(Sqd).unwrap();
    a.post_bytes(1, b"before");
    a.post_op(2, WrOpcode::Read, &[0; 4], KEY, BASE);
    a.post_bytes(3, b"behind");
    let none = QpAttr::default();
    a.modify(&none, M::MAX_QP_RD_ATOMIC).unwrap();
    a.set_state(Rts).unwrap();
    pump(&mut a, &mut b);
    a.flush_all();
    let expected = [
        (1, WcStatus::Success),
        (2, WcStatus::LocQpOpErr),
        (3, WcStatus::WrFlushErr),
    ];
    assert_eq!(sends(&a), expected);
    let failed = a.host.completions.iter().find(|c| c.wr_id == 2).unwrap();
    assert_eq!(failed.cause.check, Check::RdAtomicResources);
}

#[test]
fn a_drained_qp_of_any_type_goes_on_where_it_stopped() {
    for qp_type in TYPES {
        let (mut a, mut b) = connect_as(qp_type, Mtu::M256, [100, 200], |_| ());
        for wr_id in 0..2 {
            b.host.post_recv(wr_id, 1000);
        }
        send(&mut a, 0, b"first");
        pump(&mut a, &mut b);
        let drain = QpAttr {
            state: Sqd,
            sqd_async_notify: true,
            ..QpAttr::default()
        };
        a.modify(&drain, M::STATE | M::EN_SQD_ASYNC_NOTIFY).unwrap();
        assert_eq!(a.event_kinds(), [EventKind::SqDrained]);
        assert!(!a.qp.query().sq_draining);
        send(&mut a, 1, b"second");
        assert_eq!(a.transmit_all(), [], "{qp_type}: posted, and not begun");
        a.set_state(Rts).unwrap();
        pump(&mut a, &mut b);
        assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::Success)]);
        assert_eq!(
            recvs(&b),
            [(0, WcStatus::Success), (1, WcStatus::Success)],
            "{qp_type}"
        );
    }
}

#[test]
fn an_unreliable_send_queue_in_error_flushes_until_it_is_taken_back_to_rts() {
    for qp_type in [QpType::Uc, QpType::Ud] {
        let (mut a, mut b) = connect_as(qp_type, Mtu::M256, [100, 200], |_| ());
        b.host.post_recv(9, 1000);
        a.host.bad_send.push(0);
        send(&mut a, 0, b"unusable");
        send(&mut a, 1, b"behind it");
        a.transmit_all();
        assert_eq!(a.qp.state(), Sqe, "{qp_type}");
        a.flush_all();
        send(&mut a, 2, b"later");
        a.flush_all();
        let expected = [
            (0, WcStatus::LocProtErr),
            (1, WcStatus::WrFlushErr),
            (2, WcStatus::WrFlushErr),
        ];
        assert_eq!(sends(&a), expected);
        let back = QpAttr {
            state: Rts,
            cur_state: Sqe,
            ..others()
        };
        a.modify(&back, M::STATE | M::CUR_STATE).unwrap();
        send(&mut a, 3, b"again");
        pump(&mut a, &mut b);
        assert_eq!(sends(&a)[3], (3, WcStatus::Success));
        assert_eq!(recvs(&b), [(9, WcStatus::Success)]);
    }
}

#[test]
fn a_nak_of_a_refused_right_names_the_check_to_both() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 64);
    b.modify(&QpAttr::default(), M::ACCESS_FLAGS).unwrap();
    a.post_op(1, WrOpcode::Write, b"data", KEY, BASE);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(1, WcStatus::RemInvReqErr)]);
    let cause = a.host.completions[0].cause;
    assert_eq!(cause.check, Check::RemoteNak);
    assert_eq!(cause.syndrome, Syndrome::Nak(NakCode::InvalidRequest).to_u8());
    assert_eq!(b.host.events[0].cause.check, Check::QpAccess);
}
