//! The GID manager: a client of the device registry that looks at the kernel interface behind each port, once when
//! the device comes and again whenever the kernel says that something about it has changed.
//!
//! A look may wait for the kernel, so it is work of the manager's own queue, never done on the control thread and
//! never under the registry's locks: a removal that waits for a look to end cannot be what the look waits for. What
//! it found is taken by the control thread ([`GidManager::take_found`]), which drops what is about a device that was
//! removed meanwhile. So when a removal has returned, no look at the device runs, and nothing that one found will
//! be used.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::event::{EventfdFlags, eventfd};

use crate::{
    lock_order::{Class, OrderedMutex},
    netlink::{Hints, Netdev, ScanError, Scanner},
    registry::{Attachment, Client, DeviceId, WorkQueue, Worker},
};

const FOLLOWS: Class = Class::new("followed interfaces");
const OUTBOX: Class = Class::new("looks at interfaces");
const EYE: Class = Class::new("netlink socket");

/// How an interface is looked at, by its index.
type Eye = Box<dyn FnMut(u32) -> Result<Option<Netdev>, ScanError> + Send>;

/// What one look at the interface of a device found: `None` when it is gone.
#[derive(Debug)]
pub struct Found {
    /// The device.
    pub device: DeviceId,
    /// Its interface.
    pub netdev: Result<Option<Netdev>, ScanError>,
}

/// A device whose interface is followed.
struct Follow {
    on: Arc<Attachment>,
    if_index: u32,
    /// A look is queued and has not begun: one is enough for everything that changes before it.
    queued: Arc<AtomicBool>,
    /// What a look found was taken at least once.
    seen: bool,
    /// The last look failed.
    failed: bool,
}

/// See the [module](self). Readable ([`AsFd`]) when there may be something to take.
pub struct GidManager {
    worker: Worker,
    eye: Arc<OrderedMutex<Eye>>,
    follows: OrderedMutex<BTreeMap<DeviceId, Follow>>,
    outbox: Arc<OrderedMutex<Vec<Found>>>,
    bell: Arc<OwnedFd>,
}

impl GidManager {
    /// Starts its thread, which looks at interfaces of this thread's network namespace.
    pub fn start() -> std::io::Result<Arc<Self>> {
        let mut scanner = None;
        Self::start_with(Box::new(move |if_index| match &mut scanner {
            Some(scanner) => Scanner::look(scanner, if_index),
            // Ports without an interface need no netlink, which may be forbidden.
            none => none.insert(Scanner::new()?).look(if_index),
        }))
    }

    fn start_with(eye: Eye) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(GidManager {
            worker: Worker::start("rnic-gid")?,
            eye: Arc::new(OrderedMutex::new(EYE, eye)),
            follows: OrderedMutex::new(FOLLOWS, BTreeMap::new()),
            outbox: Arc::new(OrderedMutex::new(OUTBOX, Vec::new())),
            bell: Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?),
        }))
    }

    /// Has the interfaces that these hints are about looked at.
    pub fn rescan(&self, hints: &Hints) {
        for follow in self.follows.lock().values() {
            if hints.contains(follow.if_index) {
                self.queue_look(follow);
            }
        }
    }

    /// Looks again where a look has failed.
    pub fn retry(&self) {
        for follow in self.follows.lock().values_mut().filter(|follow| follow.failed) {
            follow.failed = false;
            self.queue_look(follow);
        }
    }

    /// Whether some interface has not been seen yet.
    pub fn is_waiting(&self) -> bool {
        self.follows.lock().values().any(|follow| !follow.seen)
    }

    /// What was found since the last call, about devices that are still there.
    pub fn take_found(&self) -> Vec<Found> {
        // Fails when it was not rung.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        let mut found = std::mem::take(&mut *self.outbox.lock());
        let mut follows = self.follows.lock();
        found.retain(|found| {
            let Some(follow) = follows.get_mut(&found.device) else {
                return false;
            };
            follow.seen = true;
            follow.failed = found.netdev.is_err();
            true
        });
        found
    }

    fn queue_look(&self, follow: &Follow) {
        if follow.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let (device, if_index, queued) = (follow.on.device.id, follow.if_index, follow.queued.clone());
        let (eye, outbox, bell) = (self.eye.clone(), self.outbox.clone(), self.bell.clone());
        let look = move || {
            // From here on a change needs another look: this one may have passed it.
            queued.store(false, Ordering::Release);
            let netdev = (eye.lock())(if_index);
            outbox.lock().push(Found { device, netdev });
            // The counter cannot overflow: nobody adds to it 2^64 times.
            let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
        };
        if let Some(work) = &follow.on.work
            && work.submit(look).is_err()
        {
            // The device is being removed.
            follow.queued.store(false, Ordering::Release);
        }
    }
}

impl AsFd for GidManager {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl<C> Client<C> for GidManager {
    fn name(&self) -> &'static str {
        "gid manager"
    }

    fn queue(&self) -> Option<&WorkQueue> {
        Some(self.worker.queue())
    }

    fn add(&self, _: &mut C, on: &Arc<Attachment>) {
        let Some(if_index) = on.device.if_index else {
            return;
        };
        let follow = Follow {
            on: on.clone(),
            if_index,
            queued: Arc::default(),
            seen: false,
            failed: false,
        };
        self.queue_look(&follow);
        self.follows.lock().insert(on.device.id, follow);
    }

    fn remove(&self, _: &mut C, on: &Arc<Attachment>) {
        self.follows.lock().remove(&on.device.id);
    }
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
