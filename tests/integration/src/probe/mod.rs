//! Two client processes that move seeded data between them and check every byte: what `rnic-probe` does.
//!
//! Both sides know the [`Plan`], so each knows what the other sends, writes and reads. A plan is carried out at
//! one path MTU after another, with a QP for each, in rounds: post receives and fill memory; meet; post; wait for
//! completions; meet; compare all memory that the round could have touched, and the guards around it.
mod data;
mod peer;
mod plan;

pub use data::{Rng, Slot};
pub use peer::{check, cut, run};
pub use plan::{Message, Op, Plan};
use serde::{Deserialize, Serialize};

/// What a client saw. Grows from round to round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The device used.
    pub device: String,
    /// Our address.
    pub gid: String,
    /// Path MTUs at which the plan was carried out, in bytes.
    pub mtus: Vec<u32>,
    /// Rounds finished.
    pub rounds: u64,
    /// Operations of ours that completed, and of the peer's that were seen to be right.
    pub messages: u64,
    /// Bytes compared.
    pub bytes: u64,
}
