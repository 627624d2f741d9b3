//! Bare round trips: another process that answers packets of the same lengths as verbs, and does nothing else.
use std::{
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use rnic_abi::MAX_PACKET;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// The argument that makes a benchmark's own program the one that answers, on its standard input.
pub const ROLE: &str = "--answer-packets";

/// The answering process. Ends when this is dropped.
pub struct Echo {
    socket: Option<OwnedFd>,
    child: Child,
}

impl Echo {
    /// Starts this same program with [`ROLE`].
    pub fn start() -> anyhow::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let child = Command::new(std::env::current_exe()?)
            .arg(ROLE)
            .stdin(Stdio::from(theirs))
            .spawn()
            .context("starting the answering process")?;
        Ok(Echo {
            socket: Some(ours),
            child,
        })
    }

    /// One round trip: `request` bytes there, `reply` bytes back.
    pub fn round_trip(&self, request: usize, reply: usize) -> anyhow::Result<()> {
        let socket = self.socket.as_ref().context("the answering process is gone")?;
        let mut packet = [0u8; MAX_PACKET];
        packet[..8].copy_from_slice(&(reply as u64).to_ne_bytes());
        send(
            socket,
            &packet[..request.clamp(8, MAX_PACKET)],
            SendFlags::NOSIGNAL,
        )?;
        recv(socket, &mut packet[..], RecvFlags::empty())?;
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.child.wait();
    }
}

/// The answering process itself. Returns when the other end is closed.
pub fn answer() -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    let mut packet = [0u8; MAX_PACKET];
    loop {
        let (len, _) = recv(stdin.as_fd(), &mut packet[..], RecvFlags::empty())?;
        if len < 8 {
            return Ok(());
        }
        let mut reply = [0; 8];
        reply.copy_from_slice(&packet[..8]);
        let reply = (u64::from_ne_bytes(reply) as usize).min(MAX_PACKET);
        send(stdin.as_fd(), &packet[..reply], SendFlags::NOSIGNAL)?;
    }
}
