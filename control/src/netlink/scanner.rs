//! A look at one interface.

use std::{io, net::IpAddr, time::Duration};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rnic_engine::nonblocking::might_block;
use rustix::{
    io::Errno,
    net::sockopt::{Timeout, set_socket_timeout},
};

use super::{BUFFER, Netdev, NetdevAddress};

/// How long the kernel may take to answer; it answers within the request unless its own lock is held for long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks at a table that changes while it is looked at, before what was seen is taken as it is: the change itself
/// brings another look.
const ATTEMPTS: usize = 4;

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The socket, or the kernel's answer that is not about the interface.
    #[error("asking the kernel for its interfaces failed: {0}")]
    Io(#[from] io::Error),
    /// The answer makes no sense.
    #[error("the kernel's answer about its interfaces cannot be read: {0}")]
    Decode(DecodeError),
}

/// Looks at interfaces of the network namespace of the thread that made it.
pub struct Scanner {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Scanner {
    /// Opens its socket.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Linux before 4.20 has no filter by interface; then all addresses come, and are filtered here.
        let _ = socket.set_netlink_get_strict_chk(true);
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Scanner {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Looks at the interface with this index; `None` when there is none (any more). May wait for the kernel's
    /// configuration lock.
    ///
    /// # Errors
    /// [`ScanError`]: nothing is known.
    pub fn look(&mut self, if_index: u32) -> Result<Option<Netdev>, ScanError> {
        match self.try_look(if_index) {
            Err(ScanError::Io(error)) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
            Ok(netdev) => Ok(Some(netdev)),
        }
    }

    fn try_look(&mut self, if_index: u32) -> Result<Netdev, ScanError> {
        let mut netdev = None;
        let mut request = LinkMessage::default();
        request.header.index = if_index;
        self.ask(RouteNetlinkMessage::GetLink(request), NLM_F_REQUEST, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                netdev = Some(netdev_of(&link));
            }
        })?;
        let mut netdev = netdev.ok_or(io::Error::from(Errno::NODEV))?;
        for _ in 0..ATTEMPTS {
            netdev.addresses.clear();
            let mut request = AddressMessage::default();
            request.header.index = if_index;
            let request = RouteNetlinkMessage::GetAddress(request);
            let whole = self.ask(request, NLM_F_REQUEST | NLM_F_DUMP, |answer| {
                if let RouteNetlinkMessage::NewAddress(address) = answer
                    && address.header.index == if_index
                {
                    netdev.addresses.extend(usable(&address));
                }
            })?;
            if whole {
                break;
            }
        }
        Ok(netdev)
    }

    /// Asks and takes the answers; `false` when the table changed meanwhile.
    fn ask(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> Result<bool, ScanError> {
        might_block();
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut whole = true;
        loop {
            self.buffer.clear();
            let len = match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if len > self.buffer.len() {
                return Err(io::Error::from(Errno::MSGSIZE).into());
            }
            let mut bytes = &self.buffer[..];
            while !bytes.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes);
                let answer = answer.map_err(ScanError::Decode)?;
                bytes = after(bytes, answer.header.length);
                // The rest of an answer that was given up.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => take(inner),
                    NetlinkPayload::Done(_) => return Ok(whole),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(whole),
                    NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                    _ => {}
                }
                if flags & NLM_F_DUMP != NLM_F_DUMP {
                    return Ok(whole);
                }
            }
        }
    }
}

/// What follows a message of this length.
pub(super) fn after(bytes: &[u8], length: u32) -> &[u8] {
    let aligned = (length as usize).next_multiple_of(4).max(4);
    bytes.get(aligned..).unwrap_or_default()
}

fn netdev_of(link: &LinkMessage) -> Netdev {
    let mut netdev = Netdev {
        index: link.header.index,
        name: String::new(),
        up: link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        mtu: 0,
        mac: None,
        addresses: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => netdev.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => netdev.mtu = *mtu,
            LinkAttribute::Address(mac) => netdev.mac = mac.as_slice().try_into().ok(),
            _ => {}
        }
    }
    netdev
}

/// The address, if a station can have it and may use it now: one that duplicate address detection still doubts is
/// told of again when it no longer does.
fn usable(message: &AddressMessage) -> Option<NetdevAddress> {
    let (mut local, mut address, mut flags) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = Some(*all),
            _ => {}
        }
    }
    let flags = flags.unwrap_or(AddressFlags::from_bits_retain(message.header.flags.bits().into()));
    // On a link with two ends `address` is the other one.
    let ip = local.or(address)?;
    let doubtful = flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    let own = matches!(message.header.scope, AddressScope::Host | AddressScope::Nowhere);
    (!doubtful && !own && is_station(ip)).then_some(NetdevAddress {
        ip,
        prefix_len: message.header.prefix_len,
    })
}

fn is_station(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(
        flags: AddressFlags,
        scope: AddressScope,
        attributes: Vec<AddressAttribute>,
    ) -> AddressMessage {
        let mut message = AddressMessage::default();
        (message.header.prefix_len, message.header.scope) = (64, scope);
        message.attributes = attributes;
        message.attributes.push(AddressAttribute::Flags(flags));
        message
    }

    #[test]
    fn what_a_station_cannot_use_yet_or_at_all_is_left_out() {
        let address = |ip: &str| vec![AddressAttribute::Address(ip.parse().unwrap())];
        let (fine, global) = (AddressFlags::Permanent, AddressScope::Universe);
        for ip in ["fd00::1", "fe80::1", "10.0.0.1"] {
            assert!(usable(&message(fine, global, address(ip))).is_some(), "{ip}");
        }
        for ip in [
            "::",
            "::1",
            "ff02::1",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert_eq!(usable(&message(fine, global, address(ip))), None, "{ip}");
        }
        for flags in [AddressFlags::Tentative, AddressFlags::Dadfailed] {
            assert_eq!(usable(&message(fine | flags, global, address("fd00::1"))), None);
        }
        assert_eq!(
            usable(&message(fine, AddressScope::Host, address("fd00::1"))),
            None
        );
        assert_eq!(usable(&message(fine, global, vec![])), None);
    }

    #[test]
    fn flags_of_a_header_count_when_there_are_no_others() {
        let mut message = message(AddressFlags::empty(), AddressScope::Universe, vec![]);
        message.attributes = vec![AddressAttribute::Address("fd00::1".parse().unwrap())];
        assert!(usable(&message).is_some());
        message.header.flags = netlink_packet_route::address::AddressHeaderFlags::Tentative;
        assert_eq!(usable(&message), None);
    }
}
