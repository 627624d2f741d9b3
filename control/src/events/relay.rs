//! From what happened (a core's report, a link, a vanished device) to the rings of the clients it concerns, and
//! what the daemon itself concludes.

use rnic_abi::{Handle, event_kind};
use rnic_engine::{
    command::ObjectEvent,
    core::{NO_CLIENT, abi_cause},
    view,
};
use rnic_transport::{Cause, Check, QpState};

use crate::{
    control::Control,
    moment::Moment,
    objects::{IdKind, Key, What},
    ops::Work,
};

/// Kinds after which a QP is in the error state.
const QP_FAILED: u32 = event_kind::QP_FATAL | event_kind::QP_REQ_ERR | event_kind::QP_ACCESS_ERR;

/// The last error that an object reported.
#[derive(Copy, Clone, Debug)]
pub struct LastError {
    /// Why.
    pub cause: Cause,
    /// When the control thread heard of it.
    pub at: Moment,
}

impl Control {
    /// An object of a client has something to report. Nothing is reported of an object that is being destroyed:
    /// it is found no more, and what it reported before is withdrawn at the end of its grace period.
    pub(crate) fn object_event(&mut self, event: &ObjectEvent) {
        if event.client == NO_CLIENT {
            return self.target_event(event);
        }
        let Some(&conn) = self.by_index.get(&event.client) else {
            return;
        };
        let Some(key) = self.objects.find(IdKind::Handle(event.client), event.handle) else {
            return;
        };
        let Some(object) = self.objects.peek_mut(key) else {
            return;
        };
        if event.kinds & event_kind::ERRORS != 0 {
            object.last_error = Some(LastError {
                cause: event.cause,
                at: Moment::now(),
            });
        }
        match &mut object.what {
            What::Qp(qp) if event.kinds & QP_FAILED != 0 => qp.state = QpState::Err,
            What::Cq(cq) if event.kinds & event_kind::CQ_ERR != 0 => cq.failed = true,
            What::Srq(srq) => {
                srq.failed |= event.kinds & event_kind::SRQ_ERR != 0;
                if event.kinds & event_kind::SRQ_LIMIT_REACHED != 0 {
                    srq.limit = 0;
                }
            }
            _ => {}
        }
        let handle = object.handle;
        let reported = self.raise(conn, handle, event.kinds, &event.cause);
        if let Some(object) = self.objects.peek_mut(key) {
            object.reported = object.reported.saturating_add(reported);
        }
        self.save(key);
        if event.kinds & event_kind::CQ_ERR != 0 {
            self.fail_users(conn, key, &event.cause);
        }
    }

    /// The same of an XRC target QP: everybody who holds it is told.
    fn target_event(&mut self, event: &ObjectEvent) {
        let found = self
            .objects
            .find(IdKind::Number(view::Kind::Qp), event.number)
            .and_then(|key| Some((key, self.objects.peek_mut(key)?)));
        let Some((key, object)) = found else { return };
        if event.kinds & event_kind::ERRORS != 0 {
            object.last_error = Some(LastError {
                cause: event.cause,
                at: Moment::now(),
            });
        }
        let What::Qp(qp) = &mut object.what else { return };
        if event.kinds & QP_FAILED != 0 {
            qp.state = QpState::Err;
        }
        for holder in qp.holders.clone() {
            let Some(object) = self.objects.peek(holder) else {
                continue;
            };
            let (conn, handle) = (object.owner, object.handle);
            let reported = self.raise(conn, handle, event.kinds, &event.cause);
            if let Some(object) = self.objects.peek_mut(holder) {
                object.reported = object.reported.saturating_add(reported);
            }
            self.save(holder);
        }
        self.save(key);
    }

    /// A completion queue is lost (11.6.3.2): the QPs that complete into it go to ERR, each with a
    /// QP_FATAL of its own.
    fn fail_users(&mut self, conn: u32, cq: Key, cause: &Cause) {
        let Ok(client) = self.client_mut(conn) else { return };
        let objects = client.objects.clone();
        let completes_there = |key: &Key| match self.objects.peek(*key).map(|object| &object.what) {
            Some(What::Qp(qp)) => qp.send_cq == Some(cq) || qp.recv_cq == Some(cq),
            _ => false,
        };
        let users: Vec<Key> = objects.into_iter().filter(completes_there).collect();
        let cause = Cause {
            check: Check::CqOverflow,
            ..*cause
        };
        let op = self.begin(conn, Work::Fail);
        let mut failing = false;
        for key in users {
            failing |= self.fail_qp(op, key, cause).is_some();
        }
        if !failing {
            self.ops.take(op);
        }
    }

    /// Something happened to a device (a port, its addresses, all of it): every client that knows the device learns of it.
    ///
    /// `kinds` are bits of [`event_kind`]: PORT_ACTIVE, PORT_ERR, GID_CHANGE, DEVICE_FATAL. The change itself is
    /// in place before the call, so that a client which asks on hearing of it is told the new state. Devices have
    /// event slots of their own in every client's region; the daemon keeps no count of their events.
    pub(crate) fn device_event(&mut self, device: usize, kinds: u32, cause: &Cause) {
        let Some((sequence, id)) = self.devices.get(device).map(|d| (d.sequence, d.entry.id)) else {
            return;
        };
        let clients: Vec<u32> = self.by_index.values().copied().collect();
        for conn in clients {
            // One that knew another device in that place hears nothing of this one.
            if let Ok(client) = self.client_mut(conn)
                && client.sees(id)
            {
                client.set_sequence(device as u32, sequence);
                self.raise(conn, Handle(device as u32), kinds, cause);
            }
        }
    }

    /// Puts an event into a client's ring and tells how many kinds are new.
    fn raise(&mut self, conn: u32, handle: Handle, kinds: u32, cause: &Cause) -> u32 {
        let Ok(client) = self.client_mut(conn) else {
            return 0;
        };
        match client.events.raise(
            &client.region,
            &mut client.record.event_tail,
            handle,
            kinds,
            &abi_cause(cause),
        ) {
            Ok(raised) => {
                if raised.wake {
                    client.wake();
                }
                raised.reported
            }
            Err(forged) => {
                self.expel(conn, &forged.to_string());
                0
            }
        }
    }
}
