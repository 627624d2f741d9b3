//! The wire between `rnicd` and the guest: a tap device.
use std::fmt;
use std::net::IpAddr;

/// The tap. QEMU holds one side of it; `rnicd`'s port is on the other, by af_packet.
pub const TAP: &str = "tap0";
/// Link MTU at both ends, in bytes: what a path MTU of 4096 needs.
pub const LINK_MTU: u32 = 4200;

/// What the wire does to frames.
#[derive(Debug)]
pub struct Wire {
    /// Short name.
    pub name: &'static str,
    /// Arguments of `tc qdisc … netem`, for frames from the guest and for those to it.
    pub netem: [Option<&'static str>; 2],
}

const ONE_PERCENT: Option<&str> = Some("loss 1%");
const TEN_PERCENT: Option<&str> = Some("loss 10%");
const DISORDER: Option<&str> = Some("delay 1ms reorder 30% duplicate 5%");
const ALL: Option<&str> = Some("loss 1% delay 1ms reorder 30% duplicate 5%");

impl Wire {
    /// All of them.
    pub const ALL: [Wire; 9] = [
        Wire::new("clean", [None, None]),
        Wire::new("loss 1%", [ONE_PERCENT, ONE_PERCENT]),
        Wire::new("loss 10%", [TEN_PERCENT, TEN_PERCENT]),
        Wire::new("disorder", [DISORDER, DISORDER]),
        Wire::new("all", [ALL, ALL]),
        Wire::new("1% to rnic", [ONE_PERCENT, None]),
        Wire::new("1% to rxe", [None, ONE_PERCENT]),
        Wire::new("10% to rnic", [TEN_PERCENT, None]),
        Wire::new("10% to rxe", [None, TEN_PERCENT]),
    ];

    const fn new(name: &'static str, netem: [Option<&'static str>; 2]) -> Wire {
        Wire { name, netem }
    }

    /// Whether frames get lost that go this way: 0 from the guest, 1 to it.
    pub fn loses(&self, way: usize) -> bool {
        self.netem[way].is_some_and(|netem| netem.contains("loss"))
    }

    /// Whether those are repeated, and change their order.
    pub fn disorders(&self, way: usize) -> bool {
        self.netem[way].is_some_and(|netem| netem.contains("reorder"))
    }

    /// Whether it does nothing to any frame.
    pub fn is_clean(&self) -> bool {
        self.netem == [None, None]
    }
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
