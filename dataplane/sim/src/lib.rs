//! A seeded network in virtual time, joining two queue pairs of `rnic-transport`. For tests only.
//!
//! - [`Node`] is one QP with a host made of plain vectors: named tests move its packets by hand.
//! - [`Network`] loses, duplicates, delays and reorders packets as its [`Faults`] say. A corrupted packet is
//!   a lost one: its ICRC does not match.
//! - [`Scenario`] is everything one seed decides; [`run`] plays it and checks what must hold under any
//!   schedule: data arrives exactly once, in order and byte-identical, completions come exactly once and in
//!   order with the right status, or the QP ends in error with the right status; and nothing hangs. It is of RC or of XRC.
//!
//! - [`Unreliable`] is the same for UC and UD, where messages may be lost, but nothing else may happen to them.
//!
//! - [`Shared`] are several connections whose receivers share an SRQ, with one that may fail.
//! - [`Flows`] are many QPs through one [`Bottleneck`]: a port that marks, overflows and loses.
//!
//! The same seed gives the same run, on every machine.

#![forbid(unsafe_code)]

mod bottleneck;
mod check;
mod memory;
mod network;
mod node;
mod operation;
mod rng;
mod run;
mod scenario;
mod shared;
mod unreliable;
mod watch;
mod window;

pub use bottleneck::{Bottleneck, Flows, Traffic, jain};
pub use memory::{Effect, Region, SimHost, SimSrq, Window};
pub use network::{Faults, Network};
pub use node::{GRH_BYTE, Node, Packet, QKEY, connect, connect_as, connect_at, connect_xrc, default_attr};
pub use operation::MIX;
pub use rng::Rng;
pub use run::{Outcome, run, run_with};
pub use scenario::{Injected, Op, Plan, Recv, Scenario};
pub use shared::{Shared, SharedTally};
pub use unreliable::{Tally, Unreliable};
