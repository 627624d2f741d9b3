//! Requests to the daemon and their replies.
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rnic_abi::{ABI_VERSION, CONTROL_MAGIC, MAX_PACKET, Op, ReplyHeader, RequestHeader};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
    sockopt,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Error, Result};

/// How long a request may take. A destroy waits for a grace period, a registration for its pages.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Descriptors the kernel lets one packet carry (SCM_MAX_FD).
const MAX_FDS: usize = 253;

/// The control socket. One request at a time: its lock is held from the request to the reply.
#[derive(Debug)]
pub(crate) struct Control(Mutex<Line>);

#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    session: u64,
    sequence: u64,
}

impl Control {
    /// Connects to the daemon's socket.
    pub fn connect(path: &Path) -> Result<Control> {
        let failed = |errno: Errno| Error::Connect {
            path: path.into(),
            source: errno.into(),
        };
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(failed)?;
        for side in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&socket, side, Some(REPLY_TIMEOUT)).map_err(failed)?;
        }
        Ok(Control(Mutex::new(Line {
            socket,
            session: 0,
            sequence: 0,
        })))
    }

    /// From now on requests carry this session number.
    pub fn set_session(&self, session: u64) {
        self.lock().session = session;
    }

    /// Sends a request and waits for its reply.
    pub fn request<R: FromBytes>(&self, op: Op, body: &(impl IntoBytes + Immutable)) -> Result<R> {
        self.request_with(op, body, None).map(|(reply, _)| reply)
    }

    /// As [`Control::request`], with a descriptor to send along and the descriptors that came back.
    pub fn request_with<R: FromBytes>(
        &self,
        op: Op,
        body: &(impl IntoBytes + Immutable),
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(R, VecDeque<OwnedFd>)> {
        let mut line = self.lock();
        line.sequence += 1;
        line.send(op, body.as_bytes(), fd)?;
        line.receive(op)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Line> {
        // Each step leaves the line usable: a reply that nobody waited for is skipped by its sequence.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn send(&self, op: Op, body: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let header = RequestHeader {
            magic: CONTROL_MAGIC,
            version: ABI_VERSION as u16,
            op: op as u16,
            session: self.session,
            sequence: self.sequence,
            body_len: body.len() as u32,
            reserved: 0,
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(fd) = &fd {
            ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
        }
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
        loop {
            match sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(broken(op, errno)),
            }
        }
    }

    fn receive<R: FromBytes>(&self, op: Op) -> Result<(R, VecDeque<OwnedFd>)> {
        let mut packet = [0u8; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        loop {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut packet)];
            let len = match recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(broken(op, errno)),
            };
            let fds = ancillary
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                })
                .flatten()
                .collect();
            if len == 0 {
                return Err(Error::Disconnected { during: op.name() });
            }
            let bad = |what: &str| Error::Protocol(format!("reply to {}: {what}", op.name()));
            let (header, body) =
                ReplyHeader::read_from_prefix(&packet[..len]).map_err(|_| bad("shorter than its header"))?;
            if header.magic != CONTROL_MAGIC {
                return Err(bad("wrong magic"));
            }
            if header.sequence < self.sequence {
                // The reply to a request that was given up: its time was over.
                continue;
            }
            if header.sequence != self.sequence || header.op != op as u32 {
                return Err(bad("it answers another request"));
            }
            if header.body_len as usize != body.len() {
                return Err(bad("its length is not what the header says"));
            }
            if header.status != 0 {
                return Err(Error::Daemon {
                    op: op.name(),
                    errno: header.status.saturating_abs(),
                    text: String::from_utf8_lossy(body).into_owned(),
                });
            }
            let reply = R::read_from_bytes(body).map_err(|_| bad("its body has the wrong length"))?;
            return Ok((reply, fds));
        }
    }
}

fn broken(op: Op, errno: Errno) -> Error {
    match errno {
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Error::Disconnected { during: op.name() },
        Errno::AGAIN => Error::NoAnswer {
            op: op.name(),
            seconds: REPLY_TIMEOUT.as_secs(),
        },
        errno => Error::Io {
            what: op.name(),
            source: errno.into(),
        },
    }
}
