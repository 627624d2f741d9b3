//! Paths over neighbours: who waits for a MAC address, and who has to be told when it changes.

use std::time::Instant;

use rnic_engine::command::Command;

use crate::{
    control::Control,
    neighbour::{Learned, Lookup, Resolved, Target, User},
    objects::{Key, What},
    ops::{Op, Work},
    refusal::{Refusal, Verb},
    slowpath::Heard,
};

impl Control {
    /// Has a request wait for a neighbour, which is asked for now. [`Control::neighbour_found`] or
    /// [`Control::neighbour_silent`] resumes it.
    pub(crate) fn await_neighbour(&mut self, op: u64, target: Target, now: Instant) -> Verb<()> {
        self.neighbours.wait(target, op, now).map_err(|_| {
            Refusal::again(format!(
                "ah_attr.dgid: no room to look for {}: too many neighbours are in use",
                target.ip
            ))
        })?;
        self.ask_neighbours(now);
        Ok(())
    }

    /// Whether the MAC address of a station is believed to be known.
    pub(crate) fn is_known(&self, target: &Target) -> bool {
        matches!(self.neighbours.lookup(target), Lookup::Known { .. })
    }

    /// A station has told its MAC address.
    pub(crate) fn heard(&mut self, port: u16, vlan: Option<u16>, heard: &Heard, now: Instant) {
        let Learned { waiting, changed } = self.neighbours.learn(port, vlan, heard, now);
        if let Some((entry, mac)) = changed {
            self.repath(entry, mac);
        }
        for op in waiting {
            self.neighbour_found(op);
        }
    }

    fn neighbour_found(&mut self, number: u64) {
        match self.ops.take(number) {
            Some(Op {
                work: Work::CreateAh(creation),
                ..
            }) => self.ah_resolved(*creation, true),
            Some(op) => {
                self.ops.put_back(number, op);
                self.send_change(number);
            }
            None => {}
        }
    }

    /// Requests have waited for a neighbour in vain.
    pub(crate) fn neighbour_silent(&mut self, resolved: Resolved) {
        for number in resolved.waiting {
            let Some(op) = self.ops.take(number) else { continue };
            match op.work {
                Work::CreateAh(creation) => self.ah_resolved(*creation, false),
                Work::Modify(modify) => {
                    let device = self.objects.peek(modify.qp()).map_or(0, |object| object.device);
                    let removed = self.check_present(op.conn, device).err();
                    self.answer(op.conn, Err(removed.unwrap_or_else(|| modify.silent())));
                }
                _ => {}
            }
        }
    }

    /// The MAC address of a neighbour has changed: everything that is sent to it goes there from now on.
    fn repath(&mut self, entry: u32, mac: [u8; 6]) {
        let users = self.neighbours.users(entry);
        if !users.is_empty() {
            let users = users.len();
            tracing::info!(users, "a neighbour in use has another MAC address");
        }
        for user in users {
            match user {
                User::Ah(number) => {
                    let ahs = self.engine.ahs();
                    if let Some(path) = ahs.path(number) {
                        ahs.repath(number, &path.over(mac));
                    }
                }
                User::Qp(key) => self.repath_qp(key, mac),
            }
        }
    }

    /// Gives a QP's core the MAC address of its next hop, if it has another one. A QP that is being changed is seen
    /// to when its core has answered.
    fn repath_qp(&mut self, key: Key, mac: [u8; 6]) {
        let Some(What::Qp(qp)) = self.objects.peek_mut(key).map(|object| &mut object.what) else {
            return;
        };
        let Some(path) = qp.path.filter(|path| path.remote_mac != mac) else {
            return;
        };
        let path = path.over(mac);
        qp.path = Some(path);
        let (core, slot) = (qp.core, qp.slot());
        let path = Box::new(path);
        self.engine.submit(core, Command::Repath { slot, path });
    }

    /// Has a QP follow the neighbour of its path, or none, and gives it the MAC address if that has changed since the
    /// path was made.
    pub(crate) fn follow(&mut self, key: Key) {
        let Some(What::Qp(qp)) = self.objects.peek(key).map(|object| &object.what) else {
            return;
        };
        let (place, hop) = (qp.slot(), qp.hop);
        let Some(target) = hop else {
            return self.neighbours.detach(place);
        };
        match self.neighbours.adopt(&target, place, User::Qp(key), self.now) {
            Ok(Some(mac)) => self.repath_qp(key, mac),
            Ok(None) => {}
            Err(_) => tracing::warn!(ip = %target.ip, "too many neighbours in use; this one is not followed"),
        }
    }

    /// Step 2 of the destruction of a QP: no neighbour knows of it.
    pub(crate) fn unfollow(&mut self, qp_slot: u32) {
        self.neighbours.detach(qp_slot);
    }

    /// A device is gone: the paths of its address handles lead nowhere, though the handles can still be destroyed;
    /// nothing is known of its neighbours, and who waits for one is refused.
    pub(crate) fn sever_paths(&mut self, port: u16) {
        self.engine.ahs().sever_port(port);
        for resolved in self.neighbours.remove_port(port) {
            self.neighbour_silent(resolved);
        }
    }
}
