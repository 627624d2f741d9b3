//! Client processes, and their end by `kill -9`.
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::worker::Done;

/// A client process.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts one.
    pub fn start(socket: &Path, seed: &[u64]) -> Result<Process> {
        let seed: Vec<String> = seed.iter().map(u64::to_string).collect();
        let child = Command::new(std::env::current_exe()?)
            .arg("client")
            .arg("--socket")
            .arg(socket)
            .args(["--seed", &seed.join(",")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting a client process")?;
        Ok(Process { child })
    }

    /// An error if it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "a client process ended by itself: {ended:?}; it said why"
        );
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.check()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to destroy everything and to end, and returns what it has done.
    pub fn finish(mut self) -> Result<Done> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text)?;
        }
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "a client process ended with {status}; it said why"
        );
        serde_json::from_str(&text).with_context(|| format!("a client process said {text:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
