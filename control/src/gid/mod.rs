//! GIDs: the addresses of a device, by which verbs name the local end of a path.

mod table;

pub use table::{GidHold, GidTable};
