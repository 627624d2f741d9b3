//! From the configuration to opened ports: the one place where both are known.

use rnic_config::{Config, Device, Port};
use rnic_engine::port::{HeapPool, OpenPort, RingEnd, ring_pair_of};

/// Why the ports cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// A device that needs DPDK.
    #[error(
        "{port}: this rnicd was built without DPDK and has ring ports only; build it with the feature `dpdk`"
    )]
    NoDpdk {
        /// The port.
        port: String,
    },
    /// A ring without its other end, which the configuration's own check excludes.
    #[error("{port}: its ring peer {peer} is not configured")]
    NoPeer {
        /// The port.
        port: String,
        /// The missing peer.
        peer: String,
    },
}

/// Opens every port, in the order of the configuration.
pub fn open(config: &Config) -> Result<Vec<OpenPort>, PortsError> {
    let mut opened: Vec<Option<OpenPort>> = config.ports.iter().map(|_| None).collect();
    for (index, port) in config.ports.iter().enumerate() {
        if opened[index].is_some() {
            continue;
        }
        let Device::Ring(ring) = &port.device else {
            return Err(PortsError::NoDpdk {
                port: port.name.to_string(),
            });
        };
        let peer = config
            .ports
            .iter()
            .position(|p| p.name == ring.peer)
            .ok_or_else(|| PortsError::NoPeer {
                port: port.name.to_string(),
                peer: ring.peer.to_string(),
            })?;
        let other = &config.ports[peer];
        let cores = config.poll_core_count();
        let queues = port.queue_count(cores).min(other.queue_count(cores)).min(cores);
        let frames = usize::from(port.tx_descriptors.max(other.tx_descriptors));
        let (a, b) = ring_pair_of(ring_end(port, cores), ring_end(other, cores), queues, frames);
        (opened[index], opened[peer]) = (Some(a), Some(b));
    }
    Ok(opened.into_iter().flatten().collect())
}

fn ring_end(port: &Port, cores: u16) -> RingEnd {
    RingEnd {
        name: port.name.to_string(),
        mac: port.mac.map(|mac| mac.0),
        mtu: port.link_mtu(),
        pool: HeapPool::for_mtu(port.buffer_count(cores), port.link_mtu()),
    }
}
