//! The control thread of `rnicd`: it serves verbs to clients, keeps track of what they own, reclaims it, pushes
//! events, resolves neighbours and answers `rnicctl`.
//!
//! One thread, one event loop ([`Control::run`]). A request that has to wait, for poll cores, a grace period, a
//! neighbour or memory being mapped, is a small state machine that the loop resumes; other clients do not notice.
//! What is destroyed is destroyed in one order, which `destroy` documents and follows.
#![forbid(unsafe_code)]

mod admin;
mod batch;
mod client;
mod client_record;
mod congestion;
mod control;
pub mod daemon;
mod destroy;
mod device;
mod dispatch;
mod event_loop;
mod events;
mod follow_up;
mod gid;
mod grace;
pub mod handover;
pub mod hotplug;
mod install;
mod leave;
pub mod lock_order;
mod machine;
mod mapper;
mod modify;
mod moment;
mod neighbour;
mod netlink;
mod notify;
mod objects;
mod ops;
mod paths;
mod placement;
mod poller;
pub mod ports;
mod quota;
mod refusal;
mod region_alloc;
pub mod registry;
mod request;
pub mod res;
pub mod restore;
mod route;
mod session;
mod session_record;
mod slowpath;
pub mod socket;
pub mod stall;
pub mod status;
pub(crate) mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod upkeep;

pub use admin::{AdminRequest, AdminResponse, request_line};
pub use control::{Control, Parts};
