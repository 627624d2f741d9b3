//! One heavy test at a time, over all processes of a user: appliances poll, and two at once on a small machine starve.
use std::fs::File;

use rustix::fs::{FlockOperation, flock};

/// The right to run a heavy test; others wait until it is dropped, or its process ends.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

impl Turn {
    /// Waits for the turn.
    ///
    /// # Panics
    /// When the lock file cannot be made.
    pub fn take() -> Turn {
        let user = rustix::process::getuid().as_raw();
        let path = std::env::temp_dir().join(format!("rnic-tests-{user}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .unwrap_or_else(|e| panic!("locking {}: {e}", path.display()));
        Turn { _file: file }
    }
}
