//! Conformance scripts: what two QPs do, what becomes of their frames on the way, and what must come of it.
//!
//! `docs/conformance.md` describes the language. [`Script::parse`] reads one; [`play`] plays it against the state
//! machines in virtual time; the integration tests play those of [`Script::is_live`] against an appliance.

#![forbid(unsafe_code)]

mod link;
mod parse;
mod play;
mod script;
mod trace;

pub use parse::ScriptError;
pub use play::{play, play_with};
pub use script::{
    Amount, Attribute, Count, Done, Fault, FaultKind, FrameName, Heard, Line, Operation, Pick, Post, Queue,
    Rate, Recv, Script, Service, Side, Srq, content,
};

use std::path::PathBuf;

/// The scripts of this repository, in the order of their names.
///
/// # Panics
/// When the folder cannot be read.
pub fn scripts() -> Vec<PathBuf> {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts"));
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    paths
}
