//! What the benchmarks of this package share, beside [`rnic_bench`]: a client below the library, bare round trips, random
//! numbers.
//!
//! Each binary prints one JSON object a line, with the keys its page names and no others. Phases that are compared
//! are interleaved in one run, since the machine's speed drifts.
mod client;
pub mod echo;
mod random;

pub use client::{Client, Qp};
pub use echo::Echo;
pub use random::Random;
