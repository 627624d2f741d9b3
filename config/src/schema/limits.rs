//! Section `limits`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::value::ByteSize;

/// What clients may use up. A request beyond a limit is refused; nobody else is affected.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Clients connected at the same time. 1 to 4096. Default 64.
    #[schemars(range(min = 1, max = 4096))]
    pub clients: u32,
    /// Queue pairs of all clients and all devices together. 1 to 262142. Default 16384.
    #[schemars(range(min = 1, max = 262_142))]
    pub qps: u32,
    /// Memory of destroyed objects that still waits for poll cores to pass a quiescent state; beyond it,
    /// creating anything is refused for a moment. 1MiB to 16GiB. Default 64MiB.
    pub bytes_awaiting_grace: ByteSize,
    /// Quota of each client.
    pub per_client: PerClient,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 64,
            qps: 16384,
            bytes_awaiting_grace: ByteSize::mib(64),
            per_client: PerClient::default(),
        }
    }
}

/// Quota of each client.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PerClient {
    /// Queue pairs. 1 to 262142. Default 1024.
    #[schemars(range(min = 1, max = 262_142))]
    pub qps: u32,
    /// Completion queues. 1 to 65536. Default 1024.
    #[schemars(range(min = 1, max = 65536))]
    pub cqs: u32,
    /// Memory regions. 1 to 65536. Default 4096.
    #[schemars(range(min = 1, max = 65536))]
    pub mrs: u32,
    /// Memory windows. 1 to 65536. Default 4096.
    #[schemars(range(min = 1, max = 65536))]
    pub mws: u32,
    /// Protection domains. 1 to 4096. Default 64.
    #[schemars(range(min = 1, max = 4096))]
    pub pds: u32,
    /// Address handles. 1 to 65536. Default 1024.
    #[schemars(range(min = 1, max = 65536))]
    pub ahs: u32,
    /// Shared receive queues. 1 to 65536. Default 256.
    #[schemars(range(min = 1, max = 65536))]
    pub srqs: u32,
    /// Memory registered in all of its memory regions. 4KiB to 16TiB. Default 8GiB.
    pub registered_memory: ByteSize,
    /// Shared memory of its queues, made by the daemon. 64KiB to 1TiB. Default 256MiB.
    pub queue_memory: ByteSize,
    /// Work requests in one send or receive queue. 1 to 32768. Default 8192.
    #[schemars(range(min = 1, max = 32768))]
    pub wr_depth: u32,
    /// Completions in one completion queue. 1 to 4194304. Default 65536.
    #[schemars(range(min = 1, max = 4_194_304))]
    pub cq_depth: u32,
    /// This client's share of the total `bytes_awaiting_grace`. 64KiB to 16GiB. Default 16MiB.
    pub bytes_awaiting_grace: ByteSize,
}

impl Default for PerClient {
    fn default() -> Self {
        Self {
            qps: 1024,
            cqs: 1024,
            mrs: 4096,
            mws: 4096,
            pds: 64,
            ahs: 1024,
            srqs: 256,
            registered_memory: ByteSize::gib(8),
            queue_memory: ByteSize::mib(256),
            wr_depth: 8192,
            cq_depth: 65536,
            bytes_awaiting_grace: ByteSize::mib(16),
        }
    }
}
