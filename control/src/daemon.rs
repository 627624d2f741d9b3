//! Putting a daemon together from its configuration.

use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use rnic_config::{Config, ConfigError, Control as ControlConfig, IdlePolicy, Machine};
use rnic_engine::{
    CoreConfig, Engine, EngineConfig, Limits, StartError,
    core::Idle,
    mem::install_sigbus_handler,
    port::{OpenPort, PortError},
    view::SLOT_BITS,
};
use rustix::{
    net::SocketType,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    control::{Control, Parts},
    hotplug::Opener,
    machine,
    objects::AH_RESERVE,
    placement, ports,
    socket::{ListenError, Listener},
};

/// CQ slots there are at most.
const MAX_CQS: u32 = 1 << 17;
/// Descriptors the daemon would like: a few a client and a channel.
const WANTED_DESCRIPTORS: u64 = 65_536;

/// Why a daemon cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration does not fit this machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A port cannot be opened.
    #[error(transparent)]
    Ports(#[from] PortError),
    /// The poll cores cannot be started.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// A system call failed.
    #[error("starting failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Starts the data path of a configuration and makes the control thread's loop, which the caller runs. `stop`
/// becomes readable when the daemon is to stop.
pub fn start(mut config: Config, stop: OwnedFd) -> Result<Control, DaemonError> {
    apply_environment(&mut config.control, |name| std::env::var_os(name));
    let machine = machine::look();
    let opener = move |config: &Config| ports::open(config, &machine);
    start_with(config, stop, ports::open, Arc::new(opener))
}

/// As [`start`], with ports opened by `open`, which is called once the sockets are bound: that another daemon
/// serves them is better known before devices are touched. `opener` opens those that are added later.
pub(crate) fn start_with(
    config: Config,
    stop: OwnedFd,
    open: impl FnOnce(&Config, &Machine) -> Result<Vec<OpenPort>, PortError>,
    opener: Opener,
) -> Result<Control, DaemonError> {
    let machine = machine::look();
    for warning in config.check_against(&machine)? {
        tracing::warn!("{warning}");
    }
    raise_limits();
    install_sigbus_handler()?;
    let control = &config.control;
    let listener = Listener::bind(
        &control.socket,
        SocketType::SEQPACKET,
        control.socket_mode.bits(),
        control.socket_group.as_deref(),
    )?;
    let admin_listener = Listener::bind(&control.admin_socket, SocketType::STREAM, 0o600, None)?;
    let ports = open(&config, &machine)?;
    let engine = start_engine(&config, &machine, ports)?;
    Ok(Control::new(Parts {
        config,
        engine,
        listener,
        admin_listener,
        stop,
        opener,
    })?)
}

fn start_engine(config: &Config, machine: &Machine, ports: Vec<OpenPort>) -> Result<Engine, StartError> {
    let cpus = machine.poll_cpus(config);
    placement::warn_of_distance(&cpus, &ports);
    let engine = Engine::start(engine_config(config, &cpus, ports))?;
    if config.cores.pin {
        placement::keep_off(&cpus);
    }
    Ok(engine)
}

/// The data path of a configuration, its poll cores on these CPUs.
pub(crate) fn engine_config(config: &Config, cpus: &[u16], ports: Vec<OpenPort>) -> EngineConfig {
    let idle = match config.cores.idle.policy {
        IdlePolicy::Spin => Idle::Spin,
        IdlePolicy::Pause => Idle::Pause,
        IdlePolicy::Sleep => Idle::Sleep {
            spin_for_ns: nanos(config.cores.idle.spin_for),
            max_sleep_ns: nanos(config.cores.idle.max_sleep),
        },
    };
    let pin = config.cores.pin;
    let cores = cpus
        .iter()
        .map(|cpu| CoreConfig {
            cpu: pin.then_some(usize::from(*cpu)),
            idle,
        })
        .collect();
    EngineConfig {
        cores,
        limits: limits(config),
        ports,
    }
}

fn nanos(span: rnic_config::TimeSpan) -> u64 {
    u64::try_from(span.duration().as_nanos()).unwrap_or(u64::MAX)
}

/// Sizes of the cores' tables.
fn limits(config: &Config) -> Limits {
    let limits = &config.limits;
    let all = |each: u32, max: u32| limits.clients.saturating_mul(each).min(max);
    Limits {
        clients: limits.clients,
        // Slots 0 and 1 belong to the management QPs.
        qps: (limits.qps + 2).min(1 << SLOT_BITS),
        cqs: all(limits.per_client.cqs, MAX_CQS),
        srqs: all(limits.per_client.srqs, MAX_CQS),
        // Regions and windows have their slots in common. Slot 0 is not used.
        mrs: all(
            limits.per_client.mrs + limits.per_client.mws,
            (1 << SLOT_BITS) - 1,
        ) + 1,
        // Beside the quota, those that are kept ready.
        ahs: all(limits.per_client.ahs, (1 << SLOT_BITS) - AH_RESERVE) + AH_RESERVE,
    }
}

/// `RNIC_SOCKET` and `RNIC_ADMIN_SOCKET` replace the default paths, not those a configuration names.
fn apply_environment(control: &mut ControlConfig, variable: impl Fn(&str) -> Option<OsString>) {
    let default = ControlConfig::default();
    let replace = |path: &mut PathBuf, default: PathBuf, name| {
        if *path == default
            && let Some(value) = variable(name).filter(|value| !value.is_empty())
        {
            *path = value.into();
        }
    };
    replace(&mut control.socket, default.socket, "RNIC_SOCKET");
    replace(
        &mut control.admin_socket,
        default.admin_socket,
        "RNIC_ADMIN_SOCKET",
    );
}

/// Raises what the kernel lets us raise; what it does not is no reason to stop.
fn raise_limits() {
    raise(Resource::Nofile, Some(WANTED_DESCRIPTORS));
    // DPDK locks packet memory.
    raise(Resource::Memlock, None);
}

/// `None` wanted is no limit at all.
fn raise(resource: Resource, wanted: Option<u64>) {
    let now = getrlimit(resource);
    let enough = |limit: Option<u64>| match (limit, wanted) {
        (None, _) => true,
        (Some(limit), Some(wanted)) => limit >= wanted,
        (Some(_), None) => false,
    };
    if enough(now.current) {
        return;
    }
    let maximum = if enough(now.maximum) { now.maximum } else { wanted };
    let full = Rlimit {
        current: wanted,
        maximum,
    };
    let soft = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    if setrlimit(resource, full).is_err() && setrlimit(resource, soft).is_err() {
        tracing::debug!(?resource, "the limit could not be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_replaces_default_paths_only() {
        let variable = |name: &str| Some(OsString::from(format!("/tmp/{name}")));
        let mut control = ControlConfig {
            socket: "/own/path".into(),
            ..ControlConfig::default()
        };
        apply_environment(&mut control, variable);
        assert_eq!(control.socket, PathBuf::from("/own/path"));
        assert_eq!(control.admin_socket, PathBuf::from("/tmp/RNIC_ADMIN_SOCKET"));
        let mut control = ControlConfig::default();
        apply_environment(&mut control, |_| Some(OsString::new()));
        assert_eq!(control.socket, ControlConfig::default().socket);
    }
}
