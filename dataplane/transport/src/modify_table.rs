//! The modify table: which attributes each state transition needs and permits (10.3.1, 11.2.5.2).

use crate::attr::ModifyError;
use crate::attr_mask::QpAttrMask;
use crate::types::{QpState, QpType};

/// Required and optional attributes of a transition; `None` when there is no such transition.
const fn row(qp_type: QpType, from: QpState, to: QpState) -> Option<(QpAttrMask, QpAttrMask)> {
    use QpAttrMask as M;
    use QpState::{Err, Init, Reset, Rtr, Rts, Sqd, Sqe};
    use QpType::{Rc, Uc, Ud, XrcIni, XrcTgt};
    let path = M::ALT_PATH.union(M::PATH_MIG_STATE);
    let setup = M::PKEY_INDEX.union(M::PORT);
    let connected = M::AV.union(M::PATH_MTU).union(M::DEST_QPN).union(M::RQ_PSN);
    let live = M::CUR_STATE.union(M::ACCESS_FLAGS).union(path);
    let retry = M::TIMEOUT
        .union(M::RETRY_CNT)
        .union(M::RNR_RETRY)
        .union(M::MAX_QP_RD_ATOMIC);
    Some(match (qp_type, from, to) {
        (_, _, Reset | Err) => (M::NONE, M::NONE),
        (Ud, Reset, Init) => (setup.union(M::QKEY), M::NONE),
        (_, Reset, Init) => (setup.union(M::ACCESS_FLAGS), M::NONE),
        (Ud, Init, Init) => (M::NONE, setup.union(M::QKEY)),
        (_, Init, Init) => (M::NONE, setup.union(M::ACCESS_FLAGS)),
        (Rc, Init, Rtr) => (
            connected.union(M::MAX_DEST_RD_ATOMIC).union(M::MIN_RNR_TIMER),
            M::ALT_PATH
                .union(M::ACCESS_FLAGS)
                .union(M::PKEY_INDEX)
                .union(M::FEATURES),
        ),
        (XrcTgt, Init, Rtr) => (
            connected.union(M::MAX_DEST_RD_ATOMIC).union(M::MIN_RNR_TIMER),
            M::ALT_PATH.union(M::ACCESS_FLAGS).union(M::PKEY_INDEX),
        ),
        (Uc | XrcIni, Init, Rtr) => (connected, M::ALT_PATH.union(M::ACCESS_FLAGS).union(M::PKEY_INDEX)),
        (Ud, Init, Rtr) => (M::NONE, M::PKEY_INDEX.union(M::QKEY)),
        (Rc, Rtr, Rts) => (M::SQ_PSN.union(retry), live.union(M::MIN_RNR_TIMER)),
        (XrcIni, Rtr, Rts) => (M::SQ_PSN.union(retry), live),
        (XrcTgt, Rtr, Rts) => (M::SQ_PSN.union(M::TIMEOUT), live.union(M::MIN_RNR_TIMER)),
        (Uc, Rtr, Rts) => (M::SQ_PSN, live),
        (Ud, Rtr, Rts) => (M::SQ_PSN, M::CUR_STATE.union(M::QKEY)),
        (Rc | XrcTgt, Rts | Sqd, Rts) => (M::NONE, live.union(M::MIN_RNR_TIMER)),
        (Uc | XrcIni, Rts | Sqd, Rts) => (M::NONE, live),
        (Ud, Rts | Sqd | Sqe, Rts) => (M::NONE, M::CUR_STATE.union(M::QKEY)),
        (Uc, Sqe, Rts) => (M::NONE, M::CUR_STATE.union(M::ACCESS_FLAGS)),
        (_, Rts, Sqd) => (M::NONE, M::EN_SQD_ASYNC_NOTIFY),
        (Rc, Sqd, Sqd) => (
            M::NONE,
            setup
                .union(M::AV)
                .union(retry)
                .union(path)
                .union(M::ACCESS_FLAGS)
                .union(M::MIN_RNR_TIMER)
                .union(M::MAX_DEST_RD_ATOMIC),
        ),
        (XrcIni, Sqd, Sqd) => (
            M::NONE,
            setup.union(M::AV).union(retry).union(path).union(M::ACCESS_FLAGS),
        ),
        (XrcTgt, Sqd, Sqd) => (
            M::NONE,
            setup
                .union(M::AV)
                .union(M::TIMEOUT)
                .union(path)
                .union(M::ACCESS_FLAGS)
                .union(M::MIN_RNR_TIMER)
                .union(M::MAX_DEST_RD_ATOMIC),
        ),
        (Uc, Sqd, Sqd) => (
            M::NONE,
            M::AV.union(path).union(M::ACCESS_FLAGS).union(M::PKEY_INDEX),
        ),
        (Ud, Sqd, Sqd) => (M::NONE, M::PKEY_INDEX.union(M::QKEY)),
        _ => return None,
    })
}

/// Checks a transition and its mask against the specification's table (11.2.5.2), values not looked at.
///
/// `STATE` itself is always permitted; every other bit must be required or optional for the transition.
pub fn check_modify(
    qp_type: QpType,
    current: QpState,
    next: QpState,
    mask: QpAttrMask,
) -> Result<(), ModifyError> {
    let (from, to) = (current, next);
    let Some((required, optional)) = row(qp_type, from, to) else {
        return Err(ModifyError::IllegalTransition { from, to });
    };
    let missing = required.without(mask);
    if !missing.is_empty() {
        return Err(ModifyError::Missing {
            from,
            to,
            attribute: missing.lowest(),
        });
    }
    let permitted = required | optional | QpAttrMask::STATE;
    let extra = mask.without(permitted);
    if !extra.is_empty() {
        return Err(ModifyError::NotAllowed {
            from,
            to,
            attribute: extra.lowest(),
            permitted,
        });
    }
    Ok(())
}
