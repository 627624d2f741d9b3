//! The native Rust client library of `rnicd`: verbs over shared memory, without `unsafe` in the application.
//!
//! ```no_run
//! use rnic::{Access, ConnectOptions, Context, QpConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::open(rnic::default_socket(), "rnic0")?;
//! let pd = context.alloc_pd()?;
//! let cq = context.create_cq(256)?;
//! let qp = pd.create_qp(QpConfig::new(&cq, &cq))?;
//! let buffer = pd.alloc_mr(4096, Access::LOCAL_WRITE)?;
//!
//! // Tell the peer who we are, learn who it is, connect.
//! let options = ConnectOptions::default();
//! let mut exchange = rnic::exchange::connect("server:18515", None)?;
//! let peer = exchange.swap(&qp.endpoint(&options)?)?;
//! qp.connect(&peer, &options)?;
//!
//! buffer.write_at(0, b"hello");
//! qp.post(|batch| {
//!     batch.send(buffer.slice(..5)).wr_id(7).signaled();
//! })?;
//! for completion in cq.wait_vec(16, None)? {
//!     completion.ok()?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Memory
//!
//! Registered memory lives in a sealed memfd that the library makes, maps and shares with the daemon
//! ([`Mr`]). A peer may write it at any time, and the daemon does so on a peer's behalf, hence no reference to
//! it ever exists: it is read and written by *copying* ([`MrSlice::read_at`], [`MrSlice::write_at`]) or by
//! single atomic words. There is therefore nothing that could be aliased, mutably or otherwise, while an operation is in
//! flight; what a program that writes a buffer too early gets is old or new bytes, as on hardware, and never
//! undefined behaviour. The alternative, handles that are moved into an operation and come back with its
//! completion, was rejected: it forbids the ordinary cases of one buffer in many operations (broadcast, a table
//! that serves READs) and does not protect against the peer, which is the one who writes.
//!
//! An operation posted to a queue keeps the regions it names registered and mapped until it completes (or
//! its QP is destroyed), whatever the application drops meanwhile: each work queue has a table, allocated with
//! the queue, with a reference for every entry in flight. An unsignalled operation is released by the next
//! completion of its queue.
//!
//! # Threads
//!
//! Every type is `Send` and `Sync`. The library serialises what verbs require to be serialised: each side of a
//! QP and each CQ has a lock of its own, and posting never waits for polling or the reverse.
//!
//! # Errors of the daemon
//!
//! A refused request is [`Error::Daemon`] with the errno and the daemon's own words. When the daemon is gone,
//! requests and waits return [`Error::Disconnected`].
#![deny(unsafe_code)]

mod access;
mod ah;
mod batch;
mod cause;
mod channel;
mod completion;
mod connect;
mod context;
mod control;
mod cq;
mod error;
mod event;
pub mod exchange;
mod gid;
mod mr;
mod mw;
mod pd;
mod qp;
mod qp_attr;
mod qp_config;
mod queue;
mod session;
#[allow(unsafe_code)]
mod shm;
mod srq;
mod wake;
mod xrc;

pub use access::{Access, Mtu, PortState, QpState, QpType};
pub use ah::{AddressVector, Ah, AhAttr, MacAddr};
pub use batch::{Batch, RecvBatch, Wr, op};
pub use cause::Cause;
pub use channel::CompChannel;
pub use completion::{Completion, CompletionError, Opcode, Status};
pub use connect::{ConnectOptions, Endpoint};
pub use context::{Context, DeviceAttr, PortAttr, default_socket, devices};
pub use cq::{Arm, Cq, CqAttr};
pub use error::{Error, Result};
pub use event::{AsyncEvent, AsyncEvents, EventKind, EventObject};
pub use gid::{Gid, GidEntry};
pub use mr::{Mr, MrSlice, RemoteAddr, RemoteMr};
pub use mw::{MemoryWindow, WindowType};
pub use pd::Pd;
pub use qp::Qp;
pub use qp_attr::{QpAttr, QpChange, QpInitAttr};
pub use qp_config::QpConfig;
pub use srq::{Srq, SrqAttr, SrqBatch, SrqRecv};
pub use xrc::{TargetQp, Xrcd, XrcdOpen};
