//! Sets of extension headers.

/// A set of extension headers, those which follow the BTH.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct HeaderSet(u16);

#[allow(missing_docs)] // the names are the specification's
impl HeaderSet {
    pub const EMPTY: HeaderSet = HeaderSet(0);
    pub const XRCETH: HeaderSet = HeaderSet(1 << 0);
    pub const DETH: HeaderSet = HeaderSet(1 << 1);
    pub const FETH: HeaderSet = HeaderSet(1 << 2);
    pub const RETH: HeaderSet = HeaderSet(1 << 3);
    pub const ATOMIC: HeaderSet = HeaderSet(1 << 4);
    pub const AETH: HeaderSet = HeaderSet(1 << 5);
    pub const ATOMIC_ACK: HeaderSet = HeaderSet(1 << 6);
    pub const IMM: HeaderSet = HeaderSet(1 << 7);
    pub const IETH: HeaderSet = HeaderSet(1 << 8);
    /// The 16 reserved bytes of a CNP: zero when sent, ignored when received.
    pub const CNP_RESERVED: HeaderSet = HeaderSet(1 << 9);

    /// Bytes of each header, by bit number.
    const LENS: [u8; 10] = [4, 8, 4, 16, 28, 4, 8, 4, 4, 16];

    /// Each header and its name.
    pub(crate) const NAMED: [(HeaderSet, &'static str); 10] = [
        (HeaderSet::XRCETH, "XRCETH"),
        (HeaderSet::DETH, "DETH"),
        (HeaderSet::FETH, "FETH"),
        (HeaderSet::RETH, "RETH"),
        (HeaderSet::ATOMIC, "ATOMICETH"),
        (HeaderSet::AETH, "AETH"),
        (HeaderSet::ATOMIC_ACK, "ATOMICACKETH"),
        (HeaderSet::IMM, "IMMDT"),
        (HeaderSet::IETH, "IETH"),
        (HeaderSet::CNP_RESERVED, "reserved bytes"),
    ];

    /// The union of both sets.
    #[inline]
    pub const fn with(self, other: HeaderSet) -> HeaderSet {
        HeaderSet(self.0 | other.0)
    }

    /// Whether every header of `other` is in this set.
    #[inline]
    pub const fn contains(self, other: HeaderSet) -> bool {
        self.0 & other.0 == other.0
    }

    /// `self` when `present`, else the empty set.
    #[inline]
    pub(crate) const fn when(self, present: bool) -> HeaderSet {
        HeaderSet(self.0 * present as u16)
    }

    /// The set without `other`.
    #[inline]
    pub(crate) const fn without(self, other: HeaderSet) -> HeaderSet {
        HeaderSet(self.0 & !other.0)
    }

    /// Total bytes of the headers in the set.
    pub const fn len(self) -> usize {
        let mut sum = 0;
        let mut bit = 0;
        while bit < Self::LENS.len() {
            if self.0 & (1 << bit) != 0 {
                sum += Self::LENS[bit] as usize;
            }
            bit += 1;
        }
        sum
    }

    /// Whether the set is empty.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}
