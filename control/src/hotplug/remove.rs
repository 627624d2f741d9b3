//! A port that goes; the order is that of the [module](super).

use std::fmt;

use rnic_engine::{PortInfo, command::Command};
use rnic_qsbr::Epoch;

use super::PortChange;
use crate::{
    admin::{NOBODY, ok},
    control::Control,
    gid::GidTable,
    ops::{Op, Work},
    registry::DeviceState,
};

/// A port that is being removed. Steps that wait are states.
pub struct Removal {
    /// Who asked; nobody when the device vanished.
    admin: Option<u32>,
    slot: u16,
    step: Step,
    /// QPs that have failed: core and slot.
    pub(super) qps: Vec<(usize, u32)>,
    /// The port, until it is closed.
    port: Option<PortInfo>,
}

/// How often a QP is flushed before the removal goes on: more than its queues can hold at once, but there is an end to
/// it when a client goes on posting.
const FLUSH_ROUNDS: u32 = 4096;

enum Step {
    /// QPs go to ERR, cores give up their parts.
    Cores,
    /// Cores let go of frames that were handed over.
    Frames,
    /// QPs are flushed; how often cores will still be asked.
    Flush(u32),
    /// Cores pass quiescent states.
    Grace(Epoch),
    /// The port is being closed.
    Close,
}

impl fmt::Debug for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Removal({})", self.slot)
    }
}

impl Control {
    /// Begins the removal of a port; `admin` is answered when all of it is gone.
    ///
    /// # Errors
    /// In words: it is not there, or not yet, or no longer.
    pub(crate) fn remove_port(&mut self, admin: Option<u32>, name: &str) -> Result<(), String> {
        if self
            .hotplug
            .opening
            .iter()
            .any(|port| port.name.to_string() == name)
        {
            return Err(format!("port {name} is being opened; remove it when it is there"));
        }
        let found = self.devices_there().find(|(_, device)| device.name == name);
        let Some((at, device)) = found else {
            let names: Vec<_> = self
                .devices_there()
                .map(|(_, device)| device.name.clone())
                .collect();
            return Err(format!(
                "there is no port {name}; there are: {}",
                names.join(", ")
            ));
        };
        if device.entry.state() != DeviceState::Present {
            return Err(format!("port {name} is being removed already"));
        }
        let id = device.entry.id;
        let slot = id.slot;
        tracing::info!(port = name, "a port is being removed");
        let number = self.begin(
            NOBODY,
            Work::RemovePort(Box::new(Removal {
                admin,
                slot,
                step: Step::Cores,
                qps: Vec::new(),
                port: None,
            })),
        );
        // Steps 1 and 2.
        let registry = self.registry.clone();
        self.hotplug.removing = Some(number);
        let removed = registry.remove_device(self, id);
        self.hotplug.removing = None;
        debug_assert!(removed.is_ok(), "the state was looked at");
        let device = &mut self.devices[at];
        device.up = false;
        // Nobody's way leads there any more; those who hold a GID keep it.
        device.gids = GidTable::new(0);
        // Step 3. The cores have been told of the QPs before.
        let Some((port, parts)) = self.engine.remove_port(slot) else {
            self.resume(number);
            return Ok(());
        };
        if let Some(mut op) = self.ops.take(number) {
            if let Work::RemovePort(removal) = &mut op.work {
                removal.port = Some(port);
            }
            self.ops.put_back(number, op);
        }
        for (core, part) in parts.into_iter().enumerate() {
            let port = slot;
            self.command(number, core, |token| Command::RemovePort { port, part, token });
        }
        Ok(())
    }

    /// Goes on with a removal: the cores have answered, or time has passed.
    pub(crate) fn advance_removal(&mut self, number: u64, mut op: Op) {
        let Work::RemovePort(removal) = &mut op.work else {
            return;
        };
        let port = removal.slot;
        match removal.step {
            Step::Cores => {
                removal.step = Step::Frames;
                self.ops.put_back(number, op);
                for core in 0..self.engine.core_count() {
                    self.command(number, core, |token| Command::DropFrames { port, token });
                }
                return;
            }
            Step::Frames => {
                removal.step = Step::Flush(FLUSH_ROUNDS);
                op.answers.unflushed = std::mem::take(&mut removal.qps);
            }
            Step::Flush(_) | Step::Grace(_) | Step::Close => {}
        }
        if let Step::Flush(left) = removal.step {
            let unflushed = std::mem::take(&mut op.answers.unflushed);
            if left > 0 && !unflushed.is_empty() {
                removal.step = Step::Flush(left - 1);
                self.ops.put_back(number, op);
                for (core, slot) in unflushed {
                    self.command(number, core, |token| Command::FlushQp { slot, token });
                }
                return;
            }
            removal.step = Step::Grace(self.engine.start_grace());
        }
        let Step::Grace(epoch) = removal.step else {
            self.ops.put_back(number, op);
            return;
        };
        if !self.has_passed(epoch) {
            self.ops.put_back(number, op);
            self.ops.wait_for(epoch, vec![number]);
            return;
        }
        removal.step = Step::Close;
        match removal.port.take() {
            Some(port) => {
                self.ops.put_back(number, op);
                self.hotplug.plugger.close(number, port);
            }
            None => self.port_closed(op),
        }
    }

    /// Steps 5 and 6: nothing of the port is left.
    pub(super) fn port_closed(&mut self, op: Op) {
        let Work::RemovePort(removal) = op.work else {
            return;
        };
        let slot = removal.slot;
        let device = &self.devices[usize::from(slot)];
        self.registry.gone(&device.entry);
        let name = device.name.clone();
        tracing::info!(port = %name, took = ?op.started.elapsed(), "the port is removed");
        self.hotplug.ports[usize::from(slot)] = None;
        self.hotplug.free.push_back(slot);
        if let Some(admin) = removal.admin {
            self.answer_admin(admin, &ok(&PortChange { name, device: slot }));
        }
    }
}
