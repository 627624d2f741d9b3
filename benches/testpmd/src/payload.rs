//! What messages carry, and whether it has arrived.
use rnic_engine::mem::ClientMem;

use crate::{
    args::Mode,
    plan::{Operation, Plan},
};

/// Fills what is read from, and clears what is written to.
pub fn fill(plan: &Plan, data: &ClientMem) {
    for connection in 0..plan.qps {
        for index in 0..plan.buffers {
            for target in [false, true] {
                let source = match plan.operation(index) {
                    Operation::Write | Operation::Send => !target,
                    Operation::Read => target,
                    Operation::FetchAdd => false,
                };
                let bytes: Vec<u8> = match source {
                    true => pattern(connection, index).take(plan.size as usize).collect(),
                    false => vec![0; plan.size as usize],
                };
                data.copy_in(plan.buffer(connection, index, target) as usize, &bytes);
            }
        }
    }
}

/// Whether every byte of a connection that has posted so many messages is where it belongs.
pub fn verify(plan: &Plan, data: &ClientMem, connection: u32, posted: u32) -> bool {
    (0..plan.buffers).all(|index| {
        let operation = plan.operation(index);
        let at = plan.buffer(connection, index, operation != Operation::Read) as usize;
        let expected: Vec<u8> = match operation {
            // One word each, counted up by every message.
            Operation::FetchAdd if index != plan.counter() => return true,
            Operation::FetchAdd => {
                let every = if plan.mode == Mode::Mixed { 4 } else { 1 };
                (u64::from(posted) / every).to_le_bytes().into()
            }
            _ => pattern(connection, index).take(plan.size as usize).collect(),
        };
        let mut found = vec![0; expected.len()];
        data.copy_out(at, &mut found) && found == expected
    })
}

fn pattern(connection: u32, index: u32) -> impl Iterator<Item = u8> {
    let seed = connection
        .wrapping_mul(31)
        .wrapping_add(index.wrapping_mul(7))
        .wrapping_add(1);
    (0u32..).map(move |i| (seed.wrapping_add(i.wrapping_mul(13)) >> (i & 3)) as u8)
}
