//! `rnicctl status --json`, the part of it that is stable.
use std::collections::BTreeMap;

use serde::Deserialize;

/// State of an appliance.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// What there is.
    #[serde(flatten)]
    pub counts: Counts,
    /// Poll cores.
    pub cores: Vec<CoreStatus>,
    /// Ports.
    pub ports: Vec<PortStatus>,
}

/// How many there are of everything a client can make.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// Sessions.
    pub clients: u64,
    /// Protection domains.
    pub pds: u64,
    /// Memory regions.
    pub mrs: u64,
    /// Completion queues.
    pub cqs: u64,
    /// Queue pairs.
    pub qps: u64,
    /// Address handles.
    pub ahs: u64,
    /// Bytes of destroyed objects that a poll core may still look at.
    pub bytes_awaiting_grace: u64,
    /// How long the oldest of them has waited, in microseconds.
    pub oldest_grace_us: u64,
}

/// A poll core.
#[derive(Clone, Debug, Deserialize)]
pub struct CoreStatus {
    /// Number.
    pub id: u32,
    /// `running`, `sleeping`, …
    pub state: String,
    /// Epoch last reported.
    pub epoch: u64,
    /// TSC cycles with work.
    pub busy_cycles: u64,
    /// TSC cycles without.
    pub idle_cycles: u64,
}

/// A port.
#[derive(Clone, Debug, Deserialize)]
pub struct PortStatus {
    /// Name: `rnic0`.
    pub name: String,
    /// `up`, …
    pub state: String,
    /// Link MTU in bytes.
    pub mtu: u32,
    /// GIDs as text.
    pub gids: Vec<String>,
    /// `off`, `fixed` or `dcqcn`.
    pub congestion: String,
    /// What was counted about congestion.
    pub counters: BTreeMap<String, u64>,
}
