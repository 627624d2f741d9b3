//! Notifications of links and addresses.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;

use super::BUFFER;

/// Notifications read in a row: a storm of them must not keep clients waiting.
const IN_A_ROW: usize = 256;
/// Longest queue of notifications in bytes. Beyond, the kernel drops them and says so.
const QUEUE: i32 = 256 << 10;

/// What may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Anything: notifications were lost.
    pub all: bool,
    /// Interfaces, by index.
    pub interfaces: BTreeSet<u32>,
}

impl Hints {
    /// Whether this interface is worth a look.
    pub fn contains(&self, if_index: u32) -> bool {
        self.all || self.interfaces.contains(&if_index)
    }
}

/// A subscription to changes of links and addresses in this thread's network namespace. Readable when there are
/// some.
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes. A look at the interfaces that begins after this misses nothing.
    pub fn new() -> io::Result<Self> {
        Self::with_queue(QUEUE)
    }

    pub(super) fn with_queue(bytes: i32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_rx_buf_sz(bytes)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
        ] {
            socket.add_membership(group)?;
        }
        // Only the kernel is listened to.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Monitor {
            socket,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Reads what is there; more may be left.
    pub fn drain(&mut self) -> Hints {
        let mut hints = Hints::default();
        for _ in 0..IN_A_ROW {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(len) if len > self.buffer.len() => hints.all = true,
                Ok(_) => read(&self.buffer, &mut hints),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => break,
                    Some(Errno::INTR) => {}
                    // The queue was full, and some notifications are lost.
                    Some(Errno::NOBUFS) => hints.all = true,
                    _ => {
                        tracing::warn!(%error, "the kernel's notifications of addresses cannot be read");
                        hints.all = true;
                        break;
                    }
                },
            }
        }
        hints
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read(mut bytes: &[u8], hints: &mut Hints) {
    while !bytes.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
            // What it is about cannot be told.
            hints.all = true;
            return;
        };
        match message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) => {
                hints.interfaces.insert(link.header.index);
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
            ) => {
                hints.interfaces.insert(address.header.index);
            }
            NetlinkPayload::Overrun(_) => hints.all = true,
            _ => {}
        }
        bytes = super::scanner::after(bytes, message.header.length);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            read(&bytes, &mut Hints::default());
        }

        #[test]
        fn a_message_of_any_type_and_length_is_read_to_its_end(
            length in 0..80u32, kind in 0..40u16, body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            read(&bytes, &mut Hints::default());
        }
    }
}
