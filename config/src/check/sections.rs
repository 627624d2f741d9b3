//! Sections `control`, `eal`, `cores` and `limits`.

use std::path::Path;

use super::Checks;
use crate::diagnostic::KeyPath;
use crate::eal::OWN_ARGUMENTS;
use crate::schema::{Device, Memory, PollCores};
use crate::value::{ByteSize, TimeSpan};

/// Longest path a Unix socket address holds (`sun_path` is 108 bytes with its final NUL).
const MAX_SOCKET_PATH: usize = 107;
/// Bytes of one work queue entry unit, and of one completion queue entry.
const QUEUE_ENTRY: u64 = 64;

pub(super) fn control(checks: &mut Checks<'_>) {
    let control = &checks.config.control;
    let section = KeyPath::from("control");
    socket_path(checks, section.key("socket"), &control.socket);
    socket_path(checks, section.key("admin_socket"), &control.admin_socket);
    if control.socket == control.admin_socket {
        let help = "give each its own path";
        checks.error(
            section.key("admin_socket"),
            "`socket` and `admin_socket` are the same path",
            help,
        );
    }
    if control.socket_mode.bits() & 0o002 != 0 {
        let help = "set 0660 and put those who may into `socket_group`";
        checks.warn(
            section.key("socket_mode"),
            "every user of the machine may use the devices",
            help,
        );
    }
    checks.within(
        section.key("neighbour_lifetime"),
        control.neighbour_lifetime,
        TimeSpan::micros(1_000_000)..=TimeSpan::micros(3_600_000_000),
    );
    if let Some(group) = &checks.config.control.socket_group {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if group.is_empty() || group.len() > 32 || !group.chars().all(plain) {
            let help = "give the name of a group, such as `rnic`, or its number in quotes";
            checks.error(
                section.key("socket_group"),
                "this is not the name of a group",
                help,
            );
        }
    }
}

fn socket_path(checks: &mut Checks<'_>, key: KeyPath, path: &Path) {
    let length = path.as_os_str().len();
    if !path.is_absolute() {
        let help = "write a path that begins with `/`, such as `/run/rnic/rnicd.sock`";
        checks.error(
            key,
            format!("the socket path `{}` is not absolute", path.display()),
            help,
        );
    } else if length > MAX_SOCKET_PATH {
        let help = format!("a socket path has at most {MAX_SOCKET_PATH} bytes");
        checks.error(key, format!("the socket path has {length} bytes"), help);
    } else if path.as_os_str().as_encoded_bytes().contains(&0) || path.file_name().is_none() {
        checks.error(
            key,
            "this cannot be the path of a socket",
            "name a file in an existing folder",
        );
    }
}

pub(super) fn eal(checks: &mut Checks<'_>) {
    let config = checks.config;
    let eal = &config.eal;
    let section = KeyPath::from("eal");
    let size = section.key("memory_size");
    checks.within(
        size.clone(),
        eal.memory_size,
        ByteSize::mib(64)..=ByteSize::gib(1024),
    );
    let unit = if eal.memory == Memory::Hugepages {
        ByteSize::mib(2)
    } else {
        ByteSize::mib(1)
    };
    if !eal.memory_size.bytes().is_multiple_of(unit.bytes()) {
        checks.error(
            size,
            format!("{} is not a whole number of {unit}", eal.memory_size),
            format!("round it to {unit}"),
        );
    }
    extra_args(checks, &section.key("extra_args"));

    let pci_port = config
        .ports
        .iter()
        .position(|port| matches!(port.device, Device::Pci(_)));
    match (eal.pci, pci_port) {
        (Some(false), Some(index)) => {
            let message = format!(
                "`pci` is false, but the device of {} is on the PCI bus",
                config.ports[index].name
            );
            checks.error(
                section.key("pci"),
                message,
                "remove `pci`, which then follows from the ports",
            );
        }
        (Some(true), None) => {
            let message =
                "no port is on the PCI bus, and DPDK will claim every function bound to its drivers";
            checks.warn(
                section.key("pci"),
                message,
                "remove `pci`, which then follows from the ports",
            );
        }
        _ => {}
    }
}

fn extra_args(checks: &mut Checks<'_>, key: &KeyPath) {
    let eal = &checks.config.eal;
    for (index, argument) in eal.extra_args.iter().enumerate() {
        let key = key.index(index);
        if argument.is_empty() || argument.contains('\0') {
            checks.error(key, "this is not an argument", "remove it");
            continue;
        }
        let name = argument.split(['=', ' ']).next().unwrap_or_default();
        let both = matches!(
            (eal.memory, name),
            (Memory::None, "--in-memory") | (Memory::Hugepages, "--no-huge")
        );
        // A short option may have its value attached: `-m512`. Long ones may be abbreviated.
        let own = OWN_ARGUMENTS
            .iter()
            .find(|(own, _)| match own.strip_prefix("--") {
                Some(_) => name == *own || (name.len() > 3 && own.starts_with(name)),
                None => argument.starts_with(own) && !argument.starts_with("--"),
            });
        if both {
            let message = "`--no-huge` and `--in-memory` exclude each other";
            checks.error(
                key,
                message,
                "set `eal.memory` to `none` or `hugepages`, and remove the argument",
            );
        } else if let Some((own, says)) = own {
            checks.error(
                key,
                format!("rnicd sets `{own}` itself"),
                format!("remove it and use `{says}`"),
            );
        }
    }
}

pub(super) fn cores(checks: &mut Checks<'_>) {
    let cores = &checks.config.cores;
    let section = KeyPath::from("cores");
    if let PollCores::List(ids) = &cores.poll {
        for (index, id) in ids.iter().enumerate() {
            if ids[..index].contains(id) {
                checks.error(
                    section.key("poll").index(index),
                    format!("CPU {id} is listed twice"),
                    "list each once",
                );
            }
        }
        if cores.count.is_some_and(|count| usize::from(count) != ids.len()) {
            let message = format!("`poll` lists {} CPUs, which `count` contradicts", ids.len());
            checks.error(
                section.key("count"),
                message,
                "remove `count`; it belongs to `poll: auto`",
            );
        }
        if !cores.pin {
            let message = "without pinning, the poll threads do not stay on the CPUs that `poll` lists";
            checks.warn(
                section.key("pin"),
                message,
                "set `pin: true`, or `poll: auto` with a `count`",
            );
        }
    }
    let idle = section.key("idle");
    checks.within(
        idle.key("spin_for"),
        cores.idle.spin_for,
        TimeSpan::micros(0)..=TimeSpan::micros(1_000_000),
    );
    checks.within(
        idle.key("max_sleep"),
        cores.idle.max_sleep,
        TimeSpan::micros(1)..=TimeSpan::micros(100_000),
    );
}

pub(super) fn limits(checks: &mut Checks<'_>) {
    let limits = &checks.config.limits;
    let client = &limits.per_client;
    let section = KeyPath::from("limits");
    let per_client = section.key("per_client");
    let grace = "bytes_awaiting_grace";
    checks.within(
        section.key(grace),
        limits.bytes_awaiting_grace,
        ByteSize::mib(1)..=ByteSize::gib(16),
    );
    checks.within(
        per_client.key(grace),
        client.bytes_awaiting_grace,
        ByteSize::kib(64)..=ByteSize::gib(16),
    );
    let memory = per_client.key("registered_memory");
    checks.within(
        memory,
        client.registered_memory,
        ByteSize::kib(4)..=ByteSize::gib(16 << 10),
    );
    let queue_memory = per_client.key("queue_memory");
    checks.within(
        queue_memory.clone(),
        client.queue_memory,
        ByteSize::kib(64)..=ByteSize::gib(1 << 10),
    );

    let shortest = u64::from(client.wr_depth.max(client.cq_depth)) * QUEUE_ENTRY;
    if client.queue_memory.bytes() < shortest {
        let message = format!("one queue of the depth allowed needs {}", ByteSize(shortest));
        checks.error(
            queue_memory,
            message,
            "make `queue_memory` larger, or `wr_depth` and `cq_depth` smaller",
        );
    }
    if client.qps > limits.qps {
        let message = format!(
            "one client may have {} QPs, but all together {}",
            client.qps, limits.qps
        );
        checks.error(per_client.key("qps"), message, "make it at most `limits.qps`");
    }
    if client.bytes_awaiting_grace > limits.bytes_awaiting_grace {
        let message = format!(
            "one client may have {}, but all together {}",
            client.bytes_awaiting_grace, limits.bytes_awaiting_grace
        );
        checks.error(
            per_client.key(grace),
            message,
            "make it at most `limits.bytes_awaiting_grace`",
        );
    }
}
