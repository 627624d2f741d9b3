//! The modify table of the specification, and messages that say what would be right.

use QpState::{Err as Error, Init, Reset, Rtr, Rts, Sqd, Sqe};
use rnic_sim::{Node, default_attr};
use rnic_transport::{ModifyError, QpAttr, QpAttrMask as M, QpState, QpType, RcQp, check_modify};

const STATES: [QpState; 7] = [Reset, Init, Rtr, Rts, Sqd, Sqe, Error];

fn all(bits: &[M]) -> M {
    bits.iter().fold(M::NONE, |sum, bit| sum | *bit)
}

/// Transitions other than those to RESET and ERR, with what they require and what else they permit
/// (11.2.5.2).
fn table(qp_type: QpType) -> Vec<(QpState, QpState, M, M)> {
    let path = [M::ALT_PATH, M::PATH_MIG_STATE];
    let mut rows = Vec::new();
    let mut row =
        |from, to, required: &[M], optional: &[M]| rows.push((from, to, all(required), all(optional)));
    match qp_type {
        QpType::Rc => {
            row(Reset, Init, &[M::PKEY_INDEX, M::PORT, M::ACCESS_FLAGS], &[]);
            row(Init, Init, &[], &[M::PKEY_INDEX, M::PORT, M::ACCESS_FLAGS]);
            let required = [
                M::AV,
                M::PATH_MTU,
                M::DEST_QPN,
                M::RQ_PSN,
                M::MAX_DEST_RD_ATOMIC,
                M::MIN_RNR_TIMER,
            ];
            row(
                Init,
                Rtr,
                &required,
                // The last is not the specification's.
                &[M::ALT_PATH, M::ACCESS_FLAGS, M::PKEY_INDEX, M::FEATURES],
            );
            let live = [M::CUR_STATE, M::ACCESS_FLAGS, M::MIN_RNR_TIMER, path[0], path[1]];
            let required = [
                M::TIMEOUT,
                M::RETRY_CNT,
                M::RNR_RETRY,
                M::SQ_PSN,
                M::MAX_QP_RD_ATOMIC,
            ];
            row(Rtr, Rts, &required, &live);
            row(Rts, Rts, &[], &live);
            row(Sqd, Rts, &[], &live);
            row(Rts, Sqd, &[], &[M::EN_SQD_ASYNC_NOTIFY]);
            let drained = [
                M::PORT,
                M::AV,
                M::TIMEOUT,
                M::RETRY_CNT,
                M::RNR_RETRY,
                M::MAX_QP_RD_ATOMIC,
                M::MAX_DEST_RD_ATOMIC,
                M::ACCESS_FLAGS,
                M::PKEY_INDEX,
                M::MIN_RNR_TIMER,
                path[0],
                path[1],
            ];
            row(Sqd, Sqd, &[], &drained);
        }
        QpType::XrcIni | QpType::XrcTgt => {
            row(Reset, Init, &[M::PKEY_INDEX, M::PORT, M::ACCESS_FLAGS], &[]);
            row(Init, Init, &[], &[M::PKEY_INDEX, M::PORT, M::ACCESS_FLAGS]);
            let responds = qp_type == QpType::XrcTgt;
            let mut connected = vec![M::AV, M::PATH_MTU, M::DEST_QPN, M::RQ_PSN];
            let mut live = vec![M::CUR_STATE, M::ACCESS_FLAGS, path[0], path[1]];
            let mut drained = vec![M::PORT, M::AV, M::TIMEOUT, M::ACCESS_FLAGS, M::PKEY_INDEX];
            drained.extend(path);
            let mut sends = vec![M::TIMEOUT, M::SQ_PSN];
            if responds {
                connected.extend([M::MAX_DEST_RD_ATOMIC, M::MIN_RNR_TIMER]);
                live.push(M::MIN_RNR_TIMER);
                drained.extend([M::MAX_DEST_RD_ATOMIC, M::MIN_RNR_TIMER]);
            } else {
                let retry = [M::RETRY_CNT, M::RNR_RETRY, M::MAX_QP_RD_ATOMIC];
                sends.extend(retry);
                drained.extend(retry);
            }
            row(
                Init,
                Rtr,
                &connected,
                &[M::ALT_PATH, M::ACCESS_FLAGS, M::PKEY_INDEX],
            );
            row(Rtr, Rts, &sends, &live);
            row(Rts, Rts, &[], &live);
            row(Sqd, Rts, &[], &live);
            row(Rts, Sqd, &[], &[M::EN_SQD_ASYNC_NOTIFY]);
            row(Sqd, Sqd, &[], &drained);
        }
        QpType::Uc => {
            row(Reset, Init, &[M::PKEY_INDEX, M::PORT, M::ACCESS_FLAGS], &[]);
            row(Init, Init, &[], &[M::PKEY_INDEX, M::PORT, M::ACCESS_FLAGS]);
            let required = [M::AV, M::PATH_MTU, M::DEST_QPN, M::RQ_PSN];
            row(
                Init,
                Rtr,
                &required,
                &[M::ALT_PATH, M::ACCESS_FLAGS, M::PKEY_INDEX],
            );
            let live = [M::CUR_STATE, M::ACCESS_FLAGS, path[0], path[1]];
            row(Rtr, Rts, &[M::SQ_PSN], &live);
            row(Rts, Rts, &[], &live);
            row(Sqd, Rts, &[], &live);
            row(Sqe, Rts, &[], &[M::CUR_STATE, M::ACCESS_FLAGS]);
            row(Rts, Sqd, &[], &[M::EN_SQD_ASYNC_NOTIFY]);
            row(
                Sqd,
                Sqd,
                &[],
                &[M::AV, M::ACCESS_FLAGS, M::PKEY_INDEX, path[0], path[1]],
            );
        }
        QpType::Ud => {
            row(Reset, Init, &[M::PKEY_INDEX, M::PORT, M::QKEY], &[]);
            row(Init, Init, &[], &[M::PKEY_INDEX, M::PORT, M::QKEY]);
            row(Init, Rtr, &[], &[M::PKEY_INDEX, M::QKEY]);
            row(Rtr, Rts, &[M::SQ_PSN], &[M::CUR_STATE, M::QKEY]);
            row(Rts, Rts, &[], &[M::CUR_STATE, M::QKEY]);
            row(Sqd, Rts, &[], &[M::CUR_STATE, M::QKEY]);
            row(Sqe, Rts, &[], &[M::CUR_STATE, M::QKEY]);
            row(Rts, Sqd, &[], &[M::EN_SQD_ASYNC_NOTIFY]);
            row(Sqd, Sqd, &[], &[M::PKEY_INDEX, M::QKEY]);
        }
    }
    rows
}

#[test]
fn every_transition_and_every_attribute_is_judged_as_the_specification_says() {
    for qp_type in [QpType::Rc, QpType::Uc, QpType::Ud, QpType::XrcIni, QpType::XrcTgt] {
        let table = table(qp_type);
        for from in STATES {
            for to in STATES {
                let row = table.iter().find(|row| (row.0, row.1) == (from, to));
                let (required, optional) = match row {
                    Some((_, _, required, optional)) => (*required, *optional),
                    None if to == Reset || to == Error => (M::NONE, M::NONE),
                    None => {
                        let wrong = Err(ModifyError::IllegalTransition { from, to });
                        assert_eq!(check_modify(qp_type, from, to, M::STATE), wrong);
                        continue;
                    }
                };
                assert_eq!(check_modify(qp_type, from, to, M::STATE | required), Ok(()));
                assert_eq!(
                    check_modify(qp_type, from, to, M::STATE | required | optional),
                    Ok(())
                );
                for bit in (0..32).map(|bit| M::from_bits(1 << bit)) {
                    let without = M::from_bits(required.bits() & !bit.bits());
                    if required.contains(bit) {
                        let missing = Err(ModifyError::Missing {
                            from,
                            to,
                            attribute: bit,
                        });
                        assert_eq!(check_modify(qp_type, from, to, M::STATE | without), missing);
                    } else if !optional.contains(bit) && bit != M::STATE {
                        let permitted = required | optional | M::STATE;
                        let extra = Err(ModifyError::NotAllowed {
                            from,
                            to,
                            attribute: bit,
                            permitted,
                        });
                        assert_eq!(check_modify(qp_type, from, to, M::STATE | required | bit), extra);
                    }
                }
            }
        }
    }
}

/// A QP in INIT and the mask that brings it to RTR.
fn in_init() -> (Node, M) {
    let mut node = Node::new(RcQp::new(1), 16);
    let setup = M::STATE | M::PKEY_INDEX | M::PORT | M::ACCESS_FLAGS;
    node.modify(
        &QpAttr {
            state: Init,
            ..default_attr()
        },
        setup,
    )
    .expect("legal");
    let receive = M::AV | M::PATH_MTU | M::DEST_QPN | M::RQ_PSN | M::MAX_DEST_RD_ATOMIC | M::MIN_RNR_TIMER;
    (node, M::STATE | receive)
}

#[test]
fn values_out_of_range_name_their_attribute_and_range() {
    let base = QpAttr {
        state: Rtr,
        ..default_attr()
    };
    for (attr, attribute, value, high) in [
        (
            QpAttr {
                rq_psn: 1 << 24,
                ..base
            },
            M::RQ_PSN,
            1 << 24,
            0xFF_FFFF,
        ),
        (
            QpAttr {
                dest_qpn: u32::MAX,
                ..base
            },
            M::DEST_QPN,
            u32::MAX,
            0xFF_FFFF,
        ),
        (
            QpAttr {
                max_dest_rd_atomic: 17,
                ..base
            },
            M::MAX_DEST_RD_ATOMIC,
            17,
            16,
        ),
        (
            QpAttr {
                min_rnr_timer: 32,
                ..base
            },
            M::MIN_RNR_TIMER,
            32,
            31,
        ),
    ] {
        let (mut node, mask) = in_init();
        let before = node.qp.query();
        assert_eq!(
            node.modify(&attr, mask),
            Err(ModifyError::Invalid {
                attribute,
                value,
                low: 0,
                high
            })
        );
        assert_eq!(node.qp.query(), before, "a refused modify changes nothing");
    }
}

#[test]
fn alternate_paths_are_honestly_unsupported() {
    let (mut node, mask) = in_init();
    let attr = QpAttr {
        state: Rtr,
        ..default_attr()
    };
    let refused = node.modify(&attr, mask | M::ALT_PATH);
    assert_eq!(
        refused,
        Err(ModifyError::Unsupported {
            attribute: M::ALT_PATH
        })
    );
}

#[test]
fn a_wrong_current_state_is_refused() {
    let (mut node, _) = in_init();
    let attr = QpAttr {
        state: Error,
        cur_state: Rts,
        ..default_attr()
    };
    let refused = node.modify(&attr, M::STATE | M::CUR_STATE);
    assert_eq!(
        refused,
        Err(ModifyError::WrongCurrentState {
            given: Rts,
            actual: Init
        })
    );
}

#[test]
fn messages_name_the_attribute_and_what_would_be_right() {
    let text = |from, to, mask| {
        check_modify(QpType::Rc, from, to, mask)
            .expect_err("refused")
            .to_string()
    };
    assert_eq!(
        text(Reset, Rts, M::STATE),
        "a QP cannot go from RESET to RTS; from RESET go to INIT"
    );
    assert_eq!(
        text(Reset, Init, M::STATE | M::PKEY_INDEX | M::ACCESS_FLAGS),
        "RESET to INIT needs PORT; set it and its mask bit"
    );
    assert_eq!(
        text(Rts, Sqd, M::STATE | M::TIMEOUT),
        "RTS to SQD does not permit TIMEOUT; permitted are STATE|EN_SQD_ASYNC_NOTIFY"
    );
    assert_eq!((M::PORT | M::from_bits(1 << 29)).to_string(), "PORT|0x20000000");
}
