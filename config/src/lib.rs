//! The YAML configuration of `rnicd`: schema, units, validation, samples, and the EAL arguments that follow from it.
//!
//! [`Config::load`] returns a configuration that passed every check, or a [`ConfigError`] whose `Display` lists
//! all findings as rustc would: what is wrong, file, line, column, key, and what would be right. Findings that do
//! not prevent the start are in [`Config::warnings`]. What can only be judged on the machine at hand is checked by
//! [`Config::check_against`].
//!
//! Strings may contain `${VAR}` or `${VAR:-default}`, where a default may contain further variables; an empty
//! variable counts as unset, and `$${` stands for `${` itself. A value with `${` must be quoted inside `{ }` or
//! `[ ]`. Numbers and truth values cannot come from variables.
//!
//! Everything here runs at start on the control thread and may block and allocate.
#![forbid(unsafe_code)]

mod check;
mod diagnostic;
mod eal;
mod expand;
mod locate;
mod machine;
mod parse;
mod ports;
pub mod samples;
mod schema;
mod structure;
mod value;

pub use diagnostic::{ConfigError, Diagnostic, KeyPath, Severity};
pub use eal::{eal_args, eal_args_on};
pub use machine::Machine;
pub use schema::*;
pub use value::{
    Address, BitRate, ByteSize, Chance, DeviceName, MacAddr, PciAddress, SocketMode, TimeSpan, ValueError,
};

/// The JSON schema of a configuration file, indented, with a newline at its end. For editors and
/// `rnicd --print-schema`.
pub fn print_schema() -> String {
    format!("{:#}\n", structure::schema())
}
