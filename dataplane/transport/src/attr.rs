//! Queue pair attributes and the modify table: which attributes each state transition needs and permits
//! (10.3.1, 11.2.5.2).

use crate::types::{Access, QpState, QpType};
use core::fmt;
use core::ops::BitOr;
use rnic_wire::{AckTimeout, Mtu, Psn, Qpn, RnrTimer};

/// READs and atomics a QP may have outstanding at most, in each direction.
pub const MAX_RD_ATOMIC: u8 = 16;

/// A set of attributes: verbs' `IBV_QP_*` bits.
#[derive(Copy, Clone, Default, PartialEq, Eq, Hash)]
pub struct QpAttrMask(u32);

/// Names by bit number, as verbs has them.
const NAMES: [(u32, &str); 22] = [
    (0, "STATE"),
    (1, "CUR_STATE"),
    (2, "EN_SQD_ASYNC_NOTIFY"),
    (3, "ACCESS_FLAGS"),
    (4, "PKEY_INDEX"),
    (5, "PORT"),
    (6, "QKEY"),
    (7, "AV"),
    (8, "PATH_MTU"),
    (9, "TIMEOUT"),
    (10, "RETRY_CNT"),
    (11, "RNR_RETRY"),
    (12, "RQ_PSN"),
    (13, "MAX_QP_RD_ATOMIC"),
    (14, "ALT_PATH"),
    (15, "MIN_RNR_TIMER"),
    (16, "SQ_PSN"),
    (17, "MAX_DEST_RD_ATOMIC"),
    (18, "PATH_MIG_STATE"),
    (19, "CAP"),
    (20, "DEST_QPN"),
    (25, "RATE_LIMIT"),
];

#[allow(missing_docs)] // the names are verbs'
impl QpAttrMask {
    pub const NONE: QpAttrMask = QpAttrMask(0);
    pub const STATE: QpAttrMask = QpAttrMask(1 << 0);
    pub const CUR_STATE: QpAttrMask = QpAttrMask(1 << 1);
    pub const EN_SQD_ASYNC_NOTIFY: QpAttrMask = QpAttrMask(1 << 2);
    pub const ACCESS_FLAGS: QpAttrMask = QpAttrMask(1 << 3);
    pub const PKEY_INDEX: QpAttrMask = QpAttrMask(1 << 4);
    pub const PORT: QpAttrMask = QpAttrMask(1 << 5);
    pub const QKEY: QpAttrMask = QpAttrMask(1 << 6);
    pub const AV: QpAttrMask = QpAttrMask(1 << 7);
    pub const PATH_MTU: QpAttrMask = QpAttrMask(1 << 8);
    pub const TIMEOUT: QpAttrMask = QpAttrMask(1 << 9);
    pub const RETRY_CNT: QpAttrMask = QpAttrMask(1 << 10);
    pub const RNR_RETRY: QpAttrMask = QpAttrMask(1 << 11);
    pub const RQ_PSN: QpAttrMask = QpAttrMask(1 << 12);
    pub const MAX_QP_RD_ATOMIC: QpAttrMask = QpAttrMask(1 << 13);
    pub const ALT_PATH: QpAttrMask = QpAttrMask(1 << 14);
    pub const MIN_RNR_TIMER: QpAttrMask = QpAttrMask(1 << 15);
    pub const SQ_PSN: QpAttrMask = QpAttrMask(1 << 16);
    pub const MAX_DEST_RD_ATOMIC: QpAttrMask = QpAttrMask(1 << 17);
    pub const PATH_MIG_STATE: QpAttrMask = QpAttrMask(1 << 18);
    pub const CAP: QpAttrMask = QpAttrMask(1 << 19);
    pub const DEST_QPN: QpAttrMask = QpAttrMask(1 << 20);
    pub const RATE_LIMIT: QpAttrMask = QpAttrMask(1 << 25);
}

impl QpAttrMask {
    /// The set of verbs' bits, known or not; [`check_modify`] refuses unknown ones.
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        QpAttrMask(bits)
    }

    /// Verbs' bits.
    #[inline]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether every attribute of `other` is in the set.
    #[inline]
    pub const fn contains(self, other: QpAttrMask) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: QpAttrMask) -> QpAttrMask {
        QpAttrMask(self.0 | other.0)
    }

    const fn without(self, other: QpAttrMask) -> QpAttrMask {
        QpAttrMask(self.0 & !other.0)
    }

    /// The attribute of the lowest bit alone.
    const fn lowest(self) -> QpAttrMask {
        QpAttrMask(self.0 & self.0.wrapping_neg())
    }
}

impl BitOr for QpAttrMask {
    type Output = QpAttrMask;

    fn bitor(self, other: QpAttrMask) -> QpAttrMask {
        self.union(other)
    }
}

/// "STATE|PORT"; bits without a name as a hexadecimal number.
impl fmt::Display for QpAttrMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut rest = self.0;
        let mut separator = "";
        for (bit, name) in NAMES {
            if rest & (1 << bit) != 0 {
                write!(f, "{separator}{name}")?;
                separator = "|";
                rest &= !(1 << bit);
            }
        }
        if rest != 0 {
            write!(f, "{separator}{rest:#x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for QpAttrMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QpAttrMask({self})")
    }
}

/// The attributes the transport knows. The address vector is the engine's: only its mask bit is seen here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct QpAttr {
    /// State.
    pub state: QpState,
    /// The state the caller believes the QP is in; checked when given.
    pub cur_state: QpState,
    /// Path MTU.
    pub path_mtu: Mtu,
    /// Queue key (UD).
    pub qkey: u32,
    /// First PSN expected from the peer, 24 bits.
    pub rq_psn: u32,
    /// First PSN sent, 24 bits.
    pub sq_psn: u32,
    /// The peer's QP, 24 bits.
    pub dest_qpn: u32,
    /// What the peer may do.
    pub access: Access,
    /// Index into the partition table; only 0, the default partition, exists.
    pub pkey_index: u16,
    /// Port, from 1.
    pub port: u8,
    /// Raise SQ_DRAINED when SQD has drained.
    pub sqd_async_notify: bool,
    /// READs this side may have outstanding, 0 to 16.
    pub max_rd_atomic: u8,
    /// READs the peer may have outstanding, 0 to 16.
    pub max_dest_rd_atomic: u8,
    /// Timer code sent in RNR NAKs, 0 to 31.
    pub min_rnr_timer: u8,
    /// Local ACK timeout code, 0 to 31; 0 disables the timer.
    pub timeout: u8,
    /// Retries without progress before the request fails, 0 to 7.
    pub retry_cnt: u8,
    /// RNR NAKs without progress before the request fails, 0 to 6; 7 means for ever.
    pub rnr_retry: u8,
    /// Query only: SQD has not drained yet.
    pub sq_draining: bool,
}

impl Default for QpAttr {
    fn default() -> Self {
        QpAttr {
            state: QpState::Reset,
            cur_state: QpState::Reset,
            path_mtu: Mtu::M256,
            qkey: 0,
            rq_psn: 0,
            sq_psn: 0,
            dest_qpn: 0,
            access: Access::NONE,
            pkey_index: 0,
            port: 0,
            sqd_async_notify: false,
            max_rd_atomic: 0,
            max_dest_rd_atomic: 0,
            min_rnr_timer: 0,
            timeout: 0,
            retry_cnt: 0,
            rnr_retry: 0,
            sq_draining: false,
        }
    }
}

/// Why a modify was refused. The QP is unchanged.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModifyError {
    /// No such transition for this type.
    #[error("a QP cannot go from {from} to {to}; {}", transition_hint(*.from))]
    IllegalTransition {
        /// State now.
        from: QpState,
        /// State asked for.
        to: QpState,
    },
    /// `cur_state` was given and is not the state.
    #[error("cur_state says {given} but the QP is in {actual}; query it and retry")]
    WrongCurrentState {
        /// What the caller said.
        given: QpState,
        /// What is.
        actual: QpState,
    },
    /// The transition needs an attribute which the mask lacks.
    #[error("{from} to {to} needs {attribute}; set it and its mask bit")]
    Missing {
        /// State now.
        from: QpState,
        /// State asked for.
        to: QpState,
        /// The first missing attribute.
        attribute: QpAttrMask,
    },
    /// The transition does not permit an attribute of the mask.
    #[error("{from} to {to} does not permit {attribute}; permitted are {permitted}")]
    NotAllowed {
        /// State now.
        from: QpState,
        /// State asked for.
        to: QpState,
        /// The first attribute not permitted.
        attribute: QpAttrMask,
        /// Everything the mask may hold.
        permitted: QpAttrMask,
    },
    /// A value is out of range.
    #[error("{attribute} is {value}; it must be {low} to {high}")]
    Invalid {
        /// The attribute.
        attribute: QpAttrMask,
        /// Its value.
        value: u32,
        /// Least legal value.
        low: u32,
        /// Greatest legal value.
        high: u32,
    },
    /// The attribute is known but not implemented.
    #[error("{attribute} is not supported: leave its mask bit clear")]
    Unsupported {
        /// The attribute.
        attribute: QpAttrMask,
    },
    /// Path attributes change only once SQD has drained (10.3.1.5).
    #[error("{attribute} can change only once the send queue has drained; wait for SQ_DRAINED")]
    NotDrained {
        /// The first attribute concerned.
        attribute: QpAttrMask,
    },
}

const fn transition_hint(from: QpState) -> &'static str {
    match from {
        QpState::Reset => "from RESET go to INIT",
        QpState::Init => "from INIT go to RTR, or modify within INIT",
        QpState::Rtr => "from RTR go to RTS",
        QpState::Rts => "from RTS go to SQD, or modify within RTS",
        QpState::Sqd => "from SQD go to RTS, or modify within SQD",
        QpState::Sqe => "from SQE go to RTS",
        QpState::Err => "from ERR go to RESET",
    }
}

/// Required and optional attributes of a transition; `None` when there is no such transition.
const fn row(qp_type: QpType, from: QpState, to: QpState) -> Option<(QpAttrMask, QpAttrMask)> {
    use QpAttrMask as M;
    use QpState::{Err, Init, Reset, Rtr, Rts, Sqd, Sqe};
    use QpType::{Rc, Uc, Ud};
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
            M::ALT_PATH.union(M::ACCESS_FLAGS).union(M::PKEY_INDEX),
        ),
        (Uc, Init, Rtr) => (connected, M::ALT_PATH.union(M::ACCESS_FLAGS).union(M::PKEY_INDEX)),
        (Ud, Init, Rtr) => (M::NONE, M::PKEY_INDEX.union(M::QKEY)),
        (Rc, Rtr, Rts) => (M::SQ_PSN.union(retry), live.union(M::MIN_RNR_TIMER)),
        (Uc, Rtr, Rts) => (M::SQ_PSN, live),
        (Ud, Rtr, Rts) => (M::SQ_PSN, M::CUR_STATE.union(M::QKEY)),
        (Rc, Rts | Sqd, Rts) => (M::NONE, live.union(M::MIN_RNR_TIMER)),
        (Uc, Rts | Sqd, Rts) => (M::NONE, live),
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

/// Checks the values of the attributes in `mask`.
pub(crate) fn check_values(attr: &QpAttr, mask: QpAttrMask) -> Result<(), ModifyError> {
    use QpAttrMask as M;
    for attribute in [M::ALT_PATH, M::PATH_MIG_STATE] {
        if mask.contains(attribute) {
            return Err(ModifyError::Unsupported { attribute });
        }
    }
    let ranges = [
        (M::RQ_PSN, attr.rq_psn, 0, Psn::MAX.get()),
        (M::SQ_PSN, attr.sq_psn, 0, Psn::MAX.get()),
        (M::DEST_QPN, attr.dest_qpn, 0, Qpn::MULTICAST.get()),
        (M::PKEY_INDEX, u32::from(attr.pkey_index), 0, 0),
        (M::PORT, u32::from(attr.port), 1, 255),
        (
            M::MAX_QP_RD_ATOMIC,
            u32::from(attr.max_rd_atomic),
            0,
            u32::from(MAX_RD_ATOMIC),
        ),
        (
            M::MAX_DEST_RD_ATOMIC,
            u32::from(attr.max_dest_rd_atomic),
            0,
            u32::from(MAX_RD_ATOMIC),
        ),
        (M::MIN_RNR_TIMER, u32::from(attr.min_rnr_timer), 0, 31),
        (M::TIMEOUT, u32::from(attr.timeout), 0, 31),
        (M::RETRY_CNT, u32::from(attr.retry_cnt), 0, 7),
        (M::RNR_RETRY, u32::from(attr.rnr_retry), 0, 7),
    ];
    for (attribute, value, low, high) in ranges {
        if mask.contains(attribute) && !(low..=high).contains(&value) {
            return Err(ModifyError::Invalid {
                attribute,
                value,
                low,
                high,
            });
        }
    }
    Ok(())
}

/// The attributes a QP keeps, in the form the packet paths use.
#[derive(Copy, Clone, Debug)]
#[repr(C)]
pub(crate) struct Attrs {
    pub timeout: AckTimeout,
    pub min_rnr_timer: RnrTimer,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub port: u8,
    pub sqd_async_notify: bool,
    pub pkey_index: u16,
    pub access: Access,
    pub mtu: Mtu,
    pub qkey: u32,
    pub rq_psn: Psn,
    pub sq_psn: Psn,
}

impl Attrs {
    pub const fn new() -> Self {
        Attrs {
            timeout: AckTimeout::new(0),
            min_rnr_timer: RnrTimer::new(0),
            retry_cnt: 0,
            rnr_retry: 0,
            max_rd_atomic: 0,
            max_dest_rd_atomic: 0,
            port: 0,
            sqd_async_notify: false,
            pkey_index: 0,
            access: Access::NONE,
            mtu: Mtu::M256,
            qkey: 0,
            rq_psn: Psn::ZERO,
            sq_psn: Psn::ZERO,
        }
    }

    /// Takes over the masked attributes, already checked.
    pub fn apply(&mut self, attr: &QpAttr, mask: QpAttrMask) {
        use QpAttrMask as M;
        macro_rules! take {
            ($($bit:ident: $field:ident = $value:expr;)*) => {
                $(if mask.contains(M::$bit) { self.$field = $value; })*
            };
        }
        take! {
            TIMEOUT: timeout = AckTimeout::new(attr.timeout);
            MIN_RNR_TIMER: min_rnr_timer = RnrTimer::new(attr.min_rnr_timer);
            RETRY_CNT: retry_cnt = attr.retry_cnt;
            RNR_RETRY: rnr_retry = attr.rnr_retry;
            MAX_QP_RD_ATOMIC: max_rd_atomic = attr.max_rd_atomic;
            MAX_DEST_RD_ATOMIC: max_dest_rd_atomic = attr.max_dest_rd_atomic;
            PORT: port = attr.port;
            EN_SQD_ASYNC_NOTIFY: sqd_async_notify = attr.sqd_async_notify;
            PKEY_INDEX: pkey_index = attr.pkey_index;
            ACCESS_FLAGS: access = attr.access;
            PATH_MTU: mtu = attr.path_mtu;
            QKEY: qkey = attr.qkey;
            RQ_PSN: rq_psn = Psn::new(attr.rq_psn);
            SQ_PSN: sq_psn = Psn::new(attr.sq_psn);
        }
    }
}
