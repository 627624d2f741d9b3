//! What clients make.
mod numbers;
mod table;
pub use numbers::{Number, Numbers};
pub use table::{Busy, Id, IdKind, Key, Table};
