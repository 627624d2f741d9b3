//! The registry: devices, and the clients that follow their coming and going (event relay, sessions, slow path, GID
//! manager, CM).
//!
//! [`Client::add`] and [`Client::remove`] are synchronous. A device that comes is announced to every client, a client
//! that comes is told of every device; when a removal returns, on either side, none of the client's code runs or will
//! run on that device: what it had queued in its [`WorkQueue`] for the device was cancelled or finished.
//!
//! Devices and clients have separate locks. Announcements run under the lock of the client list alone, so that a scan
//! of the devices ([`Registry::devices`], by a client's worker, say) goes on while a client is being removed, and a
//! removal may wait for a worker that scans. The order is client list, registry work, device list; a client's code
//! must not add or remove clients or devices itself. `lock_order` reports a violation the first time it happens.
//!
//! `C` is what clients work on: the control thread's state. Callbacks run on the thread that adds or removes.

mod entry;
mod primitive;
mod work;
mod worker;

use std::sync::Arc;

use self::entry::Entry as Device;
use crate::lock_order::{Class, OrderedMutex};

pub use entry::{DeviceId, DeviceState, Entry};
pub use work::{Detached, Task, Work, WorkQueue};
pub use worker::Worker;

const CLIENTS: Class = Class::new("client list");
const DEVICES: Class = Class::new("device list");

/// Follows the coming and going of devices.
pub trait Client<C>: Send + Sync {
    /// Its name, for the log.
    fn name(&self) -> &'static str;

    /// Where its work off the control thread is done; `None` when all of it is done in callbacks.
    fn queue(&self) -> Option<&WorkQueue> {
        None
    }

    /// A device is there. May queue work for it; may keep the attachment.
    fn add(&self, cx: &mut C, on: &Arc<Attachment>);

    /// The device is being removed, or the client is. Lets go of it. Work that must still be done can be finished
    /// with [`Work::flush`]; what is queued when this returns is cancelled.
    fn remove(&self, cx: &mut C, on: &Arc<Attachment>);
}

/// A client on a device.
#[derive(Debug)]
pub struct Attachment {
    /// The device.
    pub device: Arc<Device>,
    /// The client's work on it, if it has a [`Client::queue`].
    pub work: Option<Work>,
}

/// Names a registered client.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(u64);

struct Registered<C> {
    id: ClientId,
    client: Arc<dyn Client<C>>,
    on: Vec<Arc<Attachment>>,
}

struct Clients<C> {
    next: u64,
    list: Vec<Registered<C>>,
}

/// Why a device cannot be removed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// It is not there.
    #[error("there is no such device")]
    Unknown,
    /// Somebody else is removing it.
    #[error("the device is being removed already")]
    Removing,
}

/// See the [module](self).
pub struct Registry<C> {
    clients: OrderedMutex<Clients<C>>,
    devices: OrderedMutex<Vec<Arc<Device>>>,
}

impl<C> Default for Registry<C> {
    fn default() -> Self {
        let none = Clients {
            next: 0,
            list: Vec::new(),
        };
        Registry {
            clients: OrderedMutex::new(CLIENTS, none),
            devices: OrderedMutex::new(DEVICES, Vec::new()),
        }
    }
}

impl<C> Registry<C> {
    /// The devices that may be used. Any thread, also within a client's work.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        let devices = self.devices.lock();
        devices
            .iter()
            .filter(|device| device.is_present())
            .cloned()
            .collect()
    }

    /// Makes a device and adds it, as [`Registry::announce`] does.
    pub fn add_device(&self, cx: &mut C, id: DeviceId, name: &str, if_index: Option<u32>) -> Arc<Device> {
        let device = Arc::new(Device::new(id, name, if_index));
        self.announce(cx, device.clone());
        device
    }

    /// Adds a device and tells every client, in the order they came.
    pub fn announce(&self, cx: &mut C, device: Arc<Device>) {
        let mut clients = self.clients.lock();
        self.devices.lock().push(device.clone());
        for registered in &mut clients.list {
            registered.attach(cx, &device);
        }
    }

    /// Removes a device: from now on it may not be used; every client, the latest first, lets go of it; then it is in
    /// no list any more. What its port needs to end comes after, then [`Registry::gone`].
    ///
    /// # Errors
    /// [`RemoveError`]: nothing was done.
    pub fn remove_device(&self, cx: &mut C, id: DeviceId) -> Result<Arc<Device>, RemoveError> {
        let device = self.find(id).ok_or(RemoveError::Unknown)?;
        if !device.advance(DeviceState::Removing) {
            return Err(RemoveError::Removing);
        }
        let mut clients = self.clients.lock();
        for registered in clients.list.iter_mut().rev() {
            registered.detach(cx, &device);
        }
        drop(clients);
        self.devices.lock().retain(|other| other.id != id);
        Ok(device)
    }

    /// The port of a removed device is closed.
    pub fn gone(&self, device: &Device) {
        device.advance(DeviceState::Gone);
    }

    /// Adds a client and tells it of every device.
    pub fn add_client(&self, cx: &mut C, client: Arc<dyn Client<C>>) -> ClientId {
        let mut clients = self.clients.lock();
        let id = ClientId(clients.next);
        clients.next += 1;
        let mut registered = Registered {
            id,
            client,
            on: Vec::new(),
        };
        for device in self.devices() {
            registered.attach(cx, &device);
        }
        clients.list.push(registered);
        id
    }

    /// Removes a client from every device and from the list. `false` when it is not there.
    pub fn remove_client(&self, cx: &mut C, id: ClientId) -> bool {
        let mut clients = self.clients.lock();
        let Some(at) = clients.list.iter().position(|registered| registered.id == id) else {
            return false;
        };
        let mut registered = clients.list.remove(at);
        while let Some(attachment) = registered.on.last().cloned() {
            registered.detach(cx, &attachment.device);
        }
        true
    }

    fn find(&self, id: DeviceId) -> Option<Arc<Device>> {
        self.devices.lock().iter().find(|device| device.id == id).cloned()
    }
}

impl<C> Registered<C> {
    fn attach(&mut self, cx: &mut C, device: &Arc<Device>) {
        let attachment = Arc::new(Attachment {
            device: device.clone(),
            work: self.client.queue().map(WorkQueue::attach),
        });
        tracing::trace!(client = self.client.name(), device = %device.name, "attached");
        self.on.push(attachment.clone());
        self.client.add(cx, &attachment);
    }

    fn detach(&mut self, cx: &mut C, device: &Device) {
        let Some(at) = self
            .on
            .iter()
            .position(|attachment| attachment.device.id == device.id)
        else {
            return;
        };
        let attachment = self.on.remove(at);
        self.client.remove(cx, &attachment);
        // Whatever the client did or forgot: from here on nothing of it runs on the device.
        if let Some(work) = &attachment.work {
            work.cancel();
        }
        tracing::trace!(client = self.client.name(), device = %device.name, "detached");
    }
}

#[cfg(test)]
mod tests;
