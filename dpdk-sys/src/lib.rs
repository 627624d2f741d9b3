//! Bindings to DPDK: bindgen over libdpdk, and burst-level wrappers.
//!
//! [`ffi`] holds the raw bindings: a narrow selection of libdpdk, and shims (`dpdk_*`) for its inline
//! functions and macros. The rest of the crate is the layer other crates use; no DPDK structure
//! shows through it:
//!
//! - [`Eal`] is the token that DPDK is up in this process; everything else is made from it.
//! - [`Mempool`] hands out [`Mbuf`]s, which are owned and free themselves; [`Burst`] carries up to
//!   a fixed number of them without allocating.
//! - [`EthDev`] configures one port. The fast path is [`RxQueue`] and [`TxQueue`]: handles that move
//!   into the polling thread, so that the rule "one thread per queue" is kept by the type system.
//! - [`ring_pair`] makes two ports joined back to back, for tests and for running without a NIC.
//!
//! Ownership makes teardown safe in any order: a port stays open while one of its queue handles
//! lives, a pool lives as long as a port that receives into it, and [`Eal::cleanup`] refuses while
//! anything is left. Calls that configure take a lock and may block; they belong on a control
//! thread. Only the methods of queues, pools, bursts and buffers belong on a poll thread.

mod burst;
mod eal;
mod error;
mod hotplug;
mod interrupt;
mod mbuf;
mod mempool;
mod port;
mod qsbr;
mod removal;
mod ring;
mod shield;

/// The raw bindings, as generated from the installed headers.
pub mod ffi {
    #![allow(
        missing_docs,
        non_camel_case_types,
        non_snake_case,
        non_upper_case_globals,
        unnecessary_transmutes,
        clippy::all,
        clippy::undocumented_unsafe_blocks
    )]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use burst::{Burst, Drain};
pub use eal::{Eal, EalError, LogLevel, RegisteredThread, set_log_level, unprivileged_args};
pub use error::{Errno, Error};
pub use hotplug::{dev_probe, hotplug_add, hotplug_remove, vdev_init, vdev_uninit};
pub use mbuf::{Mbuf, MbufError};
pub use mempool::{AllocError, Mempool, PoolConfig};
pub use port::{Applied, DeviceInfo, EthDev, Link, PortConfig, Rss, RxQueue, Stats, TxQueue};
pub use qsbr::{RcuQsbr, RcuReader};
pub use removal::pretend_removal;
pub use ring::ring_pair;
