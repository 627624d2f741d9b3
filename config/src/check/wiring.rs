//! Checks between ports: names, devices, ring pairs, addresses, captures, memory.

use std::collections::HashMap;

use super::{Checks, port};
use crate::diagnostic::KeyPath;
use crate::schema::Device;

pub(super) fn check(checks: &mut Checks<'_>) {
    names(checks);
    devices(checks);
    rings(checks);
    addresses(checks);
    captures(checks);
    port::buffer_memory(checks);
}

fn key(index: usize) -> KeyPath {
    KeyPath::from("ports").index(index)
}

fn names(checks: &mut Checks<'_>) {
    let ports = &checks.config.ports;
    for (index, port) in ports.iter().enumerate() {
        if ports[..index].iter().any(|other| other.name == port.name) {
            let free = (0..=255)
                .map(|n| format!("rnic{n}"))
                .find(|name| ports.iter().all(|p| p.name.to_string() != *name));
            let help = format!("`{}` is free", free.unwrap_or_default());
            checks.error(
                key(index).key("name"),
                format!("a port before this is named {} too", port.name),
                help,
            );
        }
    }
}

fn devices(checks: &mut Checks<'_>) {
    let mut users = HashMap::new();
    let mut interfaces = HashMap::new();
    for (index, port) in checks.config.ports.iter().enumerate() {
        let Some(name) = port.device.dpdk_name() else {
            continue;
        };
        let device = key(index).key("device");
        let device = device.key(if matches!(port.device, Device::Pci(_)) {
            "pci"
        } else {
            "vdev"
        });
        if let Some(user) = users.insert(name.clone(), port.name) {
            let help =
                "give each port a device of its own; virtual devices differ by the number after their name";
            checks.error(
                device,
                format!("the device {name} is that of {user} already"),
                help,
            );
        } else if let Some(iface) = port.device.vdev_arg("iface")
            && let Some(user) = interfaces.insert(iface, port.name)
        {
            let message =
                format!("the interface {iface} is that of {user} already: both will see all of its frames");
            checks.warn(device, message, "give each port an interface of its own");
        }
    }
}

fn rings(checks: &mut Checks<'_>) {
    let config = checks.config;
    let poll_cores = config.poll_core_count();
    for (index, port) in config.ports.iter().enumerate() {
        let Device::Ring(ring) = &port.device else {
            continue;
        };
        let (name, peer_name) = (port.name, ring.peer);
        let peer_key = key(index).key("device").key("ring").key("peer");
        if peer_name == name {
            checks.error(
                peer_key,
                format!("{name} cannot be wired to itself"),
                "name the port at the other end",
            );
            continue;
        }
        let Some(other) = config.ports.iter().position(|port| port.name == peer_name) else {
            let help = format!("add a port `{peer_name}` with `device: {{ ring: {{ peer: {name} }} }}`");
            checks.error(peer_key, format!("there is no port named {peer_name}"), help);
            continue;
        };
        let peer = &config.ports[other];
        if !matches!(&peer.device, Device::Ring(back) if back.peer == name) {
            let help = format!("give {peer_name} `device: {{ ring: {{ peer: {name} }} }}`");
            checks.error(
                peer_key,
                format!("{peer_name} is not wired to {name} in turn"),
                help,
            );
            continue;
        }
        // Each pair is compared once, at the later of the two.
        if other > index {
            continue;
        }
        if port.mtu != peer.mtu {
            let message = format!(
                "{name} has MTU {}, its ring peer {peer_name} has {}",
                port.mtu, peer.mtu
            );
            checks.error(key(index).key("mtu"), message, "give both the same");
        }
        let (queues, peer_queues) = (port.queue_count(poll_cores), peer.queue_count(poll_cores));
        if queues != peer_queues {
            let message = format!("{name} has {queues} queues, its ring peer {peer_name} has {peer_queues}");
            checks.error(key(index).key("queues"), message, "give both the same");
        }
    }
}

fn addresses(checks: &mut Checks<'_>) {
    let mut owners = HashMap::new();
    for (index, port) in checks.config.ports.iter().enumerate() {
        for (position, address) in port.addresses.iter().enumerate() {
            let (ip, vlan) = (address.address.ip(), port.vlan_of(address));
            if let Some(owner) = owners.insert((ip, vlan), port.name) {
                let help = "give each port addresses of its own, or different VLANs";
                let key = key(index).key("addresses").index(position);
                checks.error(key, format!("{ip} is an address of {owner} already"), help);
            }
        }
    }
}

fn captures(checks: &mut Checks<'_>) {
    let mut writers = HashMap::new();
    for (index, port) in checks.config.ports.iter().enumerate() {
        let Some(capture) = port.active_capture() else {
            continue;
        };
        if let Some(writer) = writers.insert(&capture.file, port.name) {
            let message = format!("{writer} writes its capture to the same file");
            checks.error(
                key(index).key("capture").key("file"),
                message,
                "give each port a file of its own",
            );
        }
    }
}
