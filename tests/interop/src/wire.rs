//! The wire between `rnicd` and the guest: a tap device.
use std::fmt;
use std::net::IpAddr;

/// The tap. QEMU holds one side of it; `rnicd`'s port is on the other, by af_packet.
pub const TAP: &str = "tap0";
/// Link MTU at both ends, in bytes: what a path MTU of 4096 needs.
pub const LINK_MTU: u32 = 4200;

/// What the wire does to frames, in both directions alike.
#[derive(Debug)]
pub struct Wire {
    /// Short name.
    pub name: &'static str,
    /// Arguments of `tc qdisc … netem`.
    pub netem: Option<&'static str>,
    /// Whether frames get lost.
    pub loses: bool,
    /// Whether they are repeated, and change their order.
    pub disorders: bool,
}

impl Wire {
    /// All of them.
    pub const ALL: [Wire; 5] = [
        Wire {
            name: "clean",
            netem: None,
            loses: false,
            disorders: false,
        },
        Wire {
            name: "loss 1%",
            netem: Some("loss 1%"),
            loses: true,
            disorders: false,
        },
        Wire {
            name: "loss 10%",
            netem: Some("loss 10%"),
            loses: true,
            disorders: false,
        },
        Wire {
            name: "disorder",
            netem: Some("delay 1ms reorder 30% duplicate 5%"),
            loses: false,
            disorders: true,
        },
        Wire {
            name: "all",
            netem: Some("loss 1% delay 1ms reorder 30% duplicate 5%"),
            loses: true,
            disorders: true,
        },
    ];
}

/// Family of the addresses on the wire.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The guest's address. `rnicd`'s end with 1.
    pub fn theirs(self) -> IpAddr {
        match self {
            Family::V4 => [10, 0, 0, 2].into(),
            Family::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, 2].into(),
        }
    }

    /// Length of the network's prefix.
    pub fn prefix(self) -> u8 {
        match self {
            Family::V4 => 24,
            Family::V6 => 64,
        }
    }

    /// Index of `rnicd`'s GID.
    pub fn our_gid_index(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        })
    }
}
