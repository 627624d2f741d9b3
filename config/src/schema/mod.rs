//! What a configuration file can say. The doc comment of each field becomes its description in the JSON
//! schema, and `range` attributes are enforced from that schema, so each limit is written once.

mod congestion;
mod cores;
mod daemon;
mod limits;
mod port;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use congestion::{Congestion, Dcqcn};
pub use cores::{Cores, Idle, IdlePolicy, PollCores};
pub use daemon::{Control, Eal, Log, LogFormat, LogLevel, Memory};
pub use limits::{Limits, PerClient};
pub use port::{
    AF_XDP_MAX_MTU, Capture, Device, FaultRates, Faults, HEADER_ROOM, Loopback, Neighbour, Port, PortAddress,
};
pub use port::{RingPeer, Rss};

use crate::Diagnostic;
use crate::locate::Source;

/// The one version of the schema.
pub const VERSION: u32 = 1;

/// The configuration of an rnic daemon, version 1. Keys are snake_case; unknown keys are errors. Any string
/// may contain `${VAR}` or `${VAR:-default}`, replaced from the environment of the daemon.
///
/// A `Config` exists only if every check passed; what is questionable but usable is in [`Config::warnings`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "rnicd configuration")]
pub struct Config {
    /// Version of this schema. Always 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Sockets of the control plane.
    #[serde(default)]
    pub control: Control,
    /// What the daemon logs, and how.
    #[serde(default)]
    pub log: Log,
    /// How DPDK's environment abstraction layer is started.
    #[serde(default)]
    pub eal: Eal,
    /// The cores that poll, and what they do when there is nothing to do.
    #[serde(default)]
    pub cores: Cores,
    /// The RDMA devices, one per port. 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    pub ports: Vec<Port>,
    /// What clients may use up.
    #[serde(default)]
    pub limits: Limits,

    /// The text this came from, so that later findings still have a line and column.
    #[serde(skip)]
    pub(crate) source: Source,
    #[serde(skip)]
    pub(crate) warnings: Vec<Diagnostic>,
}

impl Config {
    /// What is questionable but usable, each with its place in the file. Meant to be shown to the operator.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// The port clients know as `name`.
    pub fn port(&self, name: crate::DeviceName) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == name)
    }

    /// How many poll cores there are.
    pub fn poll_core_count(&self) -> u16 {
        match &self.cores.poll {
            PollCores::List(ids) => u16::try_from(ids.len()).unwrap_or(u16::MAX),
            PollCores::Auto => self.cores.count.unwrap_or(1),
        }
    }

    /// Whether DPDK scans the PCI bus: as `eal.pci` says, else if any port is a PCI address.
    pub fn uses_pci(&self) -> bool {
        self.eal.pci.unwrap_or_else(|| {
            self.ports
                .iter()
                .any(|port| matches!(port.device, Device::Pci(_)))
        })
    }
}
