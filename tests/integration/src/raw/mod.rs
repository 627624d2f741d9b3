//! The control protocol and the shared memory by hand: what a client can do that does not use the library, or
//! means harm.
mod line;
mod memory;
mod verbs;

pub use line::{Line, Reply, header};
pub use memory::{Memory, anonymous, memfd, punch};
pub use verbs::{QueuePair, Verbs, Words, ipv4_gid, pair, rts, write};
