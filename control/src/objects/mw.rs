//! Memory windows. What they are bound to is the poll cores' concern: work requests bind them.

use rnic_abi::{AllocMw, AllocMwReply};
use rnic_engine::{mem::WindowType, view};
use rustix::io::Errno;

use super::{IdKind, Key, Kind, Number, Object, What};
use crate::{
    control::Control,
    dispatch::Outcome,
    refusal::{Refusal, Verb},
    session::Reply,
};

/// A memory window.
#[derive(Debug)]
pub struct Mw {
    /// Its PD.
    pub pd: Key,
    /// Its key without the key byte.
    pub number: u32,
    /// Its type.
    pub kind: WindowType,
}

impl Mw {
    /// The slot of its number.
    pub fn slot(&self) -> u32 {
        view::slot_of(self.number)
    }
}

impl Control {
    pub(crate) fn alloc_mw(&mut self, conn: u32, arg: &AllocMw) -> Verb<Outcome> {
        let AllocMw { pd, mw_type } = *arg;
        let kind = WindowType::from_verbs(mw_type).ok_or_else(|| {
            Refusal::invalid(format!(
                "mw_type is {mw_type}; it must be 1 (bound for a PD) or 2 (bound for a QP)"
            ))
        })?;
        self.check_present_for(conn, pd)?;
        self.allow(conn, Kind::Mw)?;
        let (pd, device) = self.hold(conn, Kind::Pd, pd, "pd")?;
        let made = self.make_window(conn, device, pd, kind);
        if made.is_err() {
            self.objects.put(pd);
        }
        made.map(Outcome::Done)
    }

    fn make_window(&mut self, conn: u32, device: u32, pd: Key, kind: WindowType) -> Verb<Reply> {
        let pd_number = self.pd_number(pd);
        let pd_number = pd_number.ok_or_else(|| Refusal::invalid("pd is being deallocated"))?;
        let full = || Refusal::exhausted("no key is free in the daemon; deallocate memory windows first");
        let Number { slot, generation } = self.numbers.keys.take().ok_or_else(full)?;
        let number = view::number(slot, generation);
        let placed = self
            .engine
            .mrs()
            .alloc_window(number, kind, pd_number)
            .map_err(|error| Refusal::new(Errno::NOMEM, format!("alloc_mw: {error}")))
            .and_then(|()| self.take_handle(conn));
        let handle = placed.inspect_err(|_| {
            // No core has heard of it.
            self.engine.mrs().withdraw_window(number);
            self.engine.mrs().release_window(number);
            self.numbers.keys.give(slot);
        })?;
        let what = What::Mw(Mw { pd, number, kind });
        let id = (IdKind::Number(view::Kind::Mw), number);
        self.publish(Object::new(conn, handle, device, what), Some(id));
        if let Ok(client) = self.client_mut(conn)
            && kind == WindowType::Two
        {
            client.windows.insert(number);
        }
        Ok(Reply::new(&AllocMwReply {
            handle: handle.0,
            rkey: number << 8,
        }))
    }

    /// Unbinds every window of type 2 that was bound on a QP that no core has any more.
    pub(crate) fn unbind_windows_of(&mut self, owner: u32, qpn: u32) {
        // Of a client that leaves, nobody makes QPs of its PDs any more.
        let Some(client) = self.connections.get(&owner).filter(|c| !c.leaving) else {
            return;
        };
        let Some(client) = client.client.as_deref() else {
            return;
        };
        for number in &client.windows {
            self.engine.mrs().unbind_from(*number, qpn);
        }
    }
}
