//! A daemon for tests: one thread that answers control requests and plays the poll cores over the same shared
//! region, with the daemon's halves of the protocols. It moves bytes between two QPs directly and does no
//! more checking than the tests need.
#![allow(dead_code)]

mod control;
mod engine;
#[path = "../../src/shm.rs"]
mod shm;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rnic_abi::{Av, Cause, EventSlot, QpAttrs, RING_ENTRIES, RegionLayout, RingIndices, event};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recv, send, socket_with, socketpair,
};
use shm::Mapping;
use zerocopy::IntoBytes;

pub const DEVICES: u32 = 2;
pub const CORES: u32 = 2;
pub const SLOTS: u32 = 256;
const QUEUE_SPACE: usize = 64 << 20;

/// The running daemon; stopped when dropped.
pub struct Mock {
    pub socket: PathBuf,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    poke: OwnedFd,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

#[derive(Default)]
pub struct State {
    pub clients: Vec<Client>,
    pub next_number: u32,
    /// Requests refused, by their texts.
    pub refused: Vec<String>,
    /// Times a sleeping core was woken by a wake socket.
    pub wakes: u32,
    /// Whether to damage the first byte of every payload.
    pub corrupt: bool,
}

pub struct Client {
    control: OwnedFd,
    session: u64,
    pub region: Mapping,
    pub layout: RegionLayout,
    queue_next: usize,
    next_slot: u32,
    event_tail: u32,
    events: OwnedFd,
    core_wakes: Vec<OwnedFd>,
    pub objects: BTreeMap<u32, Object>,
}

pub enum Object {
    Pd { device: u32 },
    Mr(Mr),
    Channel(OwnedFd),
    Cq(Cq),
    Qp(Box<Qp>),
    Ah(Ah),
}

pub struct Ah {
    pub pd: u32,
    pub av: Av,
}

pub struct Mr {
    pd: u32,
    memory: Mapping,
    iova: u64,
    length: u64,
    access: u32,
}

pub struct Cq {
    pub offset: usize,
    pub depth: u32,
    channel: u32,
    /// Tail of each sub-ring.
    pub tails: Vec<u32>,
}

pub struct Qp {
    pd: u32,
    pub qpn: u32,
    pub send_cq: u32,
    pub recv_cq: u32,
    sig_all: bool,
    pub sq: Ring,
    pub rq: Ring,
    pub attrs: QpAttrs,
    cause: Cause,
    reported: u32,
}

/// The daemon's view of a work queue.
#[derive(Copy, Clone)]
pub struct Ring {
    pub offset: usize,
    pub depth: u32,
    pub head: u32,
    /// The tail at the start of the last pass.
    seen: u32,
}

impl Mock {
    pub fn start() -> Mock {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("rnicd.sock");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
        listen(&listener, 16).unwrap();
        let (poke, poked) = pair();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || run(&listener, &poked, &state, &stop)
        });
        Mock {
            socket,
            state,
            stop,
            poke,
            thread: Some(thread),
            _dir: dir,
        }
    }

    /// The daemon's inside; it stands still meanwhile.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Stops the daemon, closing every client's sockets.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = send(&self.poke, &[1], SendFlags::NOSIGNAL);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

fn run(listener: &OwnedFd, poked: &OwnedFd, mutex: &Mutex<State>, stop: &AtomicBool) {
    let mut idle = 0;
    while !stop.load(Ordering::Acquire) {
        let mut state = mutex.lock().unwrap();
        let mut busy = false;
        if let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            control::accept(&mut state, socket);
            busy = true;
        }
        busy |= control::serve(&mut state);
        busy |= engine::run(&mut state);
        idle = if busy { 0 } else { idle + 1 };
        if idle < 50 {
            drop(state);
            std::thread::yield_now();
        } else if !engine::may_sleep(&mut state) {
            engine::awake(&mut state);
        } else {
            let mut fds = vec![listener.as_fd(), poked.as_fd()];
            let copies: Vec<OwnedFd> = state
                .clients
                .iter()
                .flat_map(|client| client.core_wakes.iter().chain([&client.control]))
                .map(|fd| fd.try_clone().unwrap())
                .collect();
            fds.extend(copies.iter().map(AsFd::as_fd));
            drop(state);
            let mut fds: Vec<_> = fds
                .into_iter()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            poll(&mut fds, None).unwrap();
            engine::awake(&mut mutex.lock().unwrap());
            idle = 0;
        }
    }
    mutex.lock().unwrap().clients.clear();
}

impl Client {
    pub fn qp(&mut self, qpn: u32) -> Option<(u32, &mut Qp)> {
        self.objects.iter_mut().find_map(|(handle, object)| match object {
            Object::Qp(qp) if qp.qpn == qpn => Some((*handle, &mut **qp)),
            _ => None,
        })
    }

    /// Reports an event as the daemon does.
    pub fn report(&mut self, handle: u32, number: u32, kind: u32, cause: Cause) {
        let slot = rnic_abi::Handle(handle).slot();
        let at = self.layout.event_slots + slot as usize * size_of::<EventSlot>();
        self.region
            .u32(at + EventSlot::HANDLE)
            .store(handle, Ordering::Relaxed);
        self.region
            .u32(at + EventSlot::NUMBER)
            .store(number, Ordering::Relaxed);
        let generation = rnic_abi::Handle(handle).generation();
        let raised = event::raise(self.region.u32(at + EventSlot::PENDING), generation, kind, || {
            self.region.write(at + EventSlot::CAUSE, cause.as_bytes());
        });
        if let Some(Object::Qp(qp)) = self.objects.get_mut(&handle) {
            qp.reported += raised.reported;
        }
        if !raised.push {
            return;
        }
        let ring = self.layout.events;
        let entry = ring + RING_ENTRIES + 4 * (self.event_tail & (self.layout.event_ring_len - 1)) as usize;
        self.region.u32(entry).store(slot, Ordering::Relaxed);
        self.event_tail = self.event_tail.wrapping_add(1);
        self.region
            .u32(ring + RingIndices::TAIL)
            .store(self.event_tail, Ordering::Release);
        wake(&self.events);
    }

    /// Takes back the events of an object that the client has not taken, and tells how many.
    fn withdraw(&self, handle: u32) -> u32 {
        let slot = rnic_abi::Handle(handle).slot() as usize;
        let at = self.layout.event_slots + slot * size_of::<EventSlot>();
        event::withdraw(self.region.u32(at + EventSlot::PENDING))
    }
}

fn wake(socket: &OwnedFd) {
    let _ = send(socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// Takes what is in a wake socket; whether there was something.
fn drain(socket: &OwnedFd) -> bool {
    let mut any = false;
    while matches!(recv(socket, &mut [0u8; 8], RecvFlags::DONTWAIT), Ok((1.., _))) {
        any = true;
    }
    any
}
