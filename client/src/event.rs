//! Asynchronous events.
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use rnic_abi::{EventSlot, Handle, RING_ENTRIES, RegionLayout, RingIndices, event, event_kind};
use zerocopy::IntoBytes;

use crate::session::Session;
use crate::shm::Mapping;
use crate::wake::{WakeSocket, deadline};
use crate::{Cause, Result};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $bit:ident;)*) => {
        /// What happened.
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum EventKind { $($(#[$doc])* $name,)* }

        impl EventKind {
            const ALL: &[EventKind] = &[$(EventKind::$name,)*];

            const fn bit(self) -> u32 {
                match self { $(EventKind::$name => event_kind::$bit,)* }
            }
        }
    };
}

kinds! {
    /// The QP went to the error state.
    QpFatal = QP_FATAL;
    /// The QP refused a peer's request: invalid request.
    QpRequestError = QP_REQ_ERR;
    /// The QP refused a peer's request: key, address or access.
    QpAccessError = QP_ACCESS_ERR;
    /// First packet on a QP in RTR.
    CommEstablished = COMM_EST;
    /// The send queue is drained.
    SqDrained = SQ_DRAINED;
    /// A QP on an SRQ took its last WQE. There are no SRQs yet.
    LastWqeReached = LAST_WQE_REACHED;
    /// The SRQ fell below its limit. There are no SRQs yet.
    SrqLimitReached = SRQ_LIMIT_REACHED;
    /// The SRQ failed. There are no SRQs yet.
    SrqError = SRQ_ERR;
    /// The CQ overflowed and is lost.
    CqError = CQ_ERR;
    /// The port came up.
    PortActive = PORT_ACTIVE;
    /// The port went down.
    PortError = PORT_ERR;
    /// The GID table changed.
    GidChange = GID_CHANGE;
    /// The device is gone or unusable.
    DeviceFatal = DEVICE_FATAL;
}

impl EventKind {
    /// Its name in the daemon and in verbs, without the prefix: `QP_FATAL`.
    pub fn name(self) -> &'static str {
        event_kind::NAMES[self.bit().trailing_zeros() as usize]
    }

    /// Whether something has failed.
    pub fn is_error(self) -> bool {
        self.bit() & event_kind::ERRORS != 0
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The object an event is about.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventObject {
    /// A QP, by its number.
    Qp(u32),
    /// A CQ, by the number of [`crate::Cq::number`].
    Cq(u32),
    /// An SRQ, by its number.
    Srq(u32),
    /// A port, by its number.
    Port(u32),
    /// The device.
    Device,
}

impl EventObject {
    fn of(kind: EventKind, number: u32) -> EventObject {
        use EventKind::*;
        match kind {
            QpFatal | QpRequestError | QpAccessError | CommEstablished | SqDrained | LastWqeReached => {
                EventObject::Qp(number)
            }
            SrqLimitReached | SrqError => EventObject::Srq(number),
            CqError => EventObject::Cq(number),
            PortActive | PortError | GidChange => EventObject::Port(number),
            DeviceFatal => EventObject::Device,
        }
    }
}

impl fmt::Display for EventObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventObject::Qp(number) => write!(f, "QP {number:#x}"),
            EventObject::Cq(number) => write!(f, "CQ {number}"),
            EventObject::Srq(number) => write!(f, "SRQ {number}"),
            EventObject::Port(number) => write!(f, "port {number}"),
            EventObject::Device => f.write_str("the device"),
        }
    }
}

/// An asynchronous event. Dropping it acknowledges it: destroying the object waits until other threads have
/// dropped the events of it that they hold.
#[derive(Debug)]
pub struct AsyncEvent {
    /// What happened.
    pub kind: EventKind,
    /// To what.
    pub object: EventObject,
    /// Why, of an error. When several errors happened to one object before they were read, all carry the cause of the
    /// first.
    pub cause: Option<Cause>,
    /// For port events: counts the changes, so that the newest can be told.
    pub sequence: u32,
    handle: u32,
    holder: ThreadId,
    session: Arc<Session>,
}

impl fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.kind, self.object)?;
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl Drop for AsyncEvent {
    fn drop(&mut self) {
        self.session.events.acknowledge(self.handle, self.holder);
    }
}

/// The events of a context, for an event loop: readable when there may be some. Call [`AsyncEvents::next`] with
/// a timeout of zero until it returns `None`.
#[derive(Clone, Debug)]
pub struct AsyncEvents(pub(crate) Arc<Session>);

impl AsyncEvents {
    /// The next event; `None` when the time is over, no timeout is for ever. Any thread.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<AsyncEvent>> {
        let Session { events, region, .. } = &*self.0;
        let found = events
            .wake
            .wait_for(deadline(timeout), "waiting for an event", || {
                Ok(events.pop(region))
            })?;
        Ok(found.map(|(event, holder)| AsyncEvent {
            kind: event.kind,
            object: EventObject::of(event.kind, event.number),
            cause: event.cause,
            sequence: event.sequence,
            handle: event.handle,
            holder,
            session: self.0.clone(),
        }))
    }
}

impl AsFd for AsyncEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.events.wake.as_fd()
    }
}

/// The client's side of the event ring.
#[derive(Debug)]
pub(crate) struct EventQueue {
    wake: WakeSocket,
    ring: usize,
    ring_len: u32,
    slots_offset: usize,
    slots: u32,
    state: Mutex<State>,
    acknowledged: Condvar,
    /// The device of the context, and how many there can be.
    device: OnceLock<(u32, u32)>,
}

#[derive(Debug, Default)]
struct State {
    head: u32,
    /// Taken from the ring, not yet handed out: one entry of the ring can stand for several kinds.
    ready: VecDeque<Event>,
    /// By slot, the object that was destroyed last: no event of it is handed out. (The daemon has withdrawn
    /// those; this is a second line.) Objects are not to be known here: one may have events before the thread
    /// that makes it has its answer.
    dead: HashMap<u32, u32>,
    /// Handed out and not yet acknowledged, with the thread that got it.
    held: Vec<(u32, ThreadId)>,
}

#[derive(Copy, Clone, Debug)]
struct Event {
    kind: EventKind,
    handle: u32,
    number: u32,
    sequence: u32,
    cause: Option<Cause>,
}

impl EventQueue {
    pub fn new(wake: WakeSocket, layout: &RegionLayout) -> EventQueue {
        EventQueue {
            wake,
            ring: layout.events,
            ring_len: layout.event_ring_len,
            slots_offset: layout.event_slots,
            slots: layout.slots,
            state: Mutex::default(),
            acknowledged: Condvar::new(),
            device: OnceLock::new(),
        }
    }

    /// Of the first `devices` slots, which are the devices', only that of `device` is of interest from now on.
    pub fn follow(&self, device: u32, devices: u32) {
        let _ = self.device.set((device, devices));
    }

    /// Whether a slot is that of another device.
    fn is_anothers(&self, slot: u32) -> bool {
        let other = |(device, devices): &(u32, u32)| slot < *devices && slot != *device;
        self.device.get().is_some_and(other)
    }

    fn pop(&self, region: &Mapping) -> Option<(Event, ThreadId)> {
        let mut state = self.lock();
        while state.ready.is_empty() && self.refill(region, &mut state) {}
        let event = state.ready.pop_front()?;
        let holder = std::thread::current().id();
        state.held.push((event.handle, holder));
        Some((event, holder))
    }

    /// Takes one entry of the ring; false when the ring is empty.
    fn refill(&self, region: &Mapping, state: &mut State) -> bool {
        let tail = region.u32(self.ring + RingIndices::TAIL).load(Ordering::Acquire);
        let filled = tail.wrapping_sub(state.head);
        if filled == 0 || filled > self.ring_len {
            return false;
        }
        let entry = self.ring + RING_ENTRIES + 4 * (state.head & (self.ring_len - 1)) as usize;
        let slot = region.u32(entry).load(Ordering::Relaxed);
        state.head = state.head.wrapping_add(1);
        // Before `pending` is cleared: from then on the daemon may push the slot again.
        region
            .u32(self.ring + RingIndices::HEAD)
            .store(state.head, Ordering::Release);
        if slot < self.slots {
            let at = self.slots_offset + slot as usize * size_of::<EventSlot>();
            let State { ready, dead, .. } = state;
            let unwanted = self.is_anothers(slot);
            let wanted = |event: &Event| !unwanted && dead.get(&slot) != Some(&event.handle);
            ready.extend(take(region, at).filter(wanted));
        }
        true
    }

    fn acknowledge(&self, handle: u32, holder: ThreadId) {
        let mut state = self.lock();
        if let Some(at) = state.held.iter().position(|held| *held == (handle, holder)) {
            state.held.swap_remove(at);
        }
        drop(state);
        self.acknowledged.notify_all();
    }

    /// The object was destroyed: drops its events that nobody has seen and waits until those handed out are
    /// acknowledged. Events this very thread was given are not waited for: it could never acknowledge them.
    ///
    /// This is the wait for `events_reported` acknowledgements that the protocol asks for. An event is taken from
    /// its slot and recorded under one lock, and before the daemon answered it withdrew the events not taken: so
    /// those on record are all that were reported, and the count itself is not needed.
    pub fn forget(&self, handle: u32) {
        let me = std::thread::current().id();
        let mut state = self.lock();
        state.dead.insert(Handle(handle).slot(), handle);
        state.ready.retain(|event| event.handle != handle);
        while state
            .held
            .iter()
            .any(|(of, holder)| *of == handle && *holder != me)
        {
            state = self
                .acknowledged
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what is pending in the slot at `at`, in the order of the kinds; of the states of a port the true one
/// comes last.
fn take(region: &Mapping, at: usize) -> impl Iterator<Item = Event> + use<> {
    let word = |offset| region.u32(at + offset).load(Ordering::Relaxed);
    let (pending, details) = event::take(region.u32(at + EventSlot::PENDING), || {
        let mut cause = rnic_abi::Cause::default();
        region.read(at + EventSlot::CAUSE, cause.as_mut_bytes());
        Event {
            kind: EventKind::DeviceFatal,
            handle: word(EventSlot::HANDLE),
            number: word(EventSlot::NUMBER),
            sequence: word(EventSlot::SEQUENCE),
            cause: Cause::from_abi(cause),
        }
    });
    details.into_iter().flat_map(move |details| {
        let mut kinds: Vec<_> = EventKind::ALL
            .iter()
            .copied()
            .filter(|kind| pending & kind.bit() != 0)
            .collect();
        let is_up = details.sequence % 2 == 0;
        let last = if is_up {
            EventKind::PortActive
        } else {
            EventKind::PortError
        };
        kinds.sort_by_key(|kind| *kind == last);
        kinds.into_iter().map(move |kind| Event {
            kind,
            // Beside other kinds it may just be being written, or be that of an error long past.
            cause: details.cause.filter(|_| kind.is_error()),
            ..details
        })
    })
}

#[cfg(test)]
mod tests;
