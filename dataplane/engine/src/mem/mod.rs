//! Memory that clients can write: mapped once, touched only by raw copies and atomics (DESIGN I11).
mod client_mem;
mod mr;
mod sigbus;

pub use client_mem::{ClientMem, MapError, SharedU32, SharedU64};
pub use mr::{MrDescriptor, MrRecord, MrTable, RemoteRange};
pub use sigbus::{FaultCell, install as install_sigbus_handler};
