//! Keeps the kernel from answering RoCE packets.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
};

use rnic_wire::ROCE_UDP_PORT;
use rustix::net::sockopt::set_socket_recv_buffer_size;

/// A socket on RoCE's UDP port that is never read. Where the kernel sees a port's frames and has its addresses, it
/// would else answer each RoCE packet with "port unreachable"; now it drops what does not fit the smallest buffer
/// there is.
#[derive(Debug)]
pub struct Quiet(#[expect(dead_code, reason = "held open")] UdpSocket);

impl Quiet {
    /// Takes the port in this thread's network namespace, for both IP versions where there are both.
    ///
    /// # Errors
    /// Somebody has it, and with it keeps the kernel as quiet.
    pub fn new() -> io::Result<Self> {
        let both = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ROCE_UDP_PORT));
        let socket = both.or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ROCE_UDP_PORT)))?;
        set_socket_recv_buffer_size(&socket, 1)?;
        Ok(Quiet(socket))
    }
}
