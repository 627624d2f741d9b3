//! Frames put on and taken from a network device by hand.
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::Namespace;

/// A packet socket on `veth0` of a namespace: what it sends leaves the device, what it receives is what arrives
/// at the device.
#[derive(Debug)]
pub struct RawPort {
    socket: OwnedFd,
}

impl RawPort {
    /// Opens it.
    ///
    /// # Panics
    /// Without the rights; see [`crate::privileged`].
    pub fn open(namespace: &Namespace) -> RawPort {
        RawPort {
            socket: namespace.inside(|| packet_socket("veth0")),
        }
    }

    /// Sends a frame of 14 to 9014 bytes; one that the device refuses is dropped.
    pub fn send(&self, frame: &[u8]) {
        let _ = send(&self.socket, frame, SendFlags::empty());
    }

    /// Frames that arrive until there are `count` or the time is over.
    pub fn receive(&self, count: usize, limit: Duration) -> Vec<Vec<u8>> {
        let (mut frames, end) = (Vec::new(), Instant::now() + limit);
        let mut buffer = [0; 10_000];
        while frames.len() < count && Instant::now() < end {
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, len)) => frames.push(buffer[..len].to_vec()),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        frames
    }
}

fn packet_socket(device: &str) -> OwnedFd {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let name = std::ffi::CString::new(device).expect("a name without zeros");
    // SAFETY: plain system calls; the name ends with a zero, the address is as long as is said.
    unsafe {
        let socket = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol.into(),
        );
        assert!(
            socket >= 0,
            "a packet socket: {}",
            std::io::Error::last_os_error()
        );
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        let bound = libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len);
        assert_eq!(
            bound,
            0,
            "binding to {device}: {}",
            std::io::Error::last_os_error()
        );
        socket
    }
}
