//! Configurations for tests.
use std::fmt::Write;
use std::path::Path;

/// A configuration in the making. What it does not say is as in the sample for laptops: no hugepages, sleeping
/// poll cores.
#[derive(Clone, Debug)]
pub struct Setup {
    ports: Vec<PortSetup>,
    extra: String,
    cores: u32,
}

/// One port of a [`Setup`].
#[derive(Clone, Debug)]
pub struct PortSetup {
    name: String,
    device: String,
    addresses: Vec<String>,
    mtu: u32,
    extra: String,
}

impl Setup {
    /// One poll core and these ports.
    pub fn new(ports: impl IntoIterator<Item = PortSetup>) -> Setup {
        Setup {
            ports: ports.into_iter().collect(),
            extra: String::new(),
            cores: 1,
        }
    }

    /// Two ports wired back to back, as in the sample for laptops: `rnic0` is 10.0.0.1 and fd00::1, `rnic1` is
    /// 10.0.0.2 and fd00::2.
    pub fn back_to_back() -> Setup {
        Setup::new([PortSetup::ring(0), PortSetup::ring(1)])
    }

    /// So many poll cores.
    pub fn cores(mut self, count: u32) -> Setup {
        self.cores = count;
        self
    }

    /// Adds top-level YAML.
    pub fn with(mut self, yaml: &str) -> Setup {
        self.extra.push_str(yaml);
        self.extra.push('\n');
        self
    }

    /// Adds YAML to each port, one key per line.
    pub fn with_ports(mut self, yaml: &str) -> Setup {
        self.ports = self.ports.into_iter().map(|port| port.with(yaml)).collect();
        self
    }

    /// Whether any port has a key that the default has not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.ports.iter().any(|port| port.extra.contains(key))
    }

    /// The file, for sockets and captures in `dir`.
    pub fn yaml(&self, dir: &Path) -> String {
        let dir = dir.display();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        let mut text = format!(
            "version: 1\n\
             control: {{ socket: {dir}/rnicd.sock, admin_socket: {dir}/admin.sock, socket_mode: \"0600\" }}\n\
             log: {{ level: debug }}\n\
             eal: {{ memory: none, memory_size: 128MiB }}\n\
             cores: {{ poll: auto, count: {}, pin: false, idle: {{ policy: sleep, max_sleep: 1ms }} }}\n\
             {}ports:\n",
            self.cores.min(cpus),
            self.extra
        );
        for port in &self.ports {
            text += &port.yaml();
            if !port.extra.contains("capture:") {
                // For `Appliance`, which checks it in the end.
                let _ = writeln!(
                    text,
                    "    capture: {{ file: {dir}/{}.pcapng, limit: 32MiB }}",
                    port.name
                );
            }
        }
        text
    }
}

impl PortSetup {
    /// A port `rnicN` with the addresses 10.0.0.N+1 and fd00::N+1, at an MTU that allows a path MTU of 4096.
    pub fn new(number: u32, device: &str) -> PortSetup {
        let host = number + 1;
        PortSetup {
            name: format!("rnic{number}"),
            device: device.into(),
            addresses: vec![format!("\"10.0.0.{host}/24\""), format!("\"fd00::{host:x}/64\"")],
            mtu: 4200,
            extra: String::new(),
        }
    }

    /// One of `rnic0` and `rnic1`, wired to the other by rings.
    pub fn ring(number: u32) -> PortSetup {
        PortSetup::new(number, &format!("{{ ring: {{ peer: rnic{} }} }}", 1 - number))
    }

    /// The port on `veth0`; the only one of its appliance, so it is `rnic0` whatever its address.
    pub fn veth(number: u32) -> PortSetup {
        let vdev = "net_af_packet0,iface=veth0,blocksz=131072,framesz=8192,framecnt=1024,qdisc_bypass=1";
        PortSetup::new(number, &format!("{{ vdev: \"{vdev}\" }}")).named("rnic0")
    }

    /// One end of a shared-memory link to another appliance, at the socket `socket`.
    pub fn memif(number: u32, role: &str, socket: &Path) -> PortSetup {
        let socket = socket.display();
        let vdev = format!("net_memif0,role={role},id=0,socket={socket},socket-abstract=no,bsize=8192");
        PortSetup::new(number, &format!("{{ vdev: \"{vdev}\" }}")).named("rnic0")
    }

    /// The same under another name.
    pub fn named(mut self, name: &str) -> PortSetup {
        self.name = name.into();
        self
    }

    /// With one more address, in YAML: `{ address: 10.5.0.1/24, vlan: 5 }`, say.
    pub fn address(mut self, yaml: &str) -> PortSetup {
        self.addresses.push(yaml.into());
        self
    }

    /// The same with a link MTU in bytes.
    pub fn mtu(mut self, bytes: u32) -> PortSetup {
        self.mtu = bytes;
        self
    }

    /// The port as one of a list, for a configuration or `rnicctl port add`.
    pub fn yaml(&self) -> String {
        let PortSetup {
            name,
            device,
            addresses,
            mtu,
            extra,
        } = self;
        let addresses = addresses.join(", ");
        format!(
            "  - name: {name}\n    device: {device}\n    mtu: {mtu}\n    addresses: [{addresses}]\n{extra}"
        )
    }

    /// Adds YAML, one key per line.
    pub fn with(mut self, yaml: &str) -> PortSetup {
        for line in yaml.lines() {
            let _ = writeln!(self.extra, "    {line}");
        }
        self
    }
}
