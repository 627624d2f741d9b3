//! QPs on their way to their poll core.
//!
//! A QP in RESET or INIT concerns no core: no frame is accepted for it and no work request of it is carried out. So it stays
//! with the control thread, which changes, shows and destroys it without asking anyone. When it leaves these states for
//! the first time, it moves to its core together with that change; once the core has taken it in, it is published, and
//! only then is its client answered. It never comes back, whatever states it goes through.

use rnic_engine::{
    command::{Command, QpChange, QpStatus},
    view,
};
use rnic_transport::{Cause, QpState};

use crate::{
    admin::{NOBODY, QpListing},
    control::Control,
    objects::{IdKind, Key, Qp, What},
    ops::Work,
};

/// Whether a QP in this state may be with the control thread.
pub(crate) fn needs_no_core(state: QpState) -> bool {
    matches!(state, QpState::Reset | QpState::Init)
}

/// Where the attributes of a QP come from.
#[derive(Debug)]
pub(crate) enum Told {
    /// Its core has been asked.
    Core(usize),
    /// It is here.
    Here(QpStatus),
}

impl Control {
    fn qp_mut(&mut self, key: Key) -> Option<&mut Qp> {
        match self.objects.peek_mut(key).map(|object| &mut object.what) {
            Some(What::Qp(qp)) => Some(qp),
            _ => None,
        }
    }

    /// Has a QP's core change it, and take it in first if it has not got it; on behalf of a request.
    pub(crate) fn change_on_core(&mut self, number: u64, key: Key, change: QpChange) {
        let Some(qp) = self.qp_mut(key) else { return };
        let (core, slot, here) = (qp.core, qp.slot(), qp.here.take());
        let change = Box::new(change);
        self.command(number, core, |token| match here {
            Some(qp) => Command::AddQp {
                slot,
                qp,
                change: Some(change),
                token,
            },
            None => Command::ModifyQp { slot, change, token },
        });
    }

    /// Has its core take a QP in as it is, if it has not got it; on behalf of a request.
    fn install(&mut self, number: u64, key: Key) {
        let Some(qp) = self.qp_mut(key) else { return };
        let (core, slot, here) = (qp.core, qp.slot(), qp.here.take());
        if let Some(qp) = here {
            let change = None;
            self.command(number, core, |token| Command::AddQp {
                slot,
                qp,
                change,
                token,
            });
        }
    }

    /// Puts a QP that its core has taken in into the next publication. False when it is published already.
    pub(crate) fn publish_qp(&mut self, key: Key) -> bool {
        let Some(qp) = self.qp_mut(key).filter(|qp| qp.here.is_none()) else {
            return false;
        };
        let (qpn, leaf) = (qp.qpn, view::Leaf::new(qp.qpn, qp.core as u16, qp.slot()));
        let publisher = self.engine.publisher();
        if publisher.get(view::Kind::Qp, qpn).is_some() {
            return false;
        }
        publisher.add(view::Kind::Qp, qpn, leaf);
        true
    }

    /// Moves a QP to the error state on behalf of a request, and tells where it is. In RESET there is nothing to fail: one
    /// that is here stays here.
    pub(crate) fn fail_qp(&mut self, number: u64, key: Key, cause: Cause) -> Option<(usize, u32)> {
        let qp = self.qp_mut(key)?;
        if qp.here.is_some() && qp.state == QpState::Reset {
            return None;
        }
        let (core, slot) = (qp.core, qp.slot());
        self.install(number, key);
        self.command(number, core, |token| Command::FailQp { slot, cause, token });
        Some((core, slot))
    }

    /// Asks for the attributes of QPs on behalf of `rnicctl`, which is answered when all are told: a page of resources,
    /// with where the next one begins, or all of them. One that is being destroyed is left out: its core may not have it.
    pub(crate) fn ask_for_qps(
        &mut self,
        admin: u32,
        page: Option<Option<u64>>,
        keys: impl IntoIterator<Item = Key>,
    ) {
        let mut qps = Vec::new();
        let mut asked = Vec::new();
        for key in keys {
            let Some(What::Qp(qp)) = self.objects.peek(key).map(|object| &object.what) else {
                continue;
            };
            if self
                .objects
                .find(IdKind::Number(view::Kind::Qp), qp.qpn)
                .is_none()
            {
                continue;
            }
            match &qp.here {
                Some(here) => qps.push((key, Told::Here(here.status()))),
                None => {
                    qps.push((key, Told::Core(qp.core)));
                    asked.push((qp.core, qp.slot()));
                }
            }
        }
        if let Some(admin) = self.admins.get_mut(&admin) {
            admin.busy = true;
        }
        let number = self.begin(NOBODY, Work::ListQps(QpListing { admin, page, qps }));
        let none = asked.is_empty();
        for (core, slot) in asked {
            self.command(number, core, |token| Command::query_qp(slot, token));
        }
        if none {
            self.resume(number);
        }
    }

    /// Before the daemon is handed over: the cores take in all that is still here, so that whoever takes over finds every
    /// QP in one place.
    pub(crate) fn install_all(&mut self) {
        let keys: Vec<Key> = self.objects.iter().map(|(key, _)| key).collect();
        for key in keys {
            if self.qp_mut(key).is_some_and(|qp| qp.here.is_some()) {
                let number = self.begin(NOBODY, Work::Fail);
                self.install(number, key);
            }
        }
    }
}
