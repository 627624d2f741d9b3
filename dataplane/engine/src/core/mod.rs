//! A poll core: the loop, and what it owns.
mod command;
mod cq;
mod datagram;
mod deliver;
mod doorbell;
mod host;
mod idle;
mod port;
mod qp;
mod queue;
mod receive;
mod records;
mod run;
mod service;
mod shared;
mod short;
mod srq;
mod stretch;
mod timer;
mod transmit;

pub use cq::{CompletionQueue, CqInit};
pub use doorbell::ClientDoorbells;
pub use host::abi_cause;
pub use idle::Idle;
pub use port::PortPart;
pub use qp::{Qp, QpInit, Receives};
pub use queue::InitError;
pub(crate) use records::Found;
pub use records::{CORE_FILES, CoreArenas, NO_CLIENT};
pub use run::now as clock;
pub use shared::{CongestionCounters, CoreCounters, CoreStatus};
pub use srq::{Srq, SrqInit, XrcPart};
pub use timer::TimerWheel;

pub(crate) use run::{Core, CoreInit};
pub(crate) use shared::{COMMANDS, ControlWake, MESSAGES, Shared};
