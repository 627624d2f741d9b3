//! What the payload of a WRITE or SEND costs in any case: it is copied into a frame and summed, summed again where it arrives,
//! and copied out of it. The same over the same buffers, and nothing around it.
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rnic_engine::mem::ClientMem;
use rnic_simd::Crc;
use rnic_wire::Crc32 as _;

use crate::{plan::Plan, report::cycles};

/// Frames filled in turn, as many as a core keeps spare.
const FRAMES: usize = 64;

/// Cycles a packet, over all buffers of all connections in turn, for about `time`.
pub fn cycles_per_packet(plan: &Plan, data: &ClientMem, time: Duration) -> Result<f64> {
    let (crc, mtu) = (Crc::detect(), plan.mtu.bytes());
    let mut frames = vec![vec![0u8; mtu]; FRAMES];
    let (mut packets, mut sums) = (0u64, 0u32);
    let (start, begin) = (Instant::now(), cycles());
    while start.elapsed() < time {
        for connection in 0..plan.qps {
            for index in 0..plan.buffers {
                for packet in 0..plan.packets() {
                    let at = packet * mtu as u64;
                    let len = mtu.min((u64::from(plan.size) - at) as usize);
                    let end = |target| {
                        let range = data.range(plan.buffer(connection, index, target) + at, len as u64);
                        range.context("a buffer leaves the data")
                    };
                    let (from, to) = (end(false)?.as_ptr(), end(true)?.as_ptr());
                    let frame = &mut frames[packets as usize % FRAMES][..len];
                    // SAFETY: source and target are mapped for `len` bytes, which the memory itself has said, and nobody
                    // has a reference to them; the frame is our own and lies outside of it.
                    unsafe {
                        sums ^= crc.copy_crc_raw(u32::MAX, frame.as_mut_ptr(), from, len);
                        sums ^= crc.update(u32::MAX, frame);
                        std::ptr::copy_nonoverlapping(frame.as_ptr(), to, len);
                    }
                    packets += 1;
                }
            }
        }
    }
    std::hint::black_box(sums);
    Ok((cycles() - begin) as f64 / packets.max(1) as f64)
}
