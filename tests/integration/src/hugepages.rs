//! Hugepages for a test.
use std::fs;

use crate::skipped;

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Hugepages of 2 MiB added to the pool of the machine, taken back on drop.
#[derive(Debug)]
pub struct Hugepages {
    before: usize,
}

impl Hugepages {
    /// Adds `pages` to the pool; says loudly that `test` is skipped when that cannot be done.
    pub fn reserve(test: &str, pages: usize) -> Option<Hugepages> {
        let size = || fs::read_to_string(POOL).ok()?.trim().parse::<usize>().ok();
        let before = size()?;
        let reserved = Hugepages { before };
        let _ = fs::write(POOL, (before + pages).to_string());
        if size()? >= before + pages {
            return Some(reserved);
        }
        skipped(test, &format!("{pages} hugepages of 2 MiB cannot be reserved"));
        None
    }

    /// Pages nobody holds.
    ///
    /// # Panics
    /// Without /proc.
    pub fn free() -> usize {
        let text = fs::read_to_string("/proc/meminfo").expect("Linux");
        let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let _ = fs::write(POOL, self.before.to_string());
    }
}
