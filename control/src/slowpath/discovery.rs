//! ARP and neighbour discovery: what stations say about themselves, and what we ask them.

use std::net::IpAddr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
        Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
        RawHardwareAddress,
    },
};

use super::Heard;
use crate::neighbour::{Question, Target};

/// What a frame's sender says about itself, by ARP or neighbour discovery.
pub(super) fn listen(frame: &[u8], own: [u8; 6]) -> Option<Heard> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let to_us = frame.dst_addr() == EthernetAddress(own);
    match frame.ethertype() {
        EthernetProtocol::Arp => {
            let ArpRepr::EthernetIpv4 {
                operation,
                source_hardware_addr,
                source_protocol_addr,
                ..
            } = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()?
            else {
                return None;
            };
            let known = matches!(operation, ArpOperation::Request | ArpOperation::Reply);
            let mac = source_hardware_addr.0;
            known.then_some(Heard {
                ip: source_protocol_addr.into(),
                mac,
                to_us,
                overrides: true,
            })
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
            // Neighbour discovery never passes a router (RFC 4861, 7.1).
            if packet.next_header() != IpProtocol::Icmpv6 || packet.hop_limit() != 255 {
                return None;
            }
            let (source, destination) = (packet.src_addr(), packet.dst_addr());
            let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
            let checks = ChecksumCapabilities::default();
            let (ip, lladdr, overrides) =
                match Icmpv6Repr::parse(&source, &destination, &message, &checks).ok()? {
                    Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                        target_addr,
                        lladdr,
                        flags,
                    }) => {
                        // An answer to a unicast question may leave the address out.
                        (
                            target_addr,
                            lladdr.unwrap_or(RawHardwareAddress::from_bytes(frame.src_addr().as_bytes())),
                            flags.contains(NdiscNeighborFlags::OVERRIDE),
                        )
                    }
                    Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { lladdr, .. }) => (source, lladdr?, true),
                    _ => return None,
                };
            Some(Heard {
                ip: ip.into(),
                mac: lladdr.as_bytes().try_into().ok()?,
                to_us,
                overrides,
            })
        }
        _ => None,
    }
}

/// The ARP request or neighbour solicitation for a target.
pub(super) fn question(target: &Target, whom: Question, own: EthernetAddress) -> Option<Vec<u8>> {
    let nobody = target.from.is_unspecified();
    let station = match whom {
        // Nobody can ask all only, as the answer comes to all.
        Question::One(mac) if !nobody => Some(EthernetAddress(mac)),
        _ => None,
    };
    match (target.from, target.ip) {
        (IpAddr::V4(source_protocol_addr), IpAddr::V4(target_protocol_addr)) => {
            let repr = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: own,
                source_protocol_addr,
                target_hardware_addr: EthernetAddress([0; 6]),
                target_protocol_addr,
            };
            let mut frame = ethernet(
                own,
                station.unwrap_or(EthernetAddress::BROADCAST),
                EthernetProtocol::Arp,
                repr.buffer_len(),
            );
            repr.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
            Some(frame)
        }
        (IpAddr::V6(src_addr), IpAddr::V6(target_addr)) => {
            let [.., x, y, z] = target_addr.octets();
            let dst_addr = match station {
                Some(_) => target_addr,
                None => [0xFF, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xFF, x, y, z].into(),
            };
            let lladdr = (!nobody).then(|| RawHardwareAddress::from_bytes(own.as_bytes()));
            let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, lladdr });
            let ip = Ipv6Repr {
                src_addr,
                dst_addr,
                next_header: IpProtocol::Icmpv6,
                payload_len: message.buffer_len(),
                hop_limit: 255,
            };
            let len = ip.buffer_len() + message.buffer_len();
            let group = EthernetAddress([0x33, 0x33, 0xFF, x, y, z]);
            let mut frame = ethernet(own, station.unwrap_or(group), EthernetProtocol::Ipv6, len);
            let (head, body) = frame[14..].split_at_mut(ip.buffer_len());
            ip.emit(&mut Ipv6Packet::new_unchecked(head));
            let checks = ChecksumCapabilities::default();
            message.emit(
                &src_addr,
                &dst_addr,
                &mut Icmpv6Packet::new_unchecked(body),
                &checks,
            );
            Some(frame)
        }
        _ => None,
    }
}

pub(super) fn ethernet(
    src_addr: EthernetAddress,
    dst_addr: EthernetAddress,
    ethertype: EthernetProtocol,
    payload: usize,
) -> Vec<u8> {
    let repr = EthernetRepr {
        src_addr,
        dst_addr,
        ethertype,
    };
    let mut frame = vec![0; repr.buffer_len() + payload];
    repr.emit(&mut EthernetFrame::new_unchecked(&mut frame[..14]));
    frame
}
