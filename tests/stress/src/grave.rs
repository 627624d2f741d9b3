//! Memory shared with the daemon that it has given up: poisoned by us, and looked at later. Whoever writes to it
//! uses something that was destroyed.
use std::collections::VecDeque;

use anyhow::{Result, ensure};
use rnic_tests::raw::Memory;

const POISON: u8 = 0xDB;

/// Queue space of destroyed objects, until the daemon hands space out again.
#[derive(Debug, Default)]
pub struct Graves(Vec<(usize, usize, String)>);

impl Graves {
    /// Poisons what was an object's.
    pub fn dig(&mut self, region: &Memory, offset: usize, size: usize, what: String) {
        region.write(offset, &vec![POISON; size]);
        self.0.push((offset, size, what));
    }

    /// Looks at all of it and forgets it: the next request may use it again.
    pub fn close(&mut self, region: &Memory) -> Result<()> {
        for (offset, size, what) in self.0.drain(..) {
            check(region, offset, size, &what)?;
        }
        Ok(())
    }
}

/// Registered memory that was deregistered, kept for a while.
#[derive(Debug, Default)]
pub struct DeadMemory(VecDeque<(Memory, String)>);

/// Regions kept.
const KEPT: usize = 6;

impl DeadMemory {
    /// Poisons a region; the oldest is looked at and let go.
    pub fn bury(&mut self, memory: Memory, what: String) -> Result<()> {
        memory.write(0, &vec![POISON; memory.len()]);
        self.0.push_back((memory, what));
        while self.0.len() > KEPT {
            self.exhume()?;
        }
        Ok(())
    }

    /// Looks at all of it.
    pub fn finish(&mut self) -> Result<()> {
        while !self.0.is_empty() {
            self.exhume()?;
        }
        Ok(())
    }

    fn exhume(&mut self) -> Result<()> {
        match self.0.pop_front() {
            Some((memory, what)) => check(&memory, 0, memory.len(), &what),
            None => Ok(()),
        }
    }
}

fn check(memory: &Memory, offset: usize, size: usize, what: &str) -> Result<()> {
    let mut bytes = vec![0; size];
    memory.read(offset, &mut bytes);
    let touched = bytes.iter().position(|byte| *byte != POISON);
    ensure!(
        touched.is_none(),
        "{what} was written to after it was destroyed, {} bytes from its start of {size}",
        touched.unwrap_or_default()
    );
    Ok(())
}
