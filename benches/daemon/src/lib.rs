//! What the programs of this package share: two QPs of one process, connected through a daemon, and a load on them.
mod pair;
pub mod syscalls;

pub use pair::{End, Load, Pair, Progress};

use std::path::PathBuf;

use anyhow::Context as _;

/// A program that was built into the same folder as this one.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    path.exists()
        .then_some(path)
        .with_context(|| format!("{name} is not beside this program; build it first"))
}
