//! The data path of `rnicd`: pinned poll cores that move frames between ports and the memory of clients.
//!
//! `ARCHITECTURE.md` in the repository walks one work request through the files of this crate.

pub mod arena;
pub mod command;
pub mod core;
pub mod engine;
pub mod frame;
mod grace;
pub mod mem;
pub mod nonblocking;
pub mod port;
mod quarantine;
pub mod retire;
pub mod view;
mod watch;

pub use engine::{
    AddPortError, CoreConfig, DrivenCore, Engine, EngineConfig, EngineImage, Inheritance, Limits, PORT_SLOTS,
    PortInfo, Rebuilt, Regions, ResumeError, StartError,
};
pub use grace::HeldUp;
pub use watch::STALLED_AFTER;
