//! A daemon in this process, and clients that speak the ABI without the client library.

use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rnic_config::Config;
use rnic_engine::{
    EngineConfig,
    port::{
        DeviceSpec, HeapPool, Link, OpenPort, Port, PortSpec, RING_FRAMES, RingEnd, open_all, ring_pair_of,
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
};
use tempfile::TempDir;

use crate::{
    admin::{AdminRequest, AdminResponse, request_line},
    control::Control,
    daemon, ports, socket,
    status::{GidState, NeighbourState, QpState, Status},
};

mod client;
mod held;

pub use client::*;
pub use held::{Gate, HeldControl};

/// A poll core that allocates aborts the tests.
#[cfg(debug_assertions)]
#[global_allocator]
static ALLOCATOR: rnic_engine::nonblocking::CheckedAllocator = rnic_engine::nonblocking::CheckedAllocator;

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon; stopped on drop.
pub struct TestDaemon {
    dir: TempDir,
    stop: OwnedFd,
    /// The daemon's arenas.
    pub store: std::sync::Arc<crate::store::Store>,
    thread: Option<JoinHandle<bool>>,
}

/// Two ports joined back to back.
const PORTS: &str = "
ports:
  - {name: rnic0, device: {ring: {peer: rnic1}}, mtu: 4200, rx_descriptors: 256, tx_descriptors: 256,
     addresses: [10.0.0.1/24, 'fd00::1/64'], loopback: wire}
  - {name: rnic1, device: {ring: {peer: rnic0}}, mtu: 4200, rx_descriptors: 256, tx_descriptors: 256,
     addresses: [10.0.0.2/24], loopback: wire}
";

/// The ports of a configuration with rings that need no DPDK, which can be started but once in a process.
fn soft(config: &Config) -> Vec<PortSpec> {
    let mut specs = ports::specs(config);
    for spec in &mut specs {
        if let DeviceSpec::Ring { peer } = &spec.device {
            spec.device = DeviceSpec::SoftRing { peer: peer.clone() };
        }
    }
    specs
}

/// A daemon that does not run yet, its folder, and the end of the socket that stops it.
fn build(
    cores: u16,
    sections: &str,
    open: impl FnOnce(&Config) -> Vec<OpenPort>,
) -> (TempDir, OwnedFd, Control) {
    let dir = TempDir::new().unwrap();
    let config = configuration(dir.path(), cores, sections);
    let (stop, theirs) = socket::pair().unwrap();
    let opener = Arc::new(|config: &Config| open_all(&soft(config), &[]));
    let control = daemon::start_with(config, theirs, |config, _| Ok(open(config)), opener).unwrap();
    (dir, stop, control)
}

fn configuration(dir: &Path, cores: u16, sections: &str) -> Config {
    let at = dir.display();
    let text = format!(
        "version: 1\ncontrol: {{socket: {at}/rnicd.sock, admin_socket: {at}/admin.sock}}\n\
         cores: {{count: {cores}, pin: false, idle: {{policy: sleep, spin_for: 10us, max_sleep: 1ms}}}}\n{sections}"
    );
    Config::parse(&text, "test.yaml").unwrap_or_else(|error| panic!("{error}"))
}

/// The data path of [`HeldControl::with`], for the process that takes over.
pub fn next_engine(cores: u16, sections: &str) -> EngineConfig {
    let config = configuration(Path::new("/nowhere"), cores, &format!("{PORTS}\n{sections}"));
    let ports = open_all(&soft(&config), &[]).unwrap();
    daemon::engine_config(&config, &vec![0; cores.into()], ports)
}

/// A port and the other end of its wire.
fn one_port() -> (OpenPort, OpenPort) {
    let end = |name: &str| RingEnd {
        name: name.into(),
        mac: None,
        mtu: 1500,
        pool: HeapPool::for_mtu(512, 1500),
    };
    ring_pair_of(end("rnic0"), end("wire"), 1, RING_FRAMES)
}

fn one_port_sections(vdev: &str, port: &str) -> String {
    format!("ports:\n  - {{name: rnic0, device: {{vdev: '{vdev}'}}, {port}}}\n{LIMITS}")
}

/// A small context region: the client here maps all of it at once.
pub const LIMITS: &str = "limits: {clients: 8, per_client: {queue_memory: 8MiB, cq_depth: 1024}}";

impl TestDaemon {
    /// With two ports and `cores` poll cores.
    pub fn start(cores: u16) -> Self {
        Self::with(cores, LIMITS)
    }

    /// The same with further sections.
    pub fn with(cores: u16, sections: &str) -> Self {
        Self::open(cores, &format!("{PORTS}\n{sections}"), |config| {
            open_all(&soft(config), &[]).unwrap()
        })
    }

    /// With one port, whose other end the test holds. The configuration names a ring, but that is not opened.
    pub fn with_wire(port: &str) -> (Self, OpenPort) {
        Self::with_wire_at("net_null0", port)
    }

    /// The same as if the port were this virtual device.
    pub fn with_wire_at(vdev: &str, port: &str) -> (Self, OpenPort) {
        let (ours, theirs) = one_port();
        let daemon = Self::open(1, &one_port_sections(vdev, port), move |_| vec![ours]);
        (daemon, theirs)
    }

    /// With one port and one poll core, each of whose passes begins with `wrap`'s port.
    pub fn with_port(wrap: impl Fn(Box<dyn Port>) -> Box<dyn Port>) -> Self {
        let (mut ours, _) = one_port();
        ours.queues = ours.queues.into_iter().map(wrap).collect();
        let port = "addresses: [10.0.0.1/24]";
        Self::open(1, &one_port_sections("net_null0", port), move |_| vec![ours])
    }

    /// With one port whose link is this one.
    pub fn with_link(link: impl Link + 'static) -> Self {
        let (mut ours, _) = one_port();
        ours.link = Box::new(link);
        let port = "addresses: [10.0.0.1/24]";
        Self::open(1, &one_port_sections("net_null0", port), move |_| vec![ours])
    }

    fn open(cores: u16, sections: &str, open: impl FnOnce(&Config) -> Vec<OpenPort>) -> Self {
        let (dir, stop, control) = build(cores, sections, open);
        let store = control.store.clone();
        let thread = std::thread::Builder::new().name("rnic-control".into());
        let thread = thread.spawn(move || control.run()).unwrap();
        TestDaemon {
            dir,
            stop,
            store,
            thread: Some(thread),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("rnicd.sock")
    }

    /// Stops it in order; `true` when nothing failed.
    pub fn stop(&mut self) -> bool {
        socket::wake(&self.stop);
        self.thread.take().is_none_or(|thread| thread.join().unwrap())
    }

    /// A client that has said hello.
    pub fn client(&self) -> Client {
        let mut client = self.stranger();
        client.hello();
        client
    }

    /// A connection that has not.
    pub fn stranger(&self) -> Client {
        Client::connect(&self.socket())
    }

    pub fn admin(&self, request: AdminRequest) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.dir.path().join("admin.sock")).unwrap();
        stream.write_all(request_line(request).as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        match serde_json::from_str(&line).unwrap() {
            AdminResponse::Ok(value) => value,
            AdminResponse::Error(text) => panic!("{text}"),
        }
    }

    /// A line to the admin socket, and what comes back; empty when the daemon hangs up.
    pub fn admin_line(&self, line: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("admin.sock")).unwrap();
        // A daemon that has heard enough may have closed it.
        let _ = stream.write_all(line);
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer);
        answer
    }

    pub fn status(&self) -> Status {
        serde_json::from_value(self.admin(AdminRequest::Status)).unwrap()
    }

    pub fn gids(&self) -> Vec<GidState> {
        serde_json::from_value(self.admin(AdminRequest::Gid)).unwrap()
    }

    pub fn neighbours(&self) -> Vec<NeighbourState> {
        serde_json::from_value(self.admin(AdminRequest::Neigh)).unwrap()
    }

    pub fn qps(&self) -> Vec<QpState> {
        serde_json::from_value(self.admin(AdminRequest::Qp)).unwrap()
    }

    /// Waits until every count is as in a daemon without clients.
    pub fn wait_for_baseline(&self) {
        wait_for(|| {
            let Status {
                clients,
                pds,
                mrs,
                cqs,
                qps,
                ahs,
                srqs,
                xrcds,
                mws,
                bytes_awaiting_grace,
                ..
            } = self.status();
            (clients, pds, mrs, cqs, qps, ahs, srqs, xrcds, mws) == (0, 0, 0, 0, 0, 0, 0, 0, 0)
                && bytes_awaiting_grace == 0
        });
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        let healthy = self.stop();
        assert!(healthy || std::thread::panicking(), "a poll core failed");
    }
}

/// Waits until `condition` holds.
pub fn wait_for(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a socket becomes readable within `time`.
pub fn wait_readable(fd: &OwnedFd, time: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

/// A memfd as clients register it.
pub fn sealed_memfd(len: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, len).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    fd
}

/// Runs this test binary again, with only the test `name`, which finds in `variable` where a dump lies; it has to pass.
pub fn run_in_a_fresh_process(name: &str, variable: &str, dump: &Path) {
    let fresh = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(variable, dump)
        .output()
        .unwrap();
    let [out, err] = [&fresh.stdout, &fresh.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(fresh.status.success() && out.contains("1 passed"), "{out}{err}");
}
