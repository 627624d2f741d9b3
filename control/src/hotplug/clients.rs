//! The control thread's own clients of the device registry, in the order in which they learn of a device; of its
//! removal they learn in reverse.

use std::{sync::Arc, time::Instant};

use rnic_abi::event_kind;
use rnic_transport::{Cause, Check};

use crate::{
    control::Control,
    objects::Key,
    ops::Work,
    registry::{Attachment, Client, DeviceId},
};

/// ARP, ND, ICMP and the neighbours behind a port.
pub(super) struct SlowPathClient;

impl Client<Control> for SlowPathClient {
    fn name(&self) -> &'static str {
        "slow path"
    }

    fn add(&self, cx: &mut Control, on: &Arc<Attachment>) {
        let slot = on.device.id.slot;
        let Control {
            slow,
            devices,
            hotplug,
            neighbours,
            ..
        } = cx;
        slow.add_port(slot, &devices[usize::from(slot)]);
        if let Some(config) = &hotplug.ports[usize::from(slot)] {
            neighbours.add_port(slot, config, Instant::now());
        }
    }

    fn remove(&self, cx: &mut Control, on: &Arc<Attachment>) {
        let port = on.device.id.slot;
        cx.slow.remove_port(port);
        cx.engine.addresses().set(port, []);
        cx.sever_paths(port);
    }
}

/// Tells the clients of the daemon that a device has come or gone.
pub(super) struct EventRelay;

impl Client<Control> for EventRelay {
    fn name(&self) -> &'static str {
        "event relay"
    }

    fn add(&self, cx: &mut Control, on: &Arc<Attachment>) {
        let id = on.device.id;
        let all: Vec<u32> = cx.by_index.values().copied().collect();
        for conn in all {
            if let Ok(client) = cx.client_mut(conn) {
                client.see(id);
            }
        }
        let slot = usize::from(id.slot);
        if cx.devices[slot].up {
            cx.device_event(slot, event_kind::PORT_ACTIVE, &Cause::default());
        }
    }

    fn remove(&self, cx: &mut Control, on: &Arc<Attachment>) {
        // When the relay itself goes, nobody is left to be told.
        if !on.device.is_present() {
            let cause = Cause::of(Check::DeviceRemoved);
            cx.device_event(usize::from(on.device.id.slot), event_kind::DEVICE_FATAL, &cause);
        }
    }
}

/// A session of the verbs socket.
pub(super) struct SessionClient {
    pub conn: u32,
}

impl Client<Control> for SessionClient {
    fn name(&self) -> &'static str {
        "session"
    }

    fn add(&self, _: &mut Control, _: &Arc<Attachment>) {}

    fn remove(&self, cx: &mut Control, on: &Arc<Attachment>) {
        // When it is the session that goes, everything of it is destroyed already.
        if !on.device.is_present() {
            cx.fail_qps_of(self.conn, on.device.id);
        }
    }
}

impl Control {
    /// Moves every QP of a client on a device that goes to the error state.
    fn fail_qps_of(&mut self, conn: u32, id: DeviceId) {
        let Some(removal) = self.hotplug.removing else {
            return;
        };
        let device = u32::from(id.slot);
        let Ok(client) = self.client_mut(conn) else { return };
        if !client.sees(id) {
            return;
        }
        let keys: Vec<_> = client.objects.iter().copied().collect();
        let on_device = |key: &Key| {
            self.objects
                .peek(*key)
                .is_some_and(|object| object.device == device)
        };
        let keys: Vec<_> = keys.into_iter().filter(on_device).collect();
        let cause = Cause::of(Check::DeviceRemoved);
        let failing: Vec<_> = keys
            .into_iter()
            .filter_map(|key| self.fail_qp(removal, key, cause))
            .collect();
        if let Some(Work::RemovePort(removal)) = self.ops.work_mut(removal) {
            removal.qps.extend(failing);
        }
    }
}
