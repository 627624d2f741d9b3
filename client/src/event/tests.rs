use std::os::fd::OwnedFd;

use rnic_abi::event_kind::{PORT_ACTIVE, PORT_ERR, QP_FATAL};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;

/// A queue, and the daemon's half of it.
struct Scene {
    queue: EventQueue,
    region: Mapping,
    layout: RegionLayout,
    _daemon: OwnedFd,
}

impl Scene {
    fn new() -> Scene {
        let layout = RegionLayout::new(4, 1, 4096);
        let file = memfd_create("events", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, layout.size as u64).unwrap();
        let region = Mapping::new(&file, layout.size).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        Scene {
            queue: EventQueue::new(WakeSocket::new(ours), &layout),
            region,
            layout,
            _daemon: theirs,
        }
    }

    fn word(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        self.region.u32(offset)
    }

    fn slot(&self, handle: u32, field: usize) -> &std::sync::atomic::AtomicU32 {
        let slot = Handle(handle).slot() as usize;
        self.word(self.layout.event_slots + slot * size_of::<EventSlot>() + field)
    }

    fn raise(&self, handle: u32, kinds: u32) {
        self.slot(handle, EventSlot::HANDLE)
            .store(handle, Ordering::Relaxed);
        let generation = Handle(handle).generation();
        let pending = self.slot(handle, EventSlot::PENDING);
        if event::raise(pending, generation, kinds, || ()).push {
            let tail = self.word(self.layout.events);
            let index = tail.load(Ordering::Relaxed);
            let entry = RING_ENTRIES + 4 * (index & (self.layout.event_ring_len - 1)) as usize;
            self.word(self.layout.events + entry)
                .store(Handle(handle).slot(), Ordering::Relaxed);
            tail.store(index + 1, Ordering::Release);
        }
    }

    fn pop(&self) -> Option<(EventKind, u32)> {
        self.queue
            .pop(&self.region)
            .map(|(event, _)| (event.kind, event.handle))
    }
}

const QP: u32 = Handle::new(2, 7).0;

#[test]
fn every_kind_of_the_abi_has_a_name_and_a_variant() {
    let names: Vec<_> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names, event_kind::NAMES);
}

#[test]
fn every_kind_reaches_the_application_once() {
    let scene = Scene::new();
    scene.raise(QP, event_kind::ALL);
    let popped: Vec<_> = std::iter::from_fn(|| scene.pop()).collect();
    assert_eq!(popped.len(), EventKind::ALL.len());
    assert!(EventKind::ALL.iter().all(|kind| popped.contains(&(*kind, QP))));
}

#[test]
fn an_event_that_comes_before_its_object_is_known_is_not_lost() {
    // The thread that makes the QP has yet to read its answer.
    let scene = Scene::new();
    scene.raise(QP, QP_FATAL);
    assert_eq!(scene.pop(), Some((EventKind::QpFatal, QP)));
}

#[test]
fn a_destroyed_objects_events_are_dropped_wherever_they_are() {
    let scene = Scene::new();
    // One kind is handed out, one is ready, one stands in the slot as if the daemon had not withdrawn it.
    scene.raise(QP, QP_FATAL | event_kind::COMM_EST);
    scene.pop().unwrap();
    scene.raise(QP, event_kind::SQ_DRAINED);
    scene.queue.forget(QP);
    assert_eq!(scene.pop(), None);
    let next = Handle::new(2, 8).0;
    scene.raise(next, QP_FATAL);
    assert_eq!(
        scene.pop(),
        Some((EventKind::QpFatal, next)),
        "the slot's next object has its own"
    );
}

#[test]
fn of_the_states_of_a_port_the_true_one_comes_last() {
    use EventKind::{PortActive, PortError};
    for (sequence, order) in [(4, [PortError, PortActive]), (5, [PortActive, PortError])] {
        let scene = Scene::new();
        scene
            .slot(0, EventSlot::SEQUENCE)
            .store(sequence, Ordering::Relaxed);
        scene.raise(0, PORT_ACTIVE | PORT_ERR);
        let popped = [scene.pop(), scene.pop()].map(|event| event.unwrap().0);
        assert_eq!(popped, order, "sequence {sequence}");
    }
}

/// Objects come and go in a few slots, each failing or not, while another thread takes events: what is told is
/// exactly what the daemon says it has reported.
#[test]
fn what_is_told_is_what_was_reported() {
    const OBJECTS: u32 = 20_000;
    let scene = Scene::new();
    let told = Mutex::new(std::collections::HashMap::<u32, u32>::new());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Once more after the end is known.
            loop {
                let last = done.load(Ordering::Acquire);
                // The lock spans taking and counting, so that an event is either counted or still to be withdrawn.
                loop {
                    let mut told = told.lock().unwrap();
                    let Some((_, handle)) = scene.pop() else { break };
                    *told.entry(handle).or_default() += 1;
                }
                if last {
                    break;
                }
                std::thread::yield_now();
            }
        });
        for object in 0..OBJECTS {
            let handle = Handle::new(object % 4, object / 4).0;
            let failures = object % 3;
            let mut reported = 0;
            for kind in [QP_FATAL, event_kind::QP_ACCESS_ERR]
                .iter()
                .take(failures as usize)
            {
                scene.raise(handle, *kind);
                reported += 1;
            }
            let mut told = told.lock().unwrap();
            let withdrawn = event::withdraw(scene.slot(handle, EventSlot::PENDING));
            // Of two kinds taken at once the second may not have been handed out yet.
            let mut ready = scene.queue.lock().ready.clone();
            ready.retain(|event| event.handle == handle);
            assert_eq!(
                told.remove(&handle).unwrap_or(0) + ready.len() as u32,
                reported - withdrawn,
                "object {object}"
            );
            scene.queue.lock().held.clear();
            scene.queue.forget(handle);
        }
        done.store(true, Ordering::Release);
    });
    let told = told.into_inner().unwrap();
    assert!(told.is_empty(), "told after the destroy returned: {told:?}");
}
