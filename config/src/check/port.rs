//! Checks within one port.

use std::net::IpAddr;

use super::Checks;
use crate::diagnostic::KeyPath;
use crate::schema::{AF_XDP_MAX_MTU, Device, FaultRates, HEADER_ROOM, Memory, Port, Rss};
use crate::value::{ByteSize, TimeSpan, station};

/// Smallest link MTU of IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u16 = 1280;
/// Frame size of net_af_packet and buffer size of net_memif, in bytes, when the device string gives none.
const DEFAULT_FRAME_SIZE: u32 = 2048;
/// What af_packet puts before each frame: the aligned header of TPACKET_V2 and its socket address.
const AF_PACKET_HEADER: u32 = 66;

pub(super) fn check(checks: &mut Checks<'_>, index: usize) {
    let port = &checks.config.ports[index];
    let key = KeyPath::from("ports").index(index);
    if let Device::Vdev(vdev) = &port.device {
        vdev_form(checks, &key.key("device").key("vdev"), vdev);
    }
    mtu(checks, &key, port);
    queues(checks, &key, port);
    addresses(checks, &key, port);
    gateways(checks, &key.key("gateways"), port);
    neighbours(checks, &key.key("neighbours"), port);
    if let Some(congestion) = &port.congestion {
        super::congestion::check(checks, &key.key("congestion"), congestion);
    }
    if let Some(capture) = &port.capture {
        checks.within(
            key.key("capture").key("limit"),
            capture.limit,
            ByteSize::kib(64)..=ByteSize::gib(1 << 10),
        );
    }
    if let Some(faults) = &port.faults {
        let longest = TimeSpan::micros(10_000_000);
        let key = key.key("faults");
        checks.within(
            key.key("rx").key("delay"),
            faults.rx.delay,
            TimeSpan::default()..=longest,
        );
        checks.within(
            key.key("tx").key("delay"),
            faults.tx.delay,
            TimeSpan::default()..=longest,
        );
        if [faults.rx, faults.tx]
            .iter()
            .any(|rates| *rates != FaultRates::default())
        {
            let message = format!("{} damages frames on purpose", port.name);
            checks.warn(key, message, "remove `faults` except for tests");
        }
    }
}

fn vdev_form(checks: &mut Checks<'_>, key: &KeyPath, vdev: &str) {
    let name = vdev.split(',').next().unwrap_or_default();
    let named = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.ends_with(|c: char| c.is_ascii_digit())
        && name.len() < 64
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !named || vdev.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let help =
            "write a driver with a number, then its arguments without spaces: `net_af_packet0,iface=eth0`";
        checks.error(key.clone(), "this does not name a virtual device", help);
    }
}

fn mtu(checks: &mut Checks<'_>, key: &KeyPath, port: &Port) {
    let key = key.key("mtu");
    if port.addresses.iter().any(|a| a.address.ip().is_ipv6()) && port.link_mtu() < IPV6_MIN_MTU {
        let message = format!("the port has an IPv6 address, but an MTU of {}", port.mtu);
        checks.error(key.clone(), message, format!("IPv6 needs {IPV6_MIN_MTU} or more"));
    }
    let mtu = u32::from(port.mtu);
    match port.device.vdev_driver() {
        Some("net_af_xdp") if port.mtu > AF_XDP_MAX_MTU => {
            let message = format!(
                "net_af_xdp takes {AF_XDP_MAX_MTU} bytes at most: the path MTU will be {}",
                port.path_mtu()
            );
            checks.warn(
                key,
                message,
                format!("set it to {AF_XDP_MAX_MTU} or less; path MTU 4096 needs another driver"),
            );
        }
        Some("net_af_packet") => {
            let needed = mtu + 18 + AF_PACKET_HEADER;
            frame_size(checks, key, port, "framesz", needed);
        }
        Some("net_memif") => frame_size(checks, key, port, "bsize", mtu + 18),
        _ => {}
    }
}

fn frame_size(checks: &mut Checks<'_>, key: KeyPath, port: &Port, argument: &str, needed: u32) {
    let size = port
        .device
        .vdev_arg(argument)
        .map_or(Some(DEFAULT_FRAME_SIZE), |size| size.parse().ok());
    if size.is_some_and(|size| size < needed) {
        let enough = needed.next_multiple_of(64).next_power_of_two();
        let message =
            format!("frames of this MTU do not fit the buffers of the device, which need {needed} bytes");
        checks.warn(
            key,
            message,
            format!("add `{argument}={enough}` to the device, or make the MTU smaller"),
        );
    }
}

fn queues(checks: &mut Checks<'_>, key: &KeyPath, port: &Port) {
    let poll_cores = checks.config.poll_core_count();
    let queues = port.queue_count(poll_cores);
    for (name, descriptors) in [
        ("rx_descriptors", port.rx_descriptors),
        ("tx_descriptors", port.tx_descriptors),
    ] {
        if !descriptors.is_power_of_two() {
            let above = u32::from(descriptors).next_power_of_two();
            let help = format!("use {} or {above}", above / 2);
            checks.error(
                key.key(name),
                format!("{descriptors} is not a power of two"),
                help,
            );
        }
    }
    if queues < poll_cores {
        let message = format!(
            "{} has fewer queues ({queues}) than there are poll cores ({poll_cores})",
            port.name
        );
        let help =
            "frames for the other cores are handed over, which costs time; add queues or poll on fewer cores";
        checks.warn(key.key("queues"), message, help);
    }
    if port.rss == Rss::On && matches!(port.device, Device::Ring(_)) {
        checks.error(
            key.key("rss"),
            "a ring cannot spread frames by RSS",
            "use `auto` or `off`",
        );
    } else if port.rss == Rss::On && queues == 1 {
        checks.warn(
            key.key("rss"),
            "with one queue there is nothing to spread",
            "use `auto`, or more queues",
        );
    }
    let (buffers, receive) = (
        port.buffer_count(poll_cores),
        u32::from(queues) * u32::from(port.rx_descriptors),
    );
    if buffers <= receive {
        let message = format!("the receive queues alone hold {receive} buffers");
        let help = format!(
            "use {} or more, or leave it out",
            port.descriptor_count(poll_cores) + 1024
        );
        checks.error(key.key("buffers"), message, help);
    } else if buffers < port.descriptor_count(poll_cores) {
        let message = format!(
            "the queues can hold {} buffers",
            port.descriptor_count(poll_cores)
        );
        checks.warn(
            key.key("buffers"),
            message,
            "with fewer buffers, sending may stop receiving; leave it out",
        );
    }
}

fn addresses(checks: &mut Checks<'_>, key: &KeyPath, port: &Port) {
    follow_netdev(checks, &key.key("follow_netdev"), port);
    if port.addresses.is_empty() && !port.follow_netdev {
        let message = format!("{} has no address and so no GID: no peer can reach it", port.name);
        checks.warn(
            key.key("addresses"),
            message,
            "add `addresses: [\"10.0.0.1/24\"]`",
        );
    }
}

fn follow_netdev(checks: &mut Checks<'_>, key: &KeyPath, port: &Port) {
    if !port.follow_netdev {
        return;
    }
    if port.device.netdev().is_none() {
        let message = format!(
            "the device of {} has no kernel interface whose addresses it could take",
            port.name
        );
        let help = "remove it and list the `addresses`; net_af_packet, net_af_xdp and net_tap with `remote` have one";
        checks.error(key.clone(), message, help);
    } else if port.device.vdev_driver() == Some("net_tap") && port.device.vdev_arg("remote").is_none() {
        let message = "the interface of a tap is the station at its other end, not the port itself";
        let help = "remove it and list the port's own `addresses`, in the network of the tap's";
        checks.error(key.clone(), message, help);
    } else if port.mac.is_some() && port.device.shares_frames_with_kernel() {
        let message =
            "the kernel answers for these addresses with the interface's MAC address, not with `mac`";
        checks.error(
            key.clone(),
            message,
            "remove `mac`, or give the interface that MAC address",
        );
    }
}

fn gateways(checks: &mut Checks<'_>, key: &KeyPath, port: &Port) {
    for (index, gateway) in port.gateways.iter().enumerate() {
        let key = key.index(index);
        let on_link = |ip: IpAddr| port.addresses.iter().any(|a| a.address.is_on_link(ip));
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if let Err(why) = station(*gateway) {
            checks.error(key, why.to_string(), "give the address of a router on the link");
        } else if port.addresses.iter().any(|a| a.address.ip() == *gateway) {
            checks.error(
                key,
                format!("{gateway} is the port itself"),
                "give the address of a router on the link",
            );
        } else if !link_local && !port.follow_netdev && !on_link(*gateway) {
            let help = "give an address inside one of the networks of `addresses`";
            checks.error(
                key,
                format!("the gateway {gateway} is in none of the port's networks"),
                help,
            );
        } else if port.gateways[..index]
            .iter()
            .any(|other| other.is_ipv4() == gateway.is_ipv4())
        {
            checks.error(
                key,
                "this is a second gateway of the same IP version",
                "keep one of each version",
            );
        }
    }
}

fn neighbours(checks: &mut Checks<'_>, key: &KeyPath, port: &Port) {
    for (index, neighbour) in port.neighbours.iter().enumerate() {
        let key = key.index(index).key("ip");
        let ip = neighbour.ip;
        if let Err(why) = station(ip) {
            checks.error(key, why.to_string(), "give the address of a station on the link");
        } else if port.addresses.iter().any(|a| a.address.ip() == ip) {
            checks.error(
                key,
                format!("{ip} is the port itself"),
                "remove it; a port knows its own address",
            );
        } else if port.neighbours[..index].iter().any(|other| other.ip == ip) {
            checks.error(
                key,
                format!("the neighbour {ip} is listed twice"),
                "keep the one that is right",
            );
        }
    }
}

/// Whether the packet buffers of all ports fit the memory DPDK gets.
pub(super) fn buffer_memory(checks: &mut Checks<'_>) {
    // Each buffer has a header of two cache lines, and the pool some more for itself.
    const OVERHEAD: u64 = 192;
    let config = checks.config;
    let poll_cores = config.poll_core_count();
    let bytes: u64 = config
        .ports
        .iter()
        .map(|port| u64::from(port.buffer_count(poll_cores)) * (u64::from(port.buffer_room()) + OVERHEAD))
        .sum();
    let unit = if config.eal.memory == Memory::Hugepages {
        2 << 20
    } else {
        1 << 20
    };
    // A sixteenth is left for rings, descriptors and fragmentation.
    let needed = ByteSize((bytes + bytes / 15 + (16 << 20)).next_multiple_of(unit));
    if needed > config.eal.memory_size {
        let message = format!(
            "the packet buffers of all ports need {needed}, more than {}",
            config.eal.memory_size
        );
        let help = format!("set it to {needed} or more, or use fewer buffers, queues or descriptors");
        checks.error(KeyPath::from("eal").key("memory_size"), message, help);
    }
}

const _: () = assert!(
    HEADER_ROOM + 256 == 352,
    "the smallest MTU of the schema holds path MTU 256"
);
