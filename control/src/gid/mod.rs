//! GIDs: the addresses of a device, by which verbs name the local end of a path. They follow the configuration and,
//! where a port asks for it, the kernel interface behind the port.

mod apply;
mod manager;
mod table;

pub use apply::Sources;
pub use manager::{Found, GidManager};
pub use table::{GidHold, GidTable};
