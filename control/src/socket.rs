//! Unix sockets with descriptors: listeners, packets, pairs. Nothing here blocks.

use std::{
    fs, io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use rnic_abi::MAX_PACKET;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
        recvmsg, sendmsg,
    },
};

/// Descriptors the kernel lets one packet carry (SCM_MAX_FD).
const MAX_FDS: usize = 253;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon serves it.
    #[error("{0}: another rnicd serves this socket; stop it or use another path")]
    InUse(PathBuf),
    /// There is no such group.
    #[error("control.socket_group: there is no group `{0}`")]
    NoGroup(String),
    /// Something failed.
    #[error("{path}: {what} failed: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A listening socket. Its path is removed on drop.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, in place of a socket that nobody serves any more. Only those `mode` and `group` allow
    /// can connect, from the first moment on.
    pub fn bind(path: &Path, kind: SocketType, mode: u32, group: Option<&str>) -> Result<Self, ListenError> {
        let io = |what, source: io::Error| ListenError::Io {
            path: path.into(),
            what,
            source,
        };
        let gid = match group {
            Some(name) => Some(match nix::unistd::Group::from_name(name) {
                Ok(Some(group)) => group.gid.as_raw(),
                Ok(None) => return Err(ListenError::NoGroup(name.into())),
                Err(errno) => return Err(io("looking up control.socket_group", errno.into())),
            }),
            None => None,
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| io("making its directory", e))?;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)
            .map_err(|e| io("socket", e.into()))?;
        let address = SocketAddrUnix::new(path).map_err(|e| io("using it as an address", e.into()))?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => return Err(ListenError::InUse(path.into())),
            Err(Errno::CONNREFUSED) => {
                fs::remove_file(path).map_err(|e| io("removing the stale socket", e))?
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(io("looking whether it is served", e.into())),
        }
        rustix::net::bind(&fd, &address).map_err(|e| io("bind", e.into()))?;
        // Nobody can connect before listen: so mode and group come first.
        let listener = Listener {
            fd,
            path: path.into(),
        };
        if let Some(gid) = gid {
            std::os::unix::fs::chown(path, None, Some(gid))
                .map_err(|e| io("chown to control.socket_group", e))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| io("chmod", e))?;
        rustix::net::listen(&listener.fd, 128).map_err(|e| io("listen", e.into()))?;
        Ok(listener)
    }

    /// The next connection that waits.
    pub fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.fd, flags) {
            Ok(fd) => Ok(Some(fd)),
            // The peer may have given up meanwhile, which concerns nobody.
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A packet as it came in.
#[derive(Debug)]
pub struct Packet {
    bytes: [u8; MAX_PACKET],
    len: usize,
    /// It was longer than any packet may be, and its end is lost.
    pub truncated: bool,
    /// Descriptors that came with it; closed with it unless taken.
    pub fds: Vec<OwnedFd>,
}

impl Packet {
    /// An empty packet.
    pub fn new() -> Self {
        Packet {
            bytes: [0; MAX_PACKET],
            len: 0,
            truncated: false,
            fds: Vec::new(),
        }
    }

    /// What came in.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Default for Packet {
    fn default() -> Self {
        Self::new()
    }
}

/// What [`receive`] found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet.
    Packet,
    /// Nothing yet.
    Nothing,
    /// The peer is gone.
    Closed,
}

/// Takes the next packet. Descriptors of an earlier one are closed.
pub fn receive(socket: impl AsFd, packet: &mut Packet) -> Received {
    packet.fds.clear();
    packet.len = 0;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let result = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut packet.bytes)],
        &mut ancillary,
        flags,
    );
    packet
        .fds
        .extend(ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        }));
    match result {
        // A packet of no bytes cannot be told from the end; neither is a request.
        Ok(message) if message.bytes == 0 => Received::Closed,
        Ok(message) => {
            packet.len = message.bytes;
            packet.truncated = message.flags.contains(ReturnFlags::TRUNC);
            Received::Packet
        }
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Err(_) => Received::Closed,
    }
}

/// Sends one packet with descriptors, whole or not at all. EAGAIN when the peer does not read.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if fds.is_empty() {
        // Nearly every reply; the kernel has less to look at.
        return rustix::io::retry_on_intr(|| rustix::net::send(&socket, bytes, flags)).map(drop);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, flags)).map(drop)
}

/// One byte to an end of a [`pair`], to wake whoever polls the other. A full socket holds wakes enough.
pub fn wake(socket: impl AsFd) {
    let _ = rustix::net::send(socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// A pair of packet sockets: the daemon's end, which never blocks, and the client's. Each end has flags of its
/// own, so that nothing the client does to its end makes the daemon wait.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_brings_its_descriptors_and_they_are_closed_with_it() {
        let (ours, theirs) = pair().unwrap();
        let (probe, sent) = pair().unwrap();
        send(&theirs, b"hello", &[sent.as_fd(), sent.as_fd()]).unwrap();
        drop(sent);
        let mut packet = Packet::new();
        assert_eq!(receive(&ours, &mut packet), Received::Packet);
        assert_eq!(
            (packet.bytes(), packet.fds.len(), packet.truncated),
            (&b"hello"[..], 2, false)
        );
        assert_eq!(receive(&ours, &mut packet), Received::Nothing);
        let mut byte = Packet::new();
        assert_eq!(
            receive(&probe, &mut byte),
            Received::Closed,
            "a descriptor leaked"
        );
    }

    #[test]
    fn a_packet_too_long_is_told_and_the_next_one_is_whole() {
        let (ours, theirs) = pair().unwrap();
        send(&theirs, &[7; MAX_PACKET + 1], &[]).unwrap();
        send(&theirs, b"next", &[]).unwrap();
        let mut packet = Packet::new();
        assert_eq!(receive(&ours, &mut packet), Received::Packet);
        assert!(packet.truncated);
        assert_eq!(receive(&ours, &mut packet), Received::Packet);
        assert_eq!((packet.bytes(), packet.truncated), (&b"next"[..], false));
    }

    #[test]
    fn a_peer_that_does_not_read_never_makes_us_wait() {
        let (ours, _theirs) = pair().unwrap();
        let mut result = Ok(());
        for _ in 0..100_000 {
            result = send(&ours, &[0; 1024], &[]);
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, Err(Errno::AGAIN));
        wake(&ours);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/rnicd.sock");
        let first = Listener::bind(&path, SocketType::SEQPACKET, 0o600, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for kind in [SocketType::SEQPACKET, SocketType::STREAM] {
            let second = Listener::bind(&path, kind, 0o600, None);
            assert!(matches!(second, Err(ListenError::InUse(_))), "{second:?}");
        }
        // Killed: the path stays.
        fs::hard_link(&path, dir.path().join("kept")).unwrap();
        drop(first);
        fs::rename(dir.path().join("kept"), &path).unwrap();
        Listener::bind(&path, SocketType::SEQPACKET, 0o660, None).unwrap();
        assert!(!path.exists());
        let unknown = Listener::bind(&path, SocketType::SEQPACKET, 0o660, Some("no-such-group"));
        assert!(unknown.unwrap_err().to_string().contains("no-such-group"));
    }
}
