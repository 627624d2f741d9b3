//! Scalar values as they are written in the file: sizes, times, chances, addresses.
//!
//! Each type parses from its text, prints back in the same form, and describes itself to the JSON
//! schema with a title and an example, from which error messages take their "expected …".

mod net;
mod units;

pub(crate) use net::station;
pub use net::{Address, DeviceName, MacAddr, PciAddress};
pub use units::{BitRate, ByteSize, Chance, SocketMode, TimeSpan};

/// Text that does not have the form its type asks for. Says what is wrong with it; the caller knows where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub(crate) String);

/// Why a value is refused, as `ValueError` from a format string.
macro_rules! bad {
    ($($arg:tt)*) => { $crate::value::ValueError(format!($($arg)*)) };
}
pub(crate) use bad;

/// Serde and JSON schema for a type written as one string: it has `FromStr` and `Display`.
macro_rules! written_as_string {
    ($type:ident, $title:literal, example: $example:literal) => {
        impl TryFrom<String> for $type {
            type Error = $crate::value::ValueError;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "title": $title, "examples": [$example] })
            }
        }
    };
}
pub(crate) use written_as_string;
