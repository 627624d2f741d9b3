//! Starting programs, and ending them.
use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::NamedTempFile;

/// How long a client may take beside the time it was told to measure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to reach a server that has just been started.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a server may take to listen.
const STARTING: Duration = Duration::from_secs(10);

/// A server that runs beside its clients. Ended on drop.
pub struct Server(Child);

impl Server {
    /// Starts it; what it prints is of no interest.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let name = command.get_program().to_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", name.display()))?;
        Ok(Server(child))
    }

    /// Runs a client, again while the server is not ready; what it prints.
    pub fn client(&mut self, make: impl Fn() -> Command) -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let outcome = output(&mut make());
            let ended = self.0.try_wait()?.is_some();
            match outcome {
                Ok(text) => return Ok(text),
                Err(error) if ended || start.elapsed() > STARTING => return Err(error),
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }

    /// Waits for one that ends by itself after its client, or ends it.
    pub fn wait(mut self) {
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a program prints that ends with success in time.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_owned();
    let said = NamedTempFile::new()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(said.path())?)
        .stderr(said.reopen()?)
        .spawn()
        .with_context(|| format!("starting {}", name.display()))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{} did not end within {PATIENCE:?}", name.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = std::fs::read_to_string(said.path())?;
    ensure!(
        status.success(),
        "{} failed: {}",
        name.display(),
        text.lines().last().unwrap_or_default()
    );
    Ok(text)
}

/// Fails when a program is not installed.
pub fn installed(program: &str) -> anyhow::Result<()> {
    ensure!(find(program).is_some(), "{program} is not installed");
    Ok(())
}

/// Where a program is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}
