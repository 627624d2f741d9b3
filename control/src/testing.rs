//! A daemon in this process, and clients that speak the ABI without the client library.

use std::{
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rnic_abi::*;
use rnic_config::Config;
use rnic_engine::{
    EngineConfig,
    mem::ClientMem,
    port::{
        DeviceSpec, HeapPool, Link, OpenPort, Port, PortSpec, RING_FRAMES, RingEnd, open_all, ring_pair_of,
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    admin::{AdminRequest, AdminResponse, request_line},
    control::Control,
    daemon, ports, socket,
    socket::{Packet, Received},
    status::{GidState, NeighbourState, QpState, Status},
};

mod held;

pub use held::HeldControl;

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
                bytes_awaiting_grace,
                ..
            } = self.status();
            (clients, pds, mrs, cqs, qps, ahs, bytes_awaiting_grace) == (0, 0, 0, 0, 0, 0, 0)
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

/// What a hello brings.
pub struct Context {
    pub layout: RegionLayout,
    pub region: ClientMem,
    /// Its memfd.
    pub memfd: OwnedFd,
    pub events: OwnedFd,
    pub wakes: Vec<OwnedFd>,
}

/// A client without a library.
pub struct Client {
    pub socket: OwnedFd,
    pub session: u64,
    pub sequence: u64,
    pub context: Option<Context>,
}

/// A refusal as the client sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub errno: Errno,
    pub text: String,
}

impl Client {
    /// A connection that has not said hello.
    pub fn connect(socket: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let address = SocketAddrUnix::new(socket).unwrap();
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        Client {
            socket,
            session: 0,
            sequence: 0,
            context: None,
        }
    }

    pub fn hello(&mut self) {
        let (hello, fds) = self
            .call_with::<HelloReply>(Op::Hello, &Hello::default(), &[])
            .unwrap();
        let mut fds = fds.into_iter();
        let (memfd, events) = (fds.next().unwrap(), fds.next().unwrap());
        let region = ClientMem::map(memfd.as_fd(), 0, hello.region_size, Default::default()).unwrap();
        let header: RegionHeader = region.read(0).unwrap();
        let layout = RegionLayout::from_header(&header).unwrap();
        assert_eq!(header.boot_epoch, hello.boot_epoch);
        self.session = hello.session;
        self.context = Some(Context {
            layout,
            region,
            memfd,
            events,
            wakes: fds.collect(),
        });
    }

    /// What the daemon's shared headers say.
    pub fn boot_epoch(&self) -> u64 {
        self.context().region.read::<RegionHeader>(0).unwrap().boot_epoch
    }

    pub fn context(&self) -> &Context {
        self.context.as_ref().unwrap()
    }

    /// The header of the next request.
    pub fn header(&mut self, op: Op, body_len: usize) -> RequestHeader {
        self.sequence += 1;
        RequestHeader {
            magic: CONTROL_MAGIC,
            version: ABI_VERSION as u16,
            op: op as u16,
            session: self.session,
            sequence: self.sequence,
            body_len: body_len as u32,
            reserved: 0,
        }
    }

    pub fn send(&mut self, op: Op, body: &(impl IntoBytes + Immutable), fds: &[&OwnedFd]) {
        let header = self.header(op, body.as_bytes().len());
        self.send_raw(&[header.as_bytes(), body.as_bytes()].concat(), fds);
    }

    pub fn send_raw(&self, bytes: &[u8], fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        socket::send(&self.socket, bytes, &fds).unwrap();
    }

    /// The next reply: header, body, descriptors. `None` when the daemon has closed the connection.
    pub fn receive(&self) -> Option<(ReplyHeader, Vec<u8>, Vec<OwnedFd>)> {
        self.wait(PATIENCE).then_some(())?;
        let mut packet = Packet::new();
        match socket::receive(&self.socket, &mut packet) {
            Received::Packet => {
                let (header, body) = ReplyHeader::read_from_prefix(packet.bytes()).unwrap();
                assert_eq!(header.body_len as usize, body.len());
                let body = body.to_vec();
                Some((header, body, std::mem::take(&mut packet.fds)))
            }
            _ => None,
        }
    }

    /// Whether something comes in within `time`.
    pub fn wait(&self, time: Duration) -> bool {
        wait_readable(&self.socket, time)
    }

    pub fn result<R: FromBytes>(&self) -> Result<(R, Vec<OwnedFd>), Refused> {
        let (header, body, fds) = self
            .receive()
            .expect("the daemon closed the connection or said nothing");
        assert_eq!(header.sequence, self.sequence);
        match header.status {
            0 => Ok((R::read_from_bytes(&body).unwrap(), fds)),
            errno => Err(Refused {
                errno: Errno::from_raw_os_error(errno),
                text: String::from_utf8(body).unwrap(),
            }),
        }
    }

    pub fn call_with<R: FromBytes>(
        &mut self,
        op: Op,
        body: &(impl IntoBytes + Immutable),
        fds: &[&OwnedFd],
    ) -> Result<(R, Vec<OwnedFd>), Refused> {
        self.send(op, body, fds);
        self.result()
    }

    pub fn call<R: FromBytes>(&mut self, op: Op, body: &(impl IntoBytes + Immutable)) -> Result<R, Refused> {
        self.call_with(op, body, &[]).map(|(reply, _)| reply)
    }

    pub fn pd(&mut self) -> u32 {
        self.call::<HandleReply>(Op::AllocPd, &DeviceArg::default())
            .unwrap()
            .handle
    }

    pub fn channel(&mut self) -> (u32, OwnedFd) {
        let (reply, mut fds) = self
            .call_with::<HandleReply>(Op::CreateCompChannel, &Empty {}, &[])
            .unwrap();
        (reply.handle, fds.remove(0))
    }

    pub fn try_cq(&mut self, depth: u32, channel: u32) -> Result<CreateCqReply, Refused> {
        self.call(
            Op::CreateCq,
            &CreateCq {
                device: 0,
                depth,
                channel,
                reserved: 0,
            },
        )
    }

    pub fn cq(&mut self) -> u32 {
        self.try_cq(64, 0).unwrap().handle
    }

    pub fn try_qp(&mut self, pd: u32, cq: u32) -> Result<CreateQpReply, Refused> {
        self.send_create(pd, cq);
        self.result().map(|(reply, _)| reply)
    }

    /// Asks for a QP, without waiting for it.
    pub fn send_create(&mut self, pd: u32, cq: u32) {
        let arg = CreateQp {
            pd,
            send_cq: cq,
            recv_cq: cq,
            qp_type: 2,
            sq_units: 16,
            rq_units: 16,
            ..CreateQp::default()
        };
        self.send(Op::CreateQp, &arg, &[]);
    }

    pub fn qp(&mut self, pd: u32, cq: u32) -> CreateQpReply {
        self.try_qp(pd, cq).unwrap()
    }

    pub fn try_mr(&mut self, pd: u32, fd: &OwnedFd, length: u64, access: u32) -> Result<RegMrReply, Refused> {
        let arg = RegMr {
            pd,
            access,
            fd_offset: 0,
            length,
            iova: 0x10_0000,
        };
        self.call_with(Op::RegMr, &arg, &[fd]).map(|(reply, _)| reply)
    }

    pub fn try_ah(&mut self, pd: u32, flags: u32, ah_attr: Av) -> Result<CreateAhReply, Refused> {
        self.call(Op::CreateAh, &CreateAh { pd, flags, ah_attr })
    }

    pub fn query_ah(&mut self, handle: u32) -> Result<QueryAhReply, Refused> {
        self.call(Op::QueryAh, &HandleArg { handle, reserved: 0 })
    }

    pub fn destroy(&mut self, op: Op, handle: u32) -> Result<(), Refused> {
        self.call::<Empty>(op, &HandleArg { handle, reserved: 0 })
            .map(drop)
    }

    /// Destroys a QP or CQ and tells how many events it had reported.
    pub fn destroy_counting(&mut self, op: Op, handle: u32) -> u32 {
        self.call::<DestroyReply>(op, &HandleArg { handle, reserved: 0 })
            .unwrap()
            .events_reported
    }

    pub fn modify(&mut self, handle: u32, mask: u32, attrs: QpAttrs) -> Result<(), Refused> {
        self.call::<Empty>(Op::ModifyQp, &ModifyQp { handle, mask, attrs })
            .map(drop)
    }

    /// RESET to INIT.
    pub fn make_init(&mut self, handle: u32) {
        let attrs = QpAttrs {
            qp_state: 1,
            port_num: 1,
            qp_access_flags: 7,
            ..QpAttrs::default()
        };
        let mask = qp_mask::STATE | qp_mask::PORT | qp_mask::PKEY_INDEX | qp_mask::ACCESS_FLAGS;
        self.modify(handle, mask, attrs).unwrap();
    }

    /// INIT to RTR, towards a peer.
    pub fn make_rtr(&mut self, handle: u32, dgid: &str, dest_qp_num: u32) -> Result<(), Refused> {
        self.modify(handle, RTR, rtr(dgid, dest_qp_num))
    }

    /// RTR to RTS.
    pub fn make_rts(&mut self, handle: u32) {
        let attrs = QpAttrs {
            qp_state: 3,
            timeout: 14,
            retry_cnt: 7,
            rnr_retry: 7,
            ..QpAttrs::default()
        };
        let mask = qp_mask::STATE
            | qp_mask::SQ_PSN
            | qp_mask::TIMEOUT
            | qp_mask::RETRY_CNT
            | qp_mask::RNR_RETRY
            | qp_mask::MAX_QP_RD_ATOMIC;
        self.modify(handle, mask, attrs).unwrap();
    }

    /// Waits until the event ring has had this many entries.
    pub fn await_events(&self, count: u32) {
        let Context { layout, region, .. } = self.context();
        let tail = region.u32(layout.events + RingIndices::TAIL).unwrap();
        wait_for(|| tail.load(Ordering::Acquire) == count);
    }

    /// The next entry of the event ring: handle and kinds.
    pub fn event(&self, head: u32) -> (u32, u32) {
        let (handle, kinds, _) = self.event_with_cause(head);
        (handle, kinds)
    }

    /// The same with the cause.
    pub fn event_with_cause(&self, head: u32) -> (u32, u32, Cause) {
        let Context {
            layout,
            region,
            events,
            ..
        } = self.context();
        assert!(wait_readable(events, PATIENCE), "no event");
        // Readable it stays: the wakes are not taken.
        let tail = region.u32(layout.events + RingIndices::TAIL).unwrap();
        wait_for(|| tail.load(std::sync::atomic::Ordering::Acquire) != head);
        let at = layout.events + RING_ENTRIES + 4 * (head & (layout.event_ring_len - 1)) as usize;
        let slot: u32 = region.read(at).unwrap();
        let store = |word: usize, value: u32| {
            region
                .u32(word)
                .unwrap()
                .store(value, std::sync::atomic::Ordering::Release);
        };
        store(layout.events + RingIndices::HEAD, head + 1);
        let at = layout.event_slots + slot as usize * size_of::<EventSlot>();
        let (kinds, handle) = event::take(&region.u32(at).unwrap(), || {
            let handle = region.read::<u32>(at + EventSlot::HANDLE).unwrap();
            (handle, region.read::<Cause>(at + EventSlot::CAUSE).unwrap())
        });
        let (handle, cause) = handle.unwrap_or_default();
        (handle, kinds, cause)
    }
}

/// Mask of INIT to RTR.
pub const RTR: u32 = qp_mask::STATE
    | qp_mask::AV
    | qp_mask::PATH_MTU
    | qp_mask::DEST_QPN
    | qp_mask::RQ_PSN
    | qp_mask::MAX_DEST_RD_ATOMIC
    | qp_mask::MIN_RNR_TIMER;

/// An address vector from the first GID.
pub fn av(dgid: &str) -> Av {
    let dgid = crate::device::Gid::from(dgid.parse::<std::net::IpAddr>().unwrap()).0;
    Av {
        dgid,
        ..Av::default()
    }
}

/// Attributes of INIT to RTR.
pub fn rtr(dgid: &str, dest_qp_num: u32) -> QpAttrs {
    QpAttrs {
        qp_state: 2,
        path_mtu: 3,
        dest_qp_num,
        ah_attr: av(dgid),
        ..QpAttrs::default()
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
