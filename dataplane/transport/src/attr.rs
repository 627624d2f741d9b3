//! Queue pair attributes, their ranges, and why a change of them is refused (11.2.5.2).

use crate::attr_mask::QpAttrMask;
use crate::record::record;
use crate::types::{Access, QpState};
use rnic_wire::{AckTimeout, Mtu, Psn, Qpn, RnrTimer};

/// READs and atomics a QP may have outstanding at most, in each direction.
pub const MAX_RD_ATOMIC: u8 = 16;

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
    /// State of automatic path migration: [`MIGRATED`], since a QP has one path only.
    pub path_mig_state: u8,
    /// Query only: SQD has not drained yet.
    pub sq_draining: bool,
    /// Lost packets of WRITEs are sent again, and those behind them not: both ends have agreed on it (RC, FEATURES).
    pub selective: bool,
}

/// Value of [`QpAttr::path_mig_state`]: the path in use is the only one (17.2.8.1). Others have the QP fall back on an
/// alternate path.
pub const MIGRATED: u8 = 0;
/// The last value there is: armed.
const MIG_ARMED: u8 = 2;

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
            path_mig_state: MIGRATED,
            sq_draining: false,
            selective: false,
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
    /// The attribute, or any other value of it than the one it has, is known but not implemented.
    #[error("{attribute} is not supported: {}", unsupported_hint(*.attribute))]
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

const fn unsupported_hint(attribute: QpAttrMask) -> &'static str {
    match attribute {
        QpAttrMask::ALT_PATH => "a QP has no second path to migrate to; leave its mask bit clear",
        QpAttrMask::PATH_MIG_STATE => "without an alternate path it is always MIGRATED (0)",
        _ => "leave its mask bit clear",
    }
}

/// Checks the values of the attributes in `mask`.
pub(crate) fn check_values(attr: &QpAttr, mask: QpAttrMask) -> Result<(), ModifyError> {
    use QpAttrMask as M;
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
        (
            M::PATH_MIG_STATE,
            u32::from(attr.path_mig_state),
            0,
            u32::from(MIG_ARMED),
        ),
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
    // What would need a second path is refused last: what else is wrong can be put right.
    for (attribute, asked) in [
        (M::ALT_PATH, true),
        (M::PATH_MIG_STATE, attr.path_mig_state != MIGRATED),
    ] {
        if mask.contains(attribute) && asked {
            return Err(ModifyError::Unsupported { attribute });
        }
    }
    Ok(())
}

record! {
    /// The attributes a QP keeps, in the form the packet paths use.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Attrs {
        pub timeout: AckTimeout,
        pub min_rnr_timer: RnrTimer,
        pub retry_cnt: u8,
        pub rnr_retry: u8,
        pub max_rd_atomic: u8,
        pub max_dest_rd_atomic: u8,
        pub port: u8,
        pub sqd_async_notify: bool,
        pub selective: bool,
        pub pkey_index: u16,
        pub access: Access,
        pub mtu: Mtu,
        pub qkey: u32,
        pub rq_psn: Psn,
        pub sq_psn: Psn,
    }
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
            selective: false,
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
            FEATURES: selective = attr.selective;
            PKEY_INDEX: pkey_index = attr.pkey_index;
            ACCESS_FLAGS: access = attr.access;
            PATH_MTU: mtu = attr.path_mtu;
            QKEY: qkey = attr.qkey;
            RQ_PSN: rq_psn = Psn::new(attr.rq_psn);
            SQ_PSN: sq_psn = Psn::new(attr.sq_psn);
        }
    }
}
