//! What the control thread does by the clock: links, clients' memory, the health of the cores, systemd.

use std::time::{Duration, Instant};

use rnic_abi::event_kind;
use rnic_transport::Cause;

use crate::{
    control::Control,
    poller::{Interest, Source},
};

/// Between looks at links, clients' memory and the health of the cores.
const CHECK_EVERY: Duration = Duration::from_millis(100);
impl Control {
    /// Does what is due.
    pub(crate) fn upkeep(&mut self, now: Instant) {
        self.slow.tick(now);
        self.ask_neighbours(now);
        self.tend_ahs();
        if now >= self.next_check {
            self.next_check = now + CHECK_EVERY;
            self.watch_cores(now);
            self.gids.retry();
            self.check_links();
            self.check_gone();
            self.check_memory();
            self.dismiss_strangers(now);
            self.audit();
            for source in [Source::Listener, Source::AdminListener] {
                if let Some(listener) = self.listener_of(source) {
                    self.poller.change(listener, source, Interest::Read);
                }
            }
            if !self.failed && !self.engine.is_healthy() {
                tracing::error!("a poll core has ended by itself; the daemon stops");
                self.failed = true;
                self.begin_stop();
            }
        }
        let clients = self.by_index.len();
        self.notifier.tick(now, || format!("{clients} clients"));
    }

    pub(crate) fn check_links(&mut self) {
        for port in 0..self.devices.len() {
            let Some(link) = self.engine.port(port as u16).map(|info| &info.link) else {
                continue;
            };
            let device = &mut self.devices[port];
            let up = link.is_up() && device.netdev_up;
            device.speed_mbps = link.speed_mbps();
            if up == device.up {
                continue;
            }
            device.up = up;
            device.sequence = device.sequence.wrapping_add(1);
            tracing::info!(device = %device.name, up, "the link has changed");
            let kind = if up {
                event_kind::PORT_ACTIVE
            } else {
                event_kind::PORT_ERR
            };
            self.device_event(port, kind, &Cause::default());
        }
    }

    fn check_memory(&mut self) {
        let faulted: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, c)| !c.leaving && c.client.as_ref().is_some_and(|client| client.fault.is_set()))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in faulted {
            self.expel(conn, "memory it shared with the daemon was not there");
        }
    }
}
