//! Sets of attributes.

use core::fmt;
use core::ops::BitOr;

/// A set of attributes: verbs' `IBV_QP_*` bits.
#[derive(Copy, Clone, Default, PartialEq, Eq, Hash)]
pub struct QpAttrMask(u32);

/// Names by bit number, as verbs has them; `FEATURES` is not verbs'.
const NAMES: [(u32, &str); 23] = [
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
    (30, "FEATURES"),
];

#[allow(missing_docs)] // the names are verbs', but for FEATURES
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
    pub const FEATURES: QpAttrMask = QpAttrMask(1 << 30);
}

impl QpAttrMask {
    /// The set of verbs' bits, known or not; [`crate::check_modify`] refuses unknown ones.
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

    pub(crate) const fn without(self, other: QpAttrMask) -> QpAttrMask {
        QpAttrMask(self.0 & !other.0)
    }

    /// The attribute of the lowest bit alone.
    pub(crate) const fn lowest(self) -> QpAttrMask {
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
