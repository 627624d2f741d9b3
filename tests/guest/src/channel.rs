//! A virtio-serial port of the guest: lines out, lines in, with deadlines.
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(5);

/// The host's end of a port.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    /// Received and not yet taken.
    buffer: Vec<u8>,
}

impl Channel {
    /// Connects to the socket that QEMU makes for a port.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Channel> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < end => std::thread::sleep(AGAIN),
                Err(e) => {
                    return Err(e).with_context(|| format!("QEMU does not listen at {}", socket.display()));
                }
            }
        };
        Ok(Channel {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Sends lines, each of which ends with a newline.
    pub fn send(&mut self, lines: &str) -> Result<()> {
        self.stream
            .write_all(lines.as_bytes())
            .context("sending to the guest")
    }

    /// The next line, without its newline.
    pub fn line(&mut self, deadline: Instant) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end])
                    .trim_end_matches('\r')
                    .into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the guest does not answer in time");
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the guest is gone"),
                Ok(len) => self.buffer.extend_from_slice(&chunk[..len]),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(e).context("receiving from the guest"),
            }
        }
    }
}
