//! Models of the protocols under loom, each with variants that lack one thing and must therefore fail:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p rnic-qsbr --test loom --release --target-dir target/loom
//! ```
//!
//! Objects are pointed to by relaxed accesses, so whatever order there is comes from the crate under test.
#![cfg(loom)]

mod destroy;
mod harness;
mod lookup;
mod retire;
mod snapshot;
mod view;
