//! The operations that every small set of verbs' bits has.

/// Gives a tuple struct over an unsigned integer, `u8` unless it says so, the operations of a set of bits.
macro_rules! bit_set {
    ($name:ident) => {
        bit_set!($name: u8);
    };
    ($name:ident: $bits:ty) => {
        impl $name {
            /// The bits, as verbs has them.
            #[inline]
            pub const fn bits(self) -> $bits {
                self.0
            }

            /// Whether every member of `other` is included.
            #[inline]
            pub const fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }

            /// Both sets together.
            #[inline]
            #[must_use]
            pub const fn union(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
        }
    };
    ($name:ident, all: $all:literal) => {
        bit_set!($name: u8, all: $all);
    };
    ($name:ident: $bits:ty, all: $all:literal) => {
        bit_set!($name: $bits);

        impl $name {
            /// The set of verbs' bits; `None` when a bit is set which means nothing here.
            pub const fn from_bits(bits: u32) -> Option<Self> {
                if bits & !$all == 0 {
                    Some($name(bits as $bits))
                } else {
                    None
                }
            }
        }
    };
}

pub(crate) use bit_set;
