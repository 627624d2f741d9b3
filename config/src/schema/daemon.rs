//! Sections of the daemon itself: `control`, `log`, `eal`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::value::{ByteSize, SocketMode, TimeSpan};

/// Sockets of the control plane.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    /// Socket on which clients ask for verbs. Absolute path, at most 107 bytes. Default
    /// `/run/rnic/rnicd.sock`.
    pub socket: PathBuf,
    /// Socket on which `rnicctl` asks for status. Absolute path, at most 107 bytes, not the same as `socket`.
    /// Default `/run/rnic/admin.sock`.
    pub admin_socket: PathBuf,
    /// Permission bits of `socket`, as a quoted octal string. Whoever may write to it may use the devices.
    /// Default "0660".
    pub socket_mode: SocketMode,
    /// Group that owns `socket`. Default: the group the daemon runs as.
    pub socket_group: Option<String>,
    /// How long the MAC address of a neighbour is believed without a sign of it. One that a queue pair or an
    /// address handle uses is then asked again, others are forgotten some time later. 1s to 60min. Default 30s.
    pub neighbour_lifetime: TimeSpan,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: "/run/rnic/rnicd.sock".into(),
            admin_socket: "/run/rnic/admin.sock".into(),
            socket_mode: SocketMode::USER_AND_GROUP,
            socket_group: None,
            neighbour_lifetime: TimeSpan::micros(30_000_000),
        }
    }
}

/// What the daemon logs, and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Least severe messages that are logged. Default `info`.
    pub level: LogLevel,
    /// Form of the log. Default `text`.
    pub format: LogFormat,
}

/// Severity of a log message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is wrong, but work goes on.
    Warn,
    /// What an operator wants to see: start, ports, clients.
    #[default]
    Info,
    /// What a developer wants to see: each verb.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The name, as tracing's filters take it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One readable line per message.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// How DPDK's environment abstraction layer is started.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Eal {
    /// Where packet memory comes from. Default `none`.
    pub memory: Memory,
    /// Packet memory taken at start. Whole MiB (with hugepages, whole 2MiB), 64MiB to 1TiB. Default 512MiB.
    pub memory_size: ByteSize,
    /// Further EAL arguments, one string each, such as `--log-level=lib.eal:debug`. Those that rnicd sets
    /// itself are refused.
    pub extra_args: Vec<String>,
    /// Whether DPDK scans the PCI bus. Default: only if a port is a PCI address.
    pub pci: Option<bool>,
}

impl Default for Eal {
    fn default() -> Self {
        Self {
            memory: Memory::None,
            memory_size: ByteSize::mib(512),
            extra_args: Vec::new(),
            pci: None,
        }
    }
}

/// Where packet memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// Ordinary pages. Needs no set-up; costs little on software ports.
    #[default]
    None,
    /// Hugepages, which must have been reserved before the daemon starts. For real NICs.
    Hugepages,
}
