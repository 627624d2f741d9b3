//! The guest: a Linux kernel under emulation, with an rxe device on its end of the wire.
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic::Gid;

use crate::channel::Channel;
use crate::image::Image;
use crate::system::run;
use crate::wire::{Family, LINK_MTU, TAP, Wire};

/// How long it may take from the start of QEMU to the first answer. It is ready after about six seconds on an idle
/// machine.
const BOOT: Duration = Duration::from_secs(180);
/// How long a command that only sets something up may take.
const COMMAND: Duration = Duration::from_secs(30);
/// TCP port that is forwarded from the host's loopback into the guest, for tools that serve there.
pub const THEIR_PORT: u16 = 18515;
/// The host's loopback as the guest sees it.
pub const HOST: &str = "10.0.2.2";
/// What frames from the guest leave by, and those to it.
const DEVICES: [&str; 2] = ["eth0", "ifb0"];
/// Frames look on the wire as a NIC without offloads makes them, with complete checksums.
const NO_OFFLOADS: &str = "csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
                           host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off";

/// A running guest. Killed on drop.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    console: std::path::PathBuf,
    command: Mutex<Channel>,
    verbs: Option<Channel>,
    number: AtomicU32,
}

/// Frames in one direction.
#[derive(Copy, Clone, Debug, Default)]
pub struct Traffic {
    /// Those that arrived.
    pub passed: u64,
    /// Those that were lost.
    pub lost: u64,
}

/// What a command in the guest printed, and its exit status.
#[derive(Debug)]
pub struct Output {
    /// Standard output and error.
    pub text: String,
    /// Exit status; 137 when it was killed at its deadline.
    pub status: i32,
}

impl Guest {
    /// Makes the tap, boots the guest on it and waits until rxe is up.
    pub fn boot(image: &Image) -> Result<Guest> {
        let mtu = LINK_MTU.to_string();
        run("ip", &["tuntap", "add", TAP, "mode", "tap"])?;
        // The host's own IPv6 has nothing to say on the wire.
        run("sysctl", &["-qw", &format!("net.ipv6.conf.{TAP}.disable_ipv6=1")])?;
        run("ip", &["link", "set", TAP, "mtu", &mtu, "up"])?;

        let dir = std::env::temp_dir();
        let console = dir.join("console");
        let path = |name: &str| dir.join(name).display().to_string();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(
            "-machine q35 -accel tcg,thread=multi -cpu max,la57=off -smp 1 -m 256 -nodefaults".split(' '),
        )
        .args("-no-user-config -display none -no-reboot".split(' '))
        .args(["-serial", &format!("file:{}", console.display())])
        .arg("-kernel")
        .arg(image.kernel())
        .arg("-initrd")
        .arg(image.initramfs())
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0",
        ])
        .args([
            "-netdev",
            &format!("tap,id=wire,ifname={TAP},script=no,downscript=no"),
        ])
        .args([
            "-device",
            &format!("virtio-net-pci,netdev=wire,mac=52:54:00:00:00:02,romfile=,{NO_OFFLOADS}"),
        ])
        .args([
            "-netdev",
            &format!("user,id=side,hostfwd=tcp:127.0.0.1:{THEIR_PORT}-:{THEIR_PORT}"),
        ])
        .args(["-device", "virtio-net-pci,netdev=side,romfile="])
        .args(["-device", "virtio-serial-pci"]);
        for port in ["command", "verbs"] {
            qemu.args([
                "-chardev",
                &format!("socket,id={port},path={},server=on,wait=off", path(port)),
            ])
            .args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
        }
        let log = File::create(dir.join("qemu.log")).context("a log for QEMU")?;
        let qemu = qemu
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting QEMU")?;
        let connect = |port: &str| Channel::connect(&dir.join(port), COMMAND);
        let channels = connect("command").and_then(|command| Ok((command, connect("verbs")?)));
        let (command, verbs) = match channels {
            Ok(channels) => channels,
            Err(e) => {
                let mut qemu = qemu;
                let _ = qemu.kill();
                let _ = qemu.wait();
                let log = std::fs::read_to_string(dir.join("qemu.log")).unwrap_or_default();
                return Err(e.context(format!("QEMU said: {log}")));
            }
        };
        let guest = Guest {
            qemu,
            console,
            command: Mutex::new(command),
            verbs: Some(verbs),
            number: AtomicU32::new(0),
        };
        guest.run("true", BOOT).with_context(|| guest.describe())?;
        guest.set_up().with_context(|| guest.describe())?;
        Ok(guest)
    }

    fn set_up(&self) -> Result<()> {
        let mut script = vec![
            "ip link set lo up".to_string(),
            // A quiet wire: no duplicate address detection, no router solicitations.
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad".into(),
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/router_solicitations".into(),
            format!("ip link set eth0 mtu {LINK_MTU} up"),
        ];
        for family in Family::ALL {
            script.push(format!(
                "ip addr add {}/{} dev eth0",
                family.theirs(),
                family.prefix()
            ));
        }
        script.push("rdma link add rxe0 type rxe netdev eth0".into());
        // What arrives takes a detour over ifb0, where it can be lost as well as what leaves.
        script.push("ip link add ifb0 type ifb && ip link set ifb0 up".into());
        script.push("tc qdisc add dev eth0 handle ffff: ingress".into());
        script.push(
            "tc filter add dev eth0 parent ffff: matchall action mirred egress redirect dev ifb0".into(),
        );
        script.push("ip link set eth1 up && ip addr add 10.0.2.15/24 dev eth1".into());
        self.sh(&script.join(" && "))?;
        Ok(())
    }

    /// The host's end of the port that `verbs-peer` serves; there is one.
    pub fn verbs(&mut self) -> Result<Channel> {
        self.verbs.take().context("the port is in use")
    }

    /// Runs a shell command, of one line.
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let seconds = limit.as_secs().max(1);
        let mut channel = self.command.lock().unwrap_or_else(|e| e.into_inner());
        channel.send(&format!("{number} {seconds} {command}\n"))?;
        // The guest kills the command at its deadline; so this one is for a guest that hangs.
        let deadline = Instant::now() + limit + COMMAND;
        let end = format!("\u{4} {number} ");
        let mut text = String::new();
        loop {
            let line = channel
                .line(deadline)
                .with_context(|| format!("in the guest: {command}"))?;
            if let Some(status) = line.strip_prefix(&end) {
                let status = status.trim().parse().context("an exit status")?;
                let text = text.trim_end().into();
                return Ok(Output { text, status });
            }
            if line.starts_with('\u{4}') {
                // The end of an earlier command that was given up.
                text.clear();
                continue;
            }
            text += &line;
            text.push('\n');
        }
    }

    /// Runs one that must succeed, and returns what it printed.
    pub fn sh(&self, command: &str) -> Result<String> {
        let Output { text, status } = self.run(command, COMMAND)?;
        ensure!(
            status == 0,
            "in the guest: {command}: exit status {status}: {text}"
        );
        Ok(text)
    }

    /// Makes the wire lossy, or whole again, each way.
    pub fn set_wire(&self, wire: &Wire) -> Result<()> {
        for (device, netem) in DEVICES.into_iter().zip(wire.netem) {
            self.run(&format!("tc qdisc del dev {device} root"), COMMAND)?;
            if let Some(netem) = netem {
                // Longer than whatever can be in flight: what is lost is lost by intent.
                self.sh(&format!(
                    "tc qdisc add dev {device} root netem limit 100000 {netem}"
                ))?;
            }
        }
        Ok(())
    }

    /// What has become of the frames since the wire was set: those from the guest, and those to it. None that go a way to
    /// which nothing is done.
    pub fn traffic(&self) -> Result<[Traffic; 2]> {
        let count = |device: &str| -> Result<Traffic> {
            let text = self.sh(&format!("tc -s qdisc show dev {device}"))?;
            let netem = text.split("qdisc netem").nth(1).unwrap_or_default();
            let before = |word| {
                netem
                    .split(word)
                    .next()
                    .and_then(|head| head.split_whitespace().last())
            };
            let after = |word| netem.split(word).nth(1).and_then(|tail| tail.split(',').next());
            let number = |text: Option<&str>| text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            Ok(Traffic {
                passed: number(before(" pkt")),
                lost: number(after("dropped ")),
            })
        };
        let [from, to] = DEVICES;
        Ok([count(from)?, count(to)?])
    }

    /// The guest's index of the GID that an address makes.
    pub fn gid_index(&self, family: Family) -> Result<usize> {
        let wanted = Gid::from(family.theirs());
        let table = self
            .sh("cd /sys/class/infiniband/rxe0/ports/1/gids && for i in 0 1 2 3 4 5 6 7; do cat $i; done")?;
        let find = |line: &str| {
            line.trim()
                .parse::<std::net::Ipv6Addr>()
                .is_ok_and(|gid| Gid::from(gid) == wanted)
        };
        table
            .lines()
            .position(find)
            .with_context(|| format!("no GID {wanted} among {table}"))
    }

    /// What the guest's kernel has to complain about.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let text =
            self.sh("dmesg | grep -E 'BUG|WARNING:|Oops|hung task|rdma_rxe:.*(fail|error)' || true")?;
        Ok(text
            .lines()
            .map(str::to_owned)
            .filter(|line| !line.is_empty())
            .collect())
    }

    /// Its state, for an error.
    fn describe(&self) -> String {
        let console = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&console[console.len().saturating_sub(4000)..]).into_owned();
        format!("the guest's console ends with: {text}")
    }

    /// Fails when it has ended.
    pub fn assert_alive(&mut self) -> Result<()> {
        match self.qemu.try_wait() {
            Ok(None) => Ok(()),
            _ => bail!("the guest has ended; {}", self.describe()),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
