//! The slow path: frames that are not RoCE. smoltcp answers ARP, neighbour discovery and echo requests; this module
//! carries frames to and from it, takes VLAN tags off and puts them on, and listens to what stations tell about
//! themselves.

mod discovery;
mod tag;

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use smoltcp::{
    iface::{Config, Interface, Route, SocketSet},
    phy::{self, DeviceCapabilities, Medium},
    time::Instant as SmolInstant,
    wire::{EthernetAddress, IpCidr},
};

use self::{
    discovery::{listen, question},
    tag::{split_tag, with_tag},
};
use crate::{
    device::Device,
    neighbour::{Question, Target},
};

/// Addresses one smoltcp interface holds.
const ADDRESSES: usize = 8;
/// Answers that wait for the control thread; more are dropped.
const OUTGOING: usize = 256;

/// What a station said about itself.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its address.
    pub ip: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// It was said to us.
    pub to_us: bool,
    /// It is to replace what was said before: all ARP is, an advertisement says so itself (RFC 4861, 4.4).
    pub overrides: bool,
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
    /// Multicast groups that QPs of a port are attached to.
    groups: Vec<(u16, IpAddr)>,
    /// When smoltcp has something to do, unless `stale`.
    due: Option<Instant>,
    /// Something has happened since `due` was told.
    stale: bool,
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
        let mut slow = SlowPath {
            interfaces: Vec::new(),
            macs: devices.iter().map(|d| d.mac).collect(),
            started: now,
            outgoing: VecDeque::new(),
            groups: Vec::new(),
            due: None,
            stale: true,
        };
        for (port, device) in devices.iter().enumerate() {
            slow.set_addresses(port as u16, device);
        }
        slow
    }

    /// A port has come.
    pub fn add_port(&mut self, port: u16, device: &Device) {
        let at = usize::from(port);
        if self.macs.len() <= at {
            self.macs.resize(at + 1, [0; 6]);
        }
        self.macs[at] = device.mac;
        self.set_addresses(port, device);
    }

    /// A port has gone: nothing is answered there, and nothing waits to be sent there.
    pub fn remove_port(&mut self, port: u16) {
        self.interfaces.retain(|interface| interface.port != port);
        self.outgoing.retain(|out| out.port != port);
    }

    /// The addresses of a port have changed: answers for those it has now, the kernel's own apart.
    pub fn set_addresses(&mut self, port: u16, device: &Device) {
        self.stale = true;
        self.interfaces.retain(|interface| interface.port != port);
        let answered: Vec<_> = device.gids.iter().filter(|g| !g.kernel_answers).collect();
        let mut vlans: Vec<_> = answered.iter().map(|g| g.vlan).collect();
        vlans.sort();
        vlans.dedup();
        for vlan in vlans {
            let own: Vec<_> = answered.iter().filter(|g| g.vlan == vlan).collect();
            for part in own.chunks(ADDRESSES) {
                let cidrs = part.iter().map(|g| IpCidr::new(g.ip.into(), g.prefix_len));
                let mut interface = PortInterface::new(port, vlan, device, cidrs);
                for (_, group) in self.groups.iter().filter(|(of, _)| *of == port) {
                    interface.join(*group);
                }
                self.interfaces.push(interface);
            }
        }
    }

    /// Tells the link of a port that stations here have joined a multicast group (IGMP, MLD), and keeps telling routers that
    /// ask. A port whose frames the kernel sees too, and whose addresses are all the kernel's, has nobody here to say so.
    pub fn join(&mut self, port: u16, group: IpAddr) {
        if self.groups.contains(&(port, group)) {
            return;
        }
        self.groups.push((port, group));
        self.stale = true;
        for interface in self
            .interfaces
            .iter_mut()
            .filter(|interface| interface.port == port)
        {
            interface.join(group);
        }
    }

    /// The last of them has left it.
    pub fn leave(&mut self, port: u16, group: IpAddr) {
        self.groups.retain(|joined| *joined != (port, group));
        self.stale = true;
        for interface in self
            .interfaces
            .iter_mut()
            .filter(|interface| interface.port == port)
        {
            // It was joined when there was room.
            let _ = interface.interface.leave_multicast_group(group);
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
        self.stale = true;
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
            interface.receive(frame, heard.map(|station| station.ip), time, &mut self.outgoing);
        }
        (heard, vlan)
    }

    /// Lets smoltcp do what is due.
    pub fn tick(&mut self, now: Instant) {
        if !self.stale && self.due.is_none_or(|due| now < due) {
            return;
        }
        self.stale = true;
        let time = self.time(now);
        for interface in &mut self.interfaces {
            interface.poll(time, &mut self.outgoing);
        }
    }

    /// When the next tick is due.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if std::mem::take(&mut self.stale) {
            self.due = self.next_due(now);
        }
        self.due
    }

    fn next_due(&mut self, now: Instant) -> Option<Instant> {
        let time = self.time(now);
        let delay = self
            .interfaces
            .iter_mut()
            .filter_map(|i| i.interface.poll_delay(time, &i.sockets))
            .min()?;
        // Never at once: what smoltcp could do now it has done.
        Some(now + Duration::from(delay).max(Duration::from_millis(5)))
    }

    /// Asks for a station's MAC address: everyone, or the station itself.
    pub fn ask(&mut self, target: &Target, whom: Question) {
        if let Some(mac) = self.macs.get(usize::from(target.port))
            && let Some(frame) = question(target, whom, EthernetAddress(*mac))
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

    /// Joins a multicast group, if the interface has an address of its family.
    fn join(&mut self, group: IpAddr) {
        let of_family = |cidr: &IpCidr| IpAddr::from(cidr.address()).is_ipv4() == group.is_ipv4();
        if !self.interface.ip_addrs().iter().any(of_family) {
            return;
        }
        if self.interface.join_multicast_group(group).is_err() {
            tracing::warn!(port = self.port, %group, "too many multicast groups; the link is not told of this one");
        }
    }

    /// `speaker` is who said something about itself by this frame. It is on the link, so an answer goes to it directly
    /// (RFC 4861, 7.2.4), though its address, a link-local one for example, may be in none of our networks.
    fn receive(
        &mut self,
        frame: &[u8],
        speaker: Option<IpAddr>,
        time: SmolInstant,
        outgoing: &mut VecDeque<Outgoing>,
    ) {
        let host = speaker.filter(IpAddr::is_ipv6).map(|ip| Route {
            cidr: IpCidr::new(ip.into(), 128),
            via_router: ip.into(),
            preferred_until: None,
            expires_at: None,
        });
        if let Some(host) = host {
            let routes = self.interface.routes_mut();
            routes.update(|all| {
                // Cannot fail: there is room for two gateways and this one.
                let _ = all.push(host);
            });
        }
        self.wire.incoming = Some(frame.to_vec());
        self.poll(time, outgoing);
        self.wire.incoming = None;
        if let Some(host) = host {
            let routes = self.interface.routes_mut();
            routes.update(|all| all.retain(|route| route.cidr != host.cidr));
        }
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

#[cfg(test)]
mod tests;
