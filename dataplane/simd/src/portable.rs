//! Sixteen tables, sixteen bytes per step.

use crate::polynomial::byte_remainder;
use crate::shared::read_once;

/// `TABLES[k][b]` is the register left by byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 16] = {
    let mut tables = [[0; 256]; 16];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte_remainder(byte as u8);
        let mut k = 0;
        while k < 16 {
            tables[k][byte] = value;
            value = value >> 8 ^ byte_remainder(value as u8);
            k += 1;
        }
        byte += 1;
    }
    tables
};

fn crc(mut state: u32, bytes: &[u8]) -> u32 {
    let (blocks, tail) = bytes.as_chunks::<16>();
    for block in blocks {
        let mut block = *block;
        for (byte, register) in block.iter_mut().zip(state.to_le_bytes()) {
            *byte ^= register;
        }
        state = (0..16).fold(0, |sum, at| sum ^ TABLES[15 - at][usize::from(block[at])]);
    }
    tail.iter().fold(state, |state, byte| {
        state >> 8 ^ TABLES[0][usize::from(state as u8 ^ byte)]
    })
}

/// # Safety
/// `src` is readable for `len` bytes, which nobody writes meanwhile.
pub(crate) unsafe fn update(state: u32, src: *const u8, len: usize) -> u32 {
    // SAFETY: the caller's promise.
    crc(state, unsafe { std::slice::from_raw_parts(src, len) })
}

/// # Safety
/// As [`Crc::copy_crc_raw`](crate::Crc::copy_crc_raw).
pub(crate) unsafe fn copy_crc(mut state: u32, dst: *mut u8, src: *const u8, len: usize) -> u32 {
    // By way of memory of our own: `src` may change between two reads of it.
    let mut own = [0; 512];
    let mut done = 0;
    while done < len {
        let part = &mut own[..(len - done).min(512)];
        // SAFETY: `done + part.len() <= len`, so the range is the caller's.
        unsafe { read_once(part, src.add(done)) };
        state = crc(state, part);
        // SAFETY: as above, and `own` does not overlap it.
        unsafe { dst.add(done).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
        done += part.len();
    }
    state
}
