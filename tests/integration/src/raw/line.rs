//! Packets on the control socket.
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rnic_abi::{ABI_VERSION, CONTROL_MAGIC, Hello, HelloReply, MAX_PACKET, Op, ReplyHeader, RequestHeader};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
    sockopt,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::poll_until;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the daemon that sends whatever it is told to.
#[derive(Debug)]
pub struct Line {
    socket: OwnedFd,
    /// Session number put into requests.
    pub session: u64,
    /// Sequence of the last request.
    pub sequence: u64,
}

/// A reply as it came.
#[derive(Debug)]
pub struct Reply {
    /// Its header.
    pub header: ReplyHeader,
    /// What follows the header.
    pub body: Vec<u8>,
    /// Descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    /// The errno of a refusal; 0 for a success.
    pub fn errno(&self) -> i32 {
        self.header.status.saturating_abs()
    }

    /// The text of a refusal.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of a success.
    ///
    /// # Panics
    /// When it is a refusal, or of another length.
    pub fn body<T: FromBytes>(&self) -> T {
        assert_eq!(self.errno(), 0, "refused: {}", self.text());
        T::read_from_bytes(&self.body).unwrap_or_else(|_| panic!("a body of {} bytes", self.body.len()))
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A header that is right in everything.
pub fn header(op: u16, session: u64, sequence: u64, body_len: usize) -> RequestHeader {
    RequestHeader {
        magic: CONTROL_MAGIC,
        version: ABI_VERSION as u16,
        op,
        session,
        sequence,
        body_len: body_len as u32,
        reserved: 0,
    }
}

impl Line {
    /// Connects, and says nothing yet.
    ///
    /// # Panics
    /// When nobody listens.
    pub fn connect(path: &Path) -> Line {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket");
        let address = SocketAddrUnix::new(path).expect("a short path");
        rustix::net::connect(&socket, &address).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for side in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&socket, side, Some(PATIENCE)).expect("a timeout");
        }
        Line {
            socket,
            session: 0,
            sequence: 0,
        }
    }

    /// Connects and says hello, again while the daemon has as many clients as it may and asks for that.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn greet(path: &Path) -> (Line, HelloReply, Vec<OwnedFd>) {
        let greeted = poll_until(PATIENCE, || {
            let mut line = Line::connect(path);
            let reply = line.request(Op::Hello, &Hello::default(), &[]);
            let later = reply.errno() == Errno::AGAIN.raw_os_error();
            (!later).then_some((line, reply))
        });
        let (mut line, reply) = greeted.expect("the daemon has too many clients all the time");
        let hello: HelloReply = reply.body();
        line.session = hello.session;
        (line, hello, reply.fds)
    }

    /// Sends bytes as one packet. An error is the kernel's, or that the daemon has hung up.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(
                ancillary.push(SendAncillaryMessage::ScmRights(fds)),
                "at most 253 descriptors"
            );
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map(drop)
    }

    /// The next reply; `None` when the daemon has hung up.
    ///
    /// # Panics
    /// When it says nothing, or something that is no reply.
    pub fn receive(&self) -> Option<Reply> {
        let mut packet = [0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let result = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut packet)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let len = match result {
            Ok(message) => message.bytes,
            Err(Errno::CONNRESET) => 0,
            Err(Errno::AGAIN) => panic!("the daemon says nothing"),
            Err(errno) => panic!("receiving from the daemon: {errno}"),
        };
        if len == 0 {
            return None;
        }
        let fds = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        });
        let fds = fds.collect();
        let (header, body) = ReplyHeader::read_from_prefix(&packet[..len]).expect("a reply has a header");
        assert_eq!(header.magic, CONTROL_MAGIC);
        assert_eq!(
            header.body_len as usize,
            body.len(),
            "a reply of another length than it says"
        );
        Some(Reply {
            header,
            body: body.to_vec(),
            fds,
        })
    }

    /// Sends a request that is right in form, and waits for the reply.
    ///
    /// # Panics
    /// When the daemon hangs up.
    pub fn request(
        &mut self,
        op: Op,
        body: &(impl IntoBytes + Immutable + ?Sized),
        fds: &[BorrowedFd<'_>],
    ) -> Reply {
        self.sequence += 1;
        let body = body.as_bytes();
        let header = header(op as u16, self.session, self.sequence, body.len());
        self.send(&[header.as_bytes(), body].concat(), fds)
            .expect("the daemon listens");
        let reply = self
            .receive()
            .unwrap_or_else(|| panic!("the daemon hung up on {}", op.name()));
        assert_eq!(
            (reply.header.sequence, reply.header.op),
            (self.sequence, op as u32)
        );
        reply
    }
}
