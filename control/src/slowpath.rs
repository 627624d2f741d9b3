//! The slow path: frames that are not RoCE. smoltcp answers ARP, neighbour discovery and echo requests; this file
//! carries frames to and from it, takes VLAN tags off and puts them on, and listens to what stations tell about
//! themselves.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use smoltcp::{
    iface::{Config, Interface, SocketSet},
    phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium},
    time::Instant as SmolInstant,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
        Icmpv6Packet, Icmpv6Repr, IpCidr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscRepr, RawHardwareAddress,
    },
};

use crate::{device::Device, neighbour::Target};

/// Addresses one smoltcp interface holds.
const ADDRESSES: usize = 8;
/// Answers that wait for the control thread; more are dropped.
const OUTGOING: usize = 256;
/// Bytes of a VLAN tag.
const TAG: usize = 4;

/// What a station said about itself.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its address.
    pub ip: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// It was said to us.
    pub to_us: bool,
}

/// A frame to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Port.
    pub port: u16,
    /// The frame, tag included.
    pub bytes: Vec<u8>,
}

/// Interfaces of all ports.
pub struct SlowPath {
    interfaces: Vec<PortInterface>,
    macs: Vec<[u8; 6]>,
    started: Instant,
    outgoing: VecDeque<Outgoing>,
}

struct PortInterface {
    port: u16,
    vlan: Option<u16>,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
}

impl SlowPath {
    /// An interface for each port and VLAN.
    pub fn new(devices: &[Device], now: Instant) -> Self {
        let mut interfaces = Vec::new();
        for (port, device) in devices.iter().enumerate() {
            let mut vlans: Vec<_> = device.gids.iter().map(|g| g.vlan).collect();
            vlans.sort();
            vlans.dedup();
            for vlan in vlans {
                let own: Vec<_> = device.gids.iter().filter(|g| g.vlan == vlan).collect();
                for part in own.chunks(ADDRESSES) {
                    let cidrs = part.iter().map(|g| IpCidr::new(g.ip.into(), g.prefix_len));
                    interfaces.push(PortInterface::new(port as u16, vlan, device, cidrs));
                }
            }
        }
        let macs = devices.iter().map(|d| d.mac).collect();
        SlowPath {
            interfaces,
            macs,
            started: now,
            outgoing: VecDeque::new(),
        }
    }

    /// Takes a frame; `tag` is the VLAN tag a driver has taken out of it. Returns what its sender said about
    /// itself, and on which VLAN.
    pub fn receive(
        &mut self,
        port: u16,
        frame: &[u8],
        tag: Option<u16>,
        now: Instant,
    ) -> (Option<Heard>, Option<u16>) {
        let mut untagged = Vec::new();
        let (vlan, frame) = match (tag, split_tag(frame)) {
            (Some(tci), _) => (Some(tci & 0xFFF), frame),
            (None, Some((tci, head, rest))) => {
                untagged.extend_from_slice(head);
                untagged.extend_from_slice(rest);
                (Some(tci & 0xFFF), &untagged[..])
            }
            (None, None) => (None, frame),
        };
        // VLAN 0 is a priority tag on untagged traffic.
        let vlan = vlan.filter(|v| *v != 0);
        let heard = self
            .macs
            .get(usize::from(port))
            .and_then(|mac| listen(frame, *mac));
        let time = self.time(now);
        for interface in self
            .interfaces
            .iter_mut()
            .filter(|i| i.port == port && i.vlan == vlan)
        {
            interface.receive(frame, time, &mut self.outgoing);
        }
        (heard, vlan)
    }

    /// Lets smoltcp do what is due.
    pub fn tick(&mut self, now: Instant) {
        let time = self.time(now);
        for interface in &mut self.interfaces {
            interface.poll(time, &mut self.outgoing);
        }
    }

    /// When the next tick is due.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let time = self.time(now);
        let delay = self
            .interfaces
            .iter_mut()
            .filter_map(|i| i.interface.poll_delay(time, &i.sockets))
            .min()?;
        // Never at once: what smoltcp could do now it has done.
        Some(now + Duration::from(delay).max(Duration::from_millis(5)))
    }

    /// Asks for a station's MAC address.
    pub fn ask(&mut self, target: &Target) {
        if let Some(mac) = self.macs.get(usize::from(target.port))
            && let Some(frame) = question(target, EthernetAddress(*mac))
        {
            push(&mut self.outgoing, target.port, with_tag(frame, target.vlan));
        }
    }

    /// The next frame to send.
    pub fn next_outgoing(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    fn time(&self, now: Instant) -> SmolInstant {
        SmolInstant::from_micros(now.duration_since(self.started).as_micros() as i64)
    }
}

fn push(outgoing: &mut VecDeque<Outgoing>, port: u16, bytes: Vec<u8>) {
    if outgoing.len() < OUTGOING {
        outgoing.push_back(Outgoing { port, bytes });
    }
}

impl PortInterface {
    fn new(port: u16, vlan: Option<u16>, device: &Device, cidrs: impl Iterator<Item = IpCidr>) -> Self {
        let mut wire = Wire {
            mtu: usize::from(device.mtu) + 14,
            ..Wire::default()
        };
        let mut config = Config::new(EthernetAddress(device.mac).into());
        config.random_seed = device.node_guid();
        let mut interface = Interface::new(config, &mut wire, SmolInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            for cidr in cidrs {
                // Cannot fail: the caller gives as many as fit.
                let _ = addresses.push(cidr);
            }
        });
        for gateway in &device.gateways {
            let _ = match gateway {
                IpAddr::V4(v4) => interface.routes_mut().add_default_ipv4_route(*v4),
                IpAddr::V6(v6) => interface.routes_mut().add_default_ipv6_route(*v6),
            };
        }
        PortInterface {
            port,
            vlan,
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
        }
    }

    fn receive(&mut self, frame: &[u8], time: SmolInstant, outgoing: &mut VecDeque<Outgoing>) {
        self.wire.incoming = Some(frame.to_vec());
        self.poll(time, outgoing);
        self.wire.incoming = None;
    }

    fn poll(&mut self, time: SmolInstant, outgoing: &mut VecDeque<Outgoing>) {
        self.interface.poll(time, &mut self.wire, &mut self.sockets);
        for frame in self.wire.outgoing.drain(..) {
            push(outgoing, self.port, with_tag(frame, self.vlan));
        }
    }
}

/// One frame in, some frames out.
#[derive(Debug, Default)]
struct Wire {
    mtu: usize,
    incoming: Option<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct Sink<'a>(&'a mut Vec<Vec<u8>>);

impl phy::Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Sink<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Incoming, Sink<'_>)> {
        let frame = self.incoming.take()?;
        Some((Incoming(frame), Sink(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Sink<'_>> {
        (self.outgoing.len() < OUTGOING).then_some(Sink(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Sink<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

/// The TCI, the two addresses and the rest of a frame with an 802.1Q or 802.1ad tag.
fn split_tag(frame: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = frame.split_at_checked(12)?;
    let (tag, rest) = rest.split_at_checked(TAG)?;
    let tpid = u16::from_be_bytes([tag[0], tag[1]]);
    matches!(tpid, 0x8100 | 0x88A8).then_some((u16::from_be_bytes([tag[2], tag[3]]), head, rest))
}

fn with_tag(mut frame: Vec<u8>, vlan: Option<u16>) -> Vec<u8> {
    if let Some(vlan) = vlan
        && frame.len() >= 12
    {
        let [high, low] = vlan.to_be_bytes();
        frame.splice(12..12, [0x81, 0x00, high, low]);
    }
    frame
}

/// What a frame's sender says about itself, by ARP or neighbour discovery.
fn listen(frame: &[u8], own: [u8; 6]) -> Option<Heard> {
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
            let (ip, lladdr) = match Icmpv6Repr::parse(&source, &destination, &message, &checks).ok()? {
                Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                    target_addr, lladdr, ..
                }) => {
                    // An answer to a unicast question may leave the address out.
                    (
                        target_addr,
                        lladdr.unwrap_or(RawHardwareAddress::from_bytes(frame.src_addr().as_bytes())),
                    )
                }
                Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { lladdr, .. }) => (source, lladdr?),
                _ => return None,
            };
            Some(Heard {
                ip: ip.into(),
                mac: lladdr.as_bytes().try_into().ok()?,
                to_us,
            })
        }
        _ => None,
    }
}

/// The ARP request or neighbour solicitation for a target.
fn question(target: &Target, own: EthernetAddress) -> Option<Vec<u8>> {
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
                EthernetAddress::BROADCAST,
                EthernetProtocol::Arp,
                repr.buffer_len(),
            );
            repr.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
            Some(frame)
        }
        (IpAddr::V6(src_addr), IpAddr::V6(target_addr)) => {
            let [.., x, y, z] = target_addr.octets();
            let dst_addr = [0xFF, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xFF, x, y, z].into();
            let lladdr = Some(RawHardwareAddress::from_bytes(own.as_bytes()));
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
            let mut frame = ethernet(own, group, EthernetProtocol::Ipv6, len);
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

fn ethernet(
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Ipv4Packet, Ipv4Repr};

    use super::*;
    use crate::device::sample;

    const PEER: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 99]);

    fn slow(vlan: Option<u16>) -> (SlowPath, Instant) {
        let now = Instant::now();
        let mut device = sample("rnic0", 1, &[("10.0.0.1", 24), ("fd00::1", 64)]);
        device.gids.iter_mut().for_each(|g| g.vlan = vlan);
        (SlowPath::new(&[device], now), now)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The question a peer asks for our address.
    fn asked(target: &str, from: &str) -> Vec<u8> {
        let target = Target {
            port: 0,
            vlan: None,
            ip: ip(target),
            from: ip(from),
        };
        question(&target, PEER).unwrap()
    }

    /// The frames that wait to be sent.
    fn sent(slow: &mut SlowPath) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| slow.next_outgoing())
            .map(|o| o.bytes)
            .collect()
    }

    /// What the answers say to the peer about their sender.
    fn told(frames: &[Vec<u8>]) -> Vec<Heard> {
        frames.iter().filter_map(|frame| listen(frame, PEER.0)).collect()
    }

    #[test]
    fn arp_and_neighbour_solicitations_are_answered_and_the_asker_is_learned() {
        for (ours, theirs) in [("10.0.0.1", "10.0.0.9"), ("fd00::1", "fd00::9")] {
            let (mut slow, now) = slow(None);
            let (heard, vlan) = slow.receive(0, &asked(ours, theirs), None, now);
            assert_eq!(
                heard,
                Some(Heard {
                    ip: ip(theirs),
                    mac: PEER.0,
                    to_us: false
                })
            );
            assert_eq!(vlan, None);
            let answer = Heard {
                ip: ip(ours),
                mac: [2, 0, 0, 0, 0, 1],
                to_us: true,
            };
            assert!(told(&sent(&mut slow)).contains(&answer), "{ours} was not told");
        }
    }

    #[test]
    fn addresses_of_others_are_not_answered_for() {
        for (other, theirs) in [("10.0.0.2", "10.0.0.9"), ("fd00::2", "fd00::9")] {
            let (mut slow, now) = slow(None);
            slow.receive(0, &asked(other, theirs), None, now);
            assert!(told(&sent(&mut slow)).iter().all(|heard| heard.ip != ip(other)));
        }
    }

    #[test]
    fn an_echo_request_is_answered() {
        let (mut slow, now) = slow(None);
        slow.receive(0, &asked("10.0.0.1", "10.0.0.9"), None, now);
        sent(&mut slow);
        let echo = Icmpv4Repr::EchoRequest {
            ident: 7,
            seq_no: 1,
            data: b"ping",
        };
        let packet = Ipv4Repr {
            src_addr: [10, 0, 0, 9].into(),
            dst_addr: [10, 0, 0, 1].into(),
            next_header: IpProtocol::Icmp,
            payload_len: echo.buffer_len(),
            hop_limit: 64,
        };
        let checks = ChecksumCapabilities::default();
        let own = EthernetAddress([2, 0, 0, 0, 0, 1]);
        let mut frame = ethernet(PEER, own, EthernetProtocol::Ipv4, 20 + echo.buffer_len());
        packet.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &checks);
        echo.emit(&mut Icmpv4Packet::new_unchecked(&mut frame[34..]), &checks);
        slow.receive(0, &frame, None, now);
        let answers = sent(&mut slow);
        let answered = answers.iter().any(|frame| {
            let Ok(icmp) = Icmpv4Packet::new_checked(&frame[34..]) else {
                return false;
            };
            matches!(
                Icmpv4Repr::parse(&icmp, &checks),
                Ok(Icmpv4Repr::EchoReply {
                    ident: 7,
                    seq_no: 1,
                    data: b"ping"
                })
            )
        });
        assert!(answered, "{answers:?}");
    }

    #[test]
    fn tagged_frames_are_answered_with_the_tag_wherever_the_driver_left_it() {
        let question = asked("10.0.0.1", "10.0.0.9");
        for (frame, tag) in [
            (question.clone(), Some(5)),
            (with_tag(question.clone(), Some(5)), None),
        ] {
            let (mut slow, now) = slow(Some(5));
            let (_, vlan) = slow.receive(0, &frame, tag, now);
            assert_eq!(vlan, Some(5));
            let answers = sent(&mut slow);
            assert!(
                answers
                    .iter()
                    .any(|f| split_tag(f).is_some_and(|(tci, ..)| tci == 5)),
                "{answers:?}"
            );
        }
        let (mut slow, now) = slow(Some(5));
        slow.receive(0, &question, None, now);
        assert!(
            told(&sent(&mut slow)).is_empty(),
            "an untagged question for a tagged address"
        );
    }

    #[test]
    fn our_questions_are_those_others_answer() {
        for (ours, theirs) in [("10.0.0.1", "10.0.0.9"), ("fd00::1", "fd00::9")] {
            let (mut slow, now) = slow(None);
            slow.ask(&Target {
                port: 0,
                vlan: None,
                ip: ip(theirs),
                from: ip(ours),
            });
            let question = sent(&mut slow).pop().unwrap();
            let peer = sample("peer", 99, &[("10.0.0.9", 24), ("fd00::9", 64)]);
            let mut peer = SlowPath::new(&[peer], now);
            peer.receive(0, &question, None, now);
            let answer = sent(&mut peer)
                .into_iter()
                .find(|f| listen(f, [2, 0, 0, 0, 0, 1]).is_some_and(|h| h.to_us));
            let (heard, _) = slow.receive(0, &answer.expect("no answer"), None, now);
            assert_eq!(
                heard,
                Some(Heard {
                    ip: ip(theirs),
                    mac: PEER.0,
                    to_us: true
                })
            );
        }
    }

    proptest! {
        #[test]
        fn random_frames_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..120),
            ethertype in prop::sample::select(vec![[8u8, 0], [8, 6], [0x86, 0xDD], [0x81, 0]]),
        ) {
            let (mut slow, now) = slow(None);
            let mut frame = vec![0xFF; 12];
            frame.extend_from_slice(&ethertype);
            frame.extend_from_slice(&bytes);
            for len in [0, 5, 13, 14, frame.len()] {
                slow.receive(0, &frame[..len.min(frame.len())], None, now);
            }
        }
    }
}
