//! Who is compared, where, and with whom.
use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use crate::{guest, host};

/// Where figures are taken. Those of one place say nothing about those of another.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// This machine.
    Host,
    /// A Linux kernel on an emulated machine, which has rxe.
    Guest,
}

impl Place {
    /// All of them.
    pub const ALL: [Place; 2] = [Place::Host, Place::Guest];

    /// Names of the peers here, in the order in which they are shown.
    pub fn peers(self) -> Vec<&'static str> {
        match self {
            Place::Host => host::PEERS.iter().map(|peer| peer.name).collect(),
            Place::Guest => guest::PEERS.iter().map(|peer| peer.name).collect(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::Host => "host",
            Place::Guest => "guest",
        })
    }
}

/// What is measured.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Half a round trip in microseconds: the median where the tool tells it (rnic, perftest, UCX), else the mean.
    Latency,
    /// Gbit/s in one direction.
    Bandwidth,
}

impl Metric {
    /// Both.
    pub const ALL: [Metric; 2] = [Metric::Latency, Metric::Bandwidth];

    /// How many times better one value is than another.
    pub fn better(self, value: f64, than: f64) -> f64 {
        match self {
            Metric::Latency => than / value,
            Metric::Bandwidth => value / than,
        }
    }
}

/// One that moves bytes.
pub struct Peer<K> {
    /// As it is shown.
    pub name: &'static str,
    /// The peer of this place, rnic's, that it is compared with.
    pub beside: &'static str,
    /// How it is asked.
    pub kind: K,
}

/// A peer that is ready.
pub trait Session {
    /// One measurement; `None` when the peer's tool has none of this kind.
    fn measure(&mut self, metric: Metric, size: u64) -> anyhow::Result<Option<f64>>;
}
