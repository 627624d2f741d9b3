//! Helpers of the wire tests. Other packages' tests may include this folder by path.
#![allow(dead_code)] // each test binary uses its own part

pub mod pcap;
pub mod samples;
pub mod tshark;

use std::path::PathBuf;

/// The captures between two Linux hosts, as (file name, frames), in alphabetical order.
pub fn captures() -> Vec<(String, Vec<Vec<u8>>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/captures");
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == "pcap"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no captures in {}", dir.display());
    paths
        .into_iter()
        .map(|p| (p.file_name().unwrap().to_string_lossy().into(), pcap::read(&p)))
        .collect()
}

/// Every captured frame with a name for messages.
pub fn captured_frames() -> Vec<(String, Vec<u8>)> {
    captures()
        .into_iter()
        .flat_map(|(file, frames)| {
            frames
                .into_iter()
                .enumerate()
                .map(move |(i, frame)| (format!("{file} frame {}", i + 1), frame))
        })
        .collect()
}
