//! The classic pcap format, as far as tests need it: little-endian, microseconds, Ethernet.

use std::path::Path;

const MAGIC: u32 = 0xA1B2_C3D4;
const LINKTYPE_ETHERNET: u32 = 1;

/// The frames of a capture file.
pub fn read(path: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), MAGIC, "{} is no little-endian pcap file", path.display());
    assert_eq!(
        word(20),
        LINKTYPE_ETHERNET,
        "{} does not hold Ethernet frames",
        path.display()
    );
    let mut frames = Vec::new();
    let mut at = 24;
    while at < file.len() {
        let (captured, original) = (word(at + 8) as usize, word(at + 12) as usize);
        assert_eq!(captured, original, "{} holds cut frames", path.display());
        frames.push(file[at + 16..at + 16 + captured].to_vec());
        at += 16 + captured;
    }
    frames
}

/// Writes frames one microsecond apart.
pub fn write(path: &Path, frames: &[Vec<u8>]) {
    let mut file = Vec::new();
    for word in [MAGIC, 2 | 4 << 16, 0, 0, 65_535, LINKTYPE_ETHERNET] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for (i, frame) in frames.iter().enumerate() {
        for word in [0, i as u32, frame.len() as u32, frame.len() as u32] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(frame);
    }
    std::fs::write(path, file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
