//! Plain records: state that may lie in an arena and outlive the process that wrote it.
//!
//! A record is `repr(C)`, of fixed width, and holds no pointer. Whoever finds its bytes in a dump trusts none of
//! them: [`Record::invalid`] tells whether they are values of their types (an enum of no known number, a `bool` of
//! 7), and each record's own check whether the values go together.

use core::fmt;

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

/// Fields within fields, at most.
const DEPTH: usize = 4;

/// The way to a field: `req.failed_status`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPath {
    /// Outermost last.
    names: [&'static str; DEPTH],
    len: usize,
}

impl FieldPath {
    /// The record itself.
    pub const HERE: FieldPath = FieldPath {
        names: [""; DEPTH],
        len: 0,
    };

    /// The same seen from the record that has it as `field`. Beyond the depth there is room for, the outermost
    /// name replaces the one before.
    #[must_use]
    pub fn within(mut self, field: &'static str) -> Self {
        self.len = (self.len + 1).min(DEPTH);
        if let Some(name) = self.names.get_mut(self.len - 1) {
            *name = field;
        }
        self
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut dot = "";
        for name in self.names.iter().take(self.len).rev() {
            write!(f, "{dot}{name}")?;
            dot = ".";
        }
        Ok(())
    }
}

/// A field whose value is one of its type, but cannot be.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value:#x}; it must be {must}")]
pub struct BadField {
    /// Which.
    pub field: &'static str,
    /// What it holds.
    pub value: u64,
    /// What would be right.
    pub must: &'static str,
}

impl BadField {
    /// An error unless `good`.
    pub fn unless(
        good: bool,
        field: &'static str,
        value: impl Into<u64>,
        must: &'static str,
    ) -> Result<(), BadField> {
        if good {
            return Ok(());
        }
        Err(BadField {
            field,
            value: value.into(),
            must,
        })
    }
}

/// State that can be read back from bytes nobody vouches for.
pub trait Record: TryFromBytes + KnownLayout + Immutable {
    /// The first field whose bytes are no value of its type; `None` when all are. `bytes` is as long as the record.
    fn invalid(bytes: &[u8]) -> Option<FieldPath>;
}

impl<T: Record, const N: usize> Record for [T; N] {
    fn invalid(bytes: &[u8]) -> Option<FieldPath> {
        bytes.chunks(size_of::<T>().max(1)).find_map(T::invalid)
    }
}

/// Types that are a field by themselves.
macro_rules! leaf {
    ($($ty:ty),* $(,)?) => {$(
        impl Record for $ty {
            fn invalid(bytes: &[u8]) -> Option<FieldPath> {
                <$ty as TryFromBytes>::try_read_from_bytes(bytes).is_err().then_some(FieldPath::HERE)
            }
        }
    )*};
}

leaf! {
    u8, u16, u32, u64, bool,
    rnic_wire::Psn, rnic_wire::Mtu, rnic_wire::RnrTimer, rnic_wire::AckTimeout, rnic_wire::MessageKind, rnic_wire::PsnSet,
    crate::Time, crate::QpState, crate::QpType, crate::Access, crate::WcStatus, crate::Check, crate::WrOpcode, crate::SendFlags,
    crate::responder::Answer, crate::congestion::Algorithm, crate::congestion::Pace,
}

/// Declares a record: the structure, `repr(C)`, and its [`Record`]. Types of fields are records themselves.
/// Crates that use it depend on `zerocopy`.
#[macro_export]
macro_rules! record {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $ty:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(::zerocopy::TryFromBytes, ::zerocopy::KnownLayout, ::zerocopy::Immutable)]
        #[repr(C)]
        $vis struct $name {
            $($(#[$field_meta])* $field_vis $field: $ty,)*
        }

        impl $crate::Record for $name {
            fn invalid(bytes: &[u8]) -> ::core::option::Option<$crate::FieldPath> {
                $(
                    let at = ::core::mem::offset_of!($name, $field);
                    let invalid = match bytes.get(at..at + ::core::mem::size_of::<$ty>()) {
                        Some(part) => <$ty as $crate::Record>::invalid(part),
                        None => Some($crate::FieldPath::HERE),
                    };
                    if let Some(inner) = invalid {
                        return Some(inner.within(stringify!($field)));
                    }
                )*
                None
            }
        }
    };
}

pub(crate) use record;

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    record! {
        struct Inner {
            number: u16,
            state: crate::QpState,
            flag: bool,
        }
    }

    record! {
        struct Outer {
            first: u32,
            inner: [Inner; 2],
        }
    }

    #[test]
    fn the_field_whose_bytes_are_no_value_is_named() {
        let mut bytes = [0u8; size_of::<Outer>()];
        assert_eq!(Outer::invalid(&bytes), None);
        bytes[4 + 4 + 3] = 2;
        assert_eq!(std::format!("{}", Outer::invalid(&bytes).unwrap()), "inner.flag");
        bytes[4 + 2] = 9;
        assert_eq!(std::format!("{}", Outer::invalid(&bytes).unwrap()), "inner.state");
        assert_eq!(std::format!("{}", Outer::invalid(&bytes[..6]).unwrap()), "inner");
    }
}
