//! What is asked of a port, and what became of it.

/// How a port is to be configured.
#[derive(Debug, Clone, Default)]
pub struct PortConfig {
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Largest layer-3 packet in bytes. A kernel interface behind the port keeps its own MTU; see
    /// [`EthDev::set_mtu`](crate::EthDev::set_mtu).
    pub mtu: u16,
    /// Spreading of received frames over the queues; `None` for none.
    pub rss: Option<Rss>,
    /// Have the device remove VLAN tags if it can; see [`Mbuf::stripped_vlan`](crate::Mbuf::stripped_vlan).
    pub vlan_strip: bool,
}

/// Receive-side scaling: a hash over addresses and ports of UDP, with the driver's own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rss {
    /// Hash UDP over IPv4.
    pub ipv4_udp: bool,
    /// Hash UDP over IPv6.
    pub ipv6_udp: bool,
}

impl Rss {
    /// Both families: what RoCEv2 traffic needs.
    pub const UDP: Rss = Rss {
        ipv4_udp: true,
        ipv6_udp: true,
    };
}

/// What of a [`PortConfig`] the device could do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The hashes in use; `None` if the device lacks those asked for or there is one queue only. The
    /// device then spreads frames as it likes, or not at all.
    pub rss: Option<Rss>,
    /// Whether VLAN tags are removed.
    pub vlan_strip: bool,
}
