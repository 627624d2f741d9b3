//! The guest, with an rxe device on its end of the wire.
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rnic::Gid;
use rnic_guest::{Channel, Image, Machine, run};

use crate::wire::{Family, LINK_MTU, TAP, Wire};

/// How long a command may take that may fail.
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
/// The port that `verbs-peer` serves.
const VERBS: &str = "verbs";

/// A guest on the wire.
#[derive(Debug)]
pub struct Guest(rnic_guest::Guest);

/// Frames in one direction.
#[derive(Copy, Clone, Debug, Default)]
pub struct Traffic {
    /// Those that arrived.
    pub passed: u64,
    /// Those that were lost.
    pub lost: u64,
}

impl Deref for Guest {
    type Target = rnic_guest::Guest;

    fn deref(&self) -> &rnic_guest::Guest {
        &self.0
    }
}

impl Guest {
    /// Makes the tap, boots the guest on it and waits until rxe is up.
    pub fn boot(image: &Image) -> Result<Guest> {
        let mtu = LINK_MTU.to_string();
        run("ip", &["tuntap", "add", TAP, "mode", "tap"])?;
        // The host's own IPv6 has nothing to say on the wire.
        run("sysctl", &["-qw", &format!("net.ipv6.conf.{TAP}.disable_ipv6=1")])?;
        run("ip", &["link", "set", TAP, "mtu", &mtu, "up"])?;

        let machine = Machine {
            kernel: image.kernel(),
            initramfs: image.initramfs(),
            cpus: 1,
            mebibytes: 256,
            network: vec![
                "-netdev".into(),
                format!("tap,id=wire,ifname={TAP},script=no,downscript=no"),
                "-device".into(),
                format!("virtio-net-pci,netdev=wire,mac=52:54:00:00:00:02,romfile=,{NO_OFFLOADS}"),
                "-netdev".into(),
                format!("user,id=side,hostfwd=tcp:127.0.0.1:{THEIR_PORT}-:{THEIR_PORT}"),
                "-device".into(),
                "virtio-net-pci,netdev=side,romfile=".into(),
            ],
            port: Some(VERBS),
        };
        let guest = Guest(rnic_guest::Guest::boot(&machine, &std::env::temp_dir())?);
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

    /// The host's end of the port that `verbs-peer` serves.
    pub fn verbs(&self) -> Result<Channel> {
        self.port(VERBS)
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

    /// Fails when it has ended.
    pub fn assert_alive(&mut self) -> Result<()> {
        self.0.assert_alive()
    }
}
