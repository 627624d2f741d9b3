//! Memory that clients can write: mapped once, touched only by raw copies and atomics (DESIGN I11); and the tables
//! of slots that all poll cores read.
mod addresses;
mod ah;
mod client_mem;
mod copy;
mod mcast;
mod mr;
mod mw;
mod shared_queue;
mod sigbus;
mod snapshot;

/// What [`snapshot`] is made of; its loom model has other ones.
mod primitive {
    pub use std::sync::atomic::{AtomicU64, Ordering, fence};
}

pub use addresses::{ADDRESSES, PortAddress, PortAddresses};
pub use ah::{AhEntry, AhError, AhTable};
pub use client_mem::{ClientMem, MapError, SharedU32, SharedU64, page_size};
pub(crate) use client_mem::{large_pages, small_pages};
pub(crate) use copy::copy_bytes;
pub use mcast::{Attachment, MAX_MCAST_QP_ATTACH, MAX_TOTAL_MCAST_QP_ATTACH, McastTable};
pub use mr::{MrDescriptor, MrRecord, MrTable, RemoteRange};
pub use mw::{Begun, Binding, By, WindowType};
pub(crate) use shared_queue::SharedQueue;
pub use sigbus::{FaultCell, install as install_sigbus_handler};
