//! A session by hand: requests, the event ring and the completion rings as they are in shared memory, below what
//! the client library would drop. It keeps account of everything the daemon may still say, and anything else is
//! an error.
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rnic_abi::{
    Cqe, DestroyReply, DeviceArg, DeviceReply, DoorbellLayout, Empty, EventSlot, Handle, HandleArg, Op,
    RING_ENTRIES, RegionHeader, RegionLayout, ResizeCq, ResizeCqDone, ResizeCqReply, RingIndices, cqe_flags,
    event_kind,
};
use rnic_tests::raw::{Line, Memory};
use rustix::net::{SendFlags, send};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::daemon::FIRST_THAT_GOES;
use crate::grave::Graves;
use crate::qp::Qp;
use crate::worker::PATIENCE;

/// The daemon's answer to a request: its body, or the errno and text of a refusal.
pub type Answer<T> = std::result::Result<T, Refused>;

/// A refused request.
#[derive(Debug)]
pub struct Refused {
    /// The errno, positive.
    pub errno: i32,
    /// The daemon's words.
    pub text: String,
}

/// Too many objects, or too many waiting for a grace period: what anybody may be told when ids are scarce.
pub const EXHAUSTED: [i32; 2] = [
    rustix::io::Errno::AGAIN.raw_os_error(),
    rustix::io::Errno::NOMEM.raw_os_error(),
];
/// Ask again later.
pub const AGAIN: i32 = rustix::io::Errno::AGAIN.raw_os_error();
/// How long a poll core that does not go on is waited for.
const STALL_PATIENCE: Duration = Duration::from_secs(30);
/// Something depends on it.
pub const BUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();
/// The device is gone.
pub const NODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();

/// A completion queue.
#[derive(Debug)]
pub struct Cq {
    pub handle: u32,
    pub offset: usize,
    pub depth: u32,
    heads: Vec<u32>,
    /// QPs that complete here; a QP counts once for each of its queues.
    pub users: u32,
    /// Not polled: it is to overflow.
    pub muted: bool,
    /// Completions taken.
    pub taken: u64,
    /// Events it may raise.
    pub events: Events,
}

/// What is known of the events of one object.
#[derive(Copy, Clone, Debug, Default)]
pub struct Events {
    /// Kinds that were taken.
    pub seen: u32,
    /// Kinds taken, each counted: what the daemon must report at the end.
    pub taken: u32,
    /// Kinds that something done to the object explains.
    pub explained: u32,
}

impl Events {
    fn take(&mut self, kinds: u32, what: &str) -> Result<()> {
        ensure!(
            kinds & self.seen == 0,
            "{what}: a second event of one kind: {} after {}",
            names(kinds),
            names(self.seen)
        );
        ensure!(
            kinds & !self.explained == 0,
            "{what}: nothing was done to it that explains {}",
            names(kinds & !self.explained)
        );
        self.seen |= kinds;
        self.taken += kinds.count_ones();
        Ok(())
    }
}

/// Names of event kinds.
pub fn names(kinds: u32) -> String {
    let of = |bit: usize| {
        event_kind::NAMES
            .get(bit)
            .map_or_else(|| format!("bit {bit}"), |n| n.to_string())
    };
    let bits = (0..32).filter(|bit| kinds >> bit & 1 == 1);
    bits.map(of).collect::<Vec<_>>().join("+")
}

/// A session.
pub struct Session {
    line: Line,
    pub region: Memory,
    pub layout: RegionLayout,
    wakes: Vec<OwnedFd>,
    _events: OwnedFd,
    /// Number of the port it uses, as in `rnic0`.
    pub port: u32,
    /// Number of that port's device.
    pub device: u32,
    /// Places for devices in the daemon: their event slots come first.
    devices: u32,
    /// Its device was removed: DEVICE_FATAL has come.
    pub lost: bool,
    /// Something was seen that only the removal of its device explains.
    owed: bool,
    /// Places whose device has been removed, a bit each.
    gone: u64,
    event_head: u32,
    /// Live CQs by handle.
    pub cqs: HashMap<u32, Cq>,
    /// Live QPs by handle.
    pub qps: HashMap<u32, Qp>,
    /// Queue space that was given back, and must not change before it is used again.
    pub graves: Graves,
    /// Kinds of port events seen.
    pub port_events: u64,
}

impl Session {
    /// Says hello, and finds the device of a port; waits for one that is away at the moment.
    pub fn open(socket: &Path, port: u32) -> Result<Session> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(session) = Self::find(socket, port)? {
                return Ok(session);
            }
            ensure!(
                port >= FIRST_THAT_GOES && Instant::now() < deadline,
                "there is no device rnic{port}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Says hello, and finds the device of a port among those there are.
    pub fn find(socket: &Path, port: u32) -> Result<Option<Session>> {
        let (line, hello, fds) = Line::greet(socket);
        let mut fds = fds.into_iter();
        let region_fd = fds.next().context("no region came with the hello")?;
        let events = fds.next().context("no event socket came with the hello")?;
        let region = Memory::map(&region_fd, hello.region_size as usize)?;
        let mut header = RegionHeader::new_zeroed();
        region.read(0, header.as_mut_bytes());
        let layout = RegionLayout::from_header(&header).context("the region's header")?;
        let mut session = Session {
            line,
            region,
            layout,
            wakes: fds.collect(),
            _events: events,
            port,
            device: 0,
            devices: hello.devices,
            lost: false,
            owed: false,
            gone: 0,
            event_head: 0,
            cqs: HashMap::new(),
            qps: HashMap::new(),
            graves: Graves::default(),
            port_events: 0,
        };
        let name = format!("rnic{port}");
        for device in 0..session.devices {
            let found = session.query_device(device)?;
            let is_it =
                |reply: DeviceReply| reply.name.split(|byte| *byte == 0).next() == Some(name.as_bytes());
            if found.is_ok_and(is_it) {
                session.device = device;
                return Ok(Some(session));
            }
        }
        Ok(None)
    }

    /// Asks for a device; the only refusal there is says that it is not there.
    pub fn query_device(&mut self, device: u32) -> Result<Answer<DeviceReply>> {
        let answer = self.request(Op::QueryDevice, &DeviceArg { device, reserved: 0 }, &[])?;
        if let Err(refused) = &answer {
            ensure!(refused.errno == NODEV, "query_device: {refused:?}");
        }
        Ok(answer)
    }

    /// Whether its port is among those that are removed.
    pub fn may_go(&self) -> bool {
        self.port >= FIRST_THAT_GOES
    }

    /// Sends a request and waits for its answer. An error is a daemon that has hung up or talks nonsense.
    ///
    /// A modify that is refused because its poll core has not gone on for a while has changed nothing and is asked for
    /// again: on a machine with fewer CPUs than threads that is the scheduler's doing.
    pub fn request<T: FromBytes>(
        &mut self,
        op: Op,
        body: &(impl IntoBytes + Immutable),
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer<T>> {
        let deadline = Instant::now() + STALL_PATIENCE;
        loop {
            let answer = self.request_once(op, body, fds)?;
            let stalled = matches!(&answer, Err(refused) if refused.errno == AGAIN);
            if !stalled || op != Op::ModifyQp || Instant::now() >= deadline {
                return Ok(answer);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn request_once<T: FromBytes>(
        &mut self,
        op: Op,
        body: &(impl IntoBytes + Immutable),
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer<T>> {
        self.line.sequence += 1;
        let body = body.as_bytes();
        let header = rnic_tests::raw::header(op as u16, self.line.session, self.line.sequence, body.len());
        self.line
            .send(&[header.as_bytes(), body].concat(), fds)
            .with_context(|| format!("sending {}", op.name()))?;
        let reply = self
            .line
            .receive()
            .with_context(|| format!("the daemon hung up on {}", op.name()))?;
        ensure!(
            (reply.header.sequence, reply.header.op) == (self.line.sequence, op as u32),
            "the answer to {} is another request's",
            op.name()
        );
        if reply.errno() != 0 {
            return Ok(Err(Refused {
                errno: reply.errno(),
                text: reply.text(),
            }));
        }
        let body = T::read_from_bytes(&reply.body)
            .map_err(|_| anyhow::anyhow!("{}: an answer of {} bytes", op.name(), reply.body.len()))?;
        Ok(Ok(body))
    }

    /// Takes in a CQ the daemon has made.
    pub fn add_cq(&mut self, made: rnic_abi::CreateCqReply) {
        let cq = Cq {
            handle: made.handle,
            offset: made.offset as usize,
            depth: made.depth,
            heads: vec![0; made.subrings as usize],
            users: 0,
            muted: false,
            taken: 0,
            events: Events::default(),
        };
        self.cqs.insert(made.handle, cq);
    }

    /// Has a CQ go on in another place, and reads what was left in the old one, to which nobody may write any more.
    pub fn resize_cq(&mut self, handle: u32, depth: u32) -> Result<Answer<()>> {
        self.graves.close(&self.region)?;
        let reply = match self.request::<ResizeCqReply>(Op::ResizeCq, &ResizeCq { handle, depth }, &[])? {
            Ok(reply) => reply,
            Err(refused) => return Ok(Err(refused)),
        };
        self.poll_cq(handle)?;
        let cq = self.cqs.get_mut(&handle).context("it is there")?;
        let old = cq.offset;
        let size = rnic_abi::completion_queue_size(cq.depth, cq.heads.len() as u32);
        (cq.offset, cq.depth) = (reply.offset as usize, reply.depth);
        for (index, head) in (0..).zip(&cq.heads) {
            let ring = cq.offset + rnic_abi::cq_subring_offset(cq.depth, index);
            let begins = self.region.load(ring + RingIndices::HEAD);
            ensure!(
                begins == *head,
                "CQ {handle:#x}: sub-ring {index} begins at {begins}, and {head} were taken"
            );
        }
        let done = ResizeCqDone { handle, wake: 0 };
        let answer = self.request::<Empty>(Op::ResizeCqDone, &done, &[])?;
        if answer.is_ok() {
            let what = format!("the old place of CQ {handle:#x}");
            self.graves.dig(&self.region, old, size, what);
        }
        Ok(answer.map(|_| ()))
    }

    /// Takes everything there is: completions, then events.
    pub fn pump(&mut self) -> Result<()> {
        let handles: Vec<u32> = self.cqs.keys().copied().collect();
        for handle in handles {
            self.poll_cq(handle)?;
        }
        while self.take_event()? {}
        if self.owed && !self.lost {
            self.wait_for_loss()?;
        }
        Ok(())
    }

    /// Waits until the device is said to be lost. A core may be faster than the control thread.
    pub fn wait_for_loss(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.lost {
            ensure!(
                Instant::now() < deadline,
                "rnic{}: what only its removal explains, and no DEVICE_FATAL within {PATIENCE:?}",
                self.port
            );
            std::thread::sleep(Duration::from_micros(200));
            while self.take_event()? {}
        }
        Ok(())
    }

    /// A verb was refused because the device is gone. Who is told so has been sent DEVICE_FATAL before.
    pub fn refused_as_gone(&mut self, what: &str) -> Result<()> {
        while self.take_event()? {}
        ensure!(
            self.lost,
            "{what}: the device of rnic{} is gone, and no DEVICE_FATAL came before",
            self.port
        );
        Ok(())
    }

    /// Takes the completions of one CQ, unless it is muted.
    fn poll_cq(&mut self, handle: u32) -> Result<()> {
        let Some(cq) = self.cqs.get_mut(&handle).filter(|cq| !cq.muted) else {
            return Ok(());
        };
        for (index, head) in cq.heads.iter_mut().enumerate() {
            let ring = cq.offset + rnic_abi::cq_subring_offset(cq.depth, index as u32);
            let tail = self.region.load(ring + RingIndices::TAIL);
            let filled = tail.wrapping_sub(*head);
            ensure!(
                filled <= cq.depth,
                "CQ {handle:#x}: {filled} completions in a ring of {}",
                cq.depth
            );
            while *head != tail {
                let at = ring + RING_ENTRIES + (*head & (cq.depth - 1)) as usize * size_of::<Cqe>();
                let mut cqe = Cqe::default();
                self.region.read(at, cqe.as_mut_bytes());
                *head = head.wrapping_add(1);
                cq.taken += 1;
                let Some(qp) = self.qps.get_mut(&cqe.handle) else {
                    bail!(
                        "CQ {handle:#x}: a completion of QP {:#x} (handle {:#x}), which is destroyed: {cqe:?}",
                        cqe.qpn,
                        cqe.handle
                    );
                };
                let queue_cq = if cqe.flags & cqe_flags::RECV == 0 {
                    qp.send_cq
                } else {
                    qp.recv_cq
                };
                ensure!(
                    queue_cq == handle,
                    "a completion in another CQ than the queue's: {cqe:?}"
                );
                qp.complete(&cqe)?;
            }
            self.region.store(ring + RingIndices::HEAD, *head);
        }
        Ok(())
    }

    /// Takes one entry of the event ring; false when there is none.
    fn take_event(&mut self) -> Result<bool> {
        let RegionLayout {
            events,
            event_ring_len: len,
            event_slots,
            slots,
            ..
        } = self.layout;
        let filled = self
            .region
            .load(events + RingIndices::TAIL)
            .wrapping_sub(self.event_head);
        ensure!(filled <= len, "{filled} entries in an event ring of {len}");
        if filled == 0 {
            return Ok(false);
        }
        let entry = events + RING_ENTRIES + 4 * (self.event_head & (len - 1)) as usize;
        let slot = self.region.load(entry);
        ensure!(slot < slots, "event slot {slot} of {slots}");
        self.event_head = self.event_head.wrapping_add(1);
        self.region.store(events + RingIndices::HEAD, self.event_head);
        let at = event_slots + slot as usize * size_of::<EventSlot>();
        let handle = self.region.load(at + EventSlot::HANDLE);
        let pending = self.region.swap(at + EventSlot::PENDING, 0);
        let kinds = pending & event_kind::ALL;
        if kinds == 0 {
            // Of an object that was destroyed: withdrawn.
            return Ok(true);
        }
        if slot < self.devices {
            self.device_event(slot, kinds)?;
        } else if let Some(qp) = self.qps.get_mut(&handle) {
            let what = format!("QP {:#x} (handle {handle:#x})", qp.qpn);
            let fatal = kinds & event_kind::QP_FATAL;
            if self.port >= FIRST_THAT_GOES && fatal & !qp.events.explained != 0 {
                qp.events.explained |= fatal;
                self.owed = true;
            }
            qp.events.take(kinds, &what)?;
        } else if let Some(cq) = self.cqs.get_mut(&handle) {
            cq.events.take(kinds, &format!("CQ {handle:#x}"))?;
        } else {
            bail!(
                "{} of the object with handle {handle:#x} in slot {slot}, which is destroyed",
                names(kinds)
            );
        }
        Ok(true)
    }

    /// A device is lost once, and nothing is said of it afterwards: its place is never another's for who knew it.
    fn device_event(&mut self, device: u32, kinds: u32) -> Result<()> {
        ensure!(
            self.gone >> device & 1 == 0,
            "{} of device {device} after its DEVICE_FATAL",
            names(kinds)
        );
        self.port_events += 1;
        if kinds & event_kind::DEVICE_FATAL != 0 {
            ensure!(
                device >= FIRST_THAT_GOES,
                "DEVICE_FATAL of device {device}, which nobody removes"
            );
            self.gone |= 1 << device;
            self.lost |= device == self.device;
        }
        Ok(())
    }

    /// Destroys a CQ or QP and checks what must be true of it from now on: what the daemon says of its events, that
    /// none is left, that its queues are not touched any more.
    pub fn destroy(&mut self, op: Op, handle: u32) -> Result<Answer<()>> {
        let arg = HandleArg { handle, reserved: 0 };
        let reply = match self.request::<DestroyReply>(op, &arg, &[])? {
            Ok(reply) => reply,
            Err(refused) => return Ok(Err(refused)),
        };
        let taken = if let Some(qp) = self.qps.get(&handle) {
            // What was completed before the answer may stand in the rings; what comes later may not.
            let (send, recv) = (qp.send_cq, qp.recv_cq);
            self.poll_cq(send)?;
            self.poll_cq(recv)?;
            let qp = self.qps.remove(&handle).context("it is there")?;
            for cq in [send, recv] {
                if let Some(cq) = self.cqs.get_mut(&cq) {
                    cq.users -= 1;
                }
            }
            for ring in [qp.sq, qp.rq] {
                let size = rnic_abi::work_queue_size(ring.depth);
                self.graves.dig(
                    &self.region,
                    ring.offset,
                    size,
                    format!("a queue of QP {:#x}", qp.qpn),
                );
            }
            qp.events.taken
        } else {
            let cq = self.cqs.remove(&handle).context("destroyed what we have not")?;
            let size = rnic_abi::completion_queue_size(cq.depth, cq.heads.len() as u32);
            self.graves
                .dig(&self.region, cq.offset, size, format!("CQ {handle:#x}"));
            cq.events.taken
        };
        ensure!(
            reply.events_reported == taken,
            "handle {handle:#x}: {taken} events were taken, and the daemon says it reported {}",
            reply.events_reported
        );
        let slot = self.layout.event_slots + Handle(handle).slot() as usize * size_of::<EventSlot>();
        let pending = self.region.load(slot + EventSlot::PENDING) & event_kind::ALL;
        ensure!(
            pending == 0,
            "handle {handle:#x}: {} pending after it was destroyed",
            names(pending)
        );
        Ok(Ok(()))
    }

    /// Rings a QP's doorbell and wakes its core.
    pub fn ring(&self, block: u32, slot: u32) {
        let doorbell = &self.layout.doorbell;
        let base = self.layout.doorbells + block as usize * doorbell.size();
        let set = |level: usize, bit: u32| {
            self.region
                .set(base + level + (bit / 32) as usize * 4, 1 << (bit % 32));
        };
        set(doorbell.level0(), slot);
        set(DoorbellLayout::LEVEL1, slot / 64);
        if self.region.load(base + DoorbellLayout::SLEEPING) != 0 {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = send(&self.wakes[block as usize], &[1], flags);
        }
    }
}
