//! XRC target QPs, which several clients hold (A14).
//!
//! The QP itself is an object of nobody. Each client that has made or opened it has a [`Target`], by which it changes the
//! QP and hears of its events. The QP is destroyed with the last of them.

use rnic_abi::{HandleArg, OpenQp, OpenQpReply};
use rnic_engine::{
    core::{NO_CLIENT, QpInit, Receives},
    view,
};
use rnic_transport::{QpState, QpType};
use rustix::io::Errno;

use super::{IdKind, Key, Kind, Number, Object, Qp, What};
use crate::{
    admin::NOBODY,
    congestion,
    control::Control,
    destroy::Then,
    dispatch::Outcome,
    refusal::{Refusal, Verb},
    session::Reply,
    store::ObjectRecord,
};

/// A client's hold on a target QP.
#[derive(Debug)]
pub struct Target {
    /// Its client's opening of the QP's domain.
    pub xrcd: Key,
    /// The QP; none once it has let go.
    pub qp: Option<Key>,
}

impl Control {
    pub(crate) fn create_xrc_tgt(&mut self, conn: u32, arg: &HandleArg) -> Verb<Reply> {
        let (xrcd, core, device) = self.xrcd(conn, arg.handle, "handle")?;
        self.check_present(conn, device)?;
        self.allow(conn, Kind::Target)?;
        self.answers(core)?;
        let full =
            || Refusal::exhausted("no QP number is free in the daemon (limits.qps); destroy QPs first");
        let Number { slot, generation } = self.take_qpn_of(core).ok_or_else(full)?;
        let qpn = view::number(slot, generation);
        let made = self.engine.make_qp(QpInit {
            qpn,
            handle: 0,
            client: NO_CLIENT,
            pd: 0,
            send_cq: 0,
            recv_cq: 0,
            region: None,
            sq_offset: 0,
            sq_depth: 1,
            receives: Receives::Nowhere,
            sig_all: false,
            qp_type: QpType::XrcTgt,
            port: device as u16,
            mtu: self.devices[device as usize].path_mtu,
            congestion: {
                let device = &self.devices[device as usize];
                congestion::control(&device.congestion, device.speed_mbps)
            },
            xrcd,
        });
        let here = made.map_err(|error| {
            self.numbers.qpns.give(slot);
            Refusal::invalid(format!("create_xrc_tgt: {error}"))
        })?;
        let what = What::Qp(Box::new(Qp {
            qpn,
            qp_type: QpType::XrcTgt,
            pd: None,
            send_cq: None,
            recv_cq: None,
            core,
            core_bytes: here.bytes(),
            here: Some(here),
            sq: None,
            rq: None,
            srq: None,
            state: QpState::Reset,
            av: None,
            gid: None,
            dest_qpn: 0,
            groups: Vec::new(),
            path: None,
            hop: None,
            xrcd,
            holders: Vec::new(),
        }));
        let object = Object::new(NOBODY, rnic_abi::Handle(0), device, what);
        let key = self.objects.add(object, [(IdKind::Number(view::Kind::Qp), qpn)]);
        if let Some(object) = self.objects.peek_mut(key) {
            match self.store.objects.put(ObjectRecord::of(key, NO_CLIENT, object)) {
                Ok(record) => object.record = Some(record),
                Err(error) => tracing::error!(%error, "a target QP has no place in its arena"),
            }
        }
        let held = self.hold_target(conn, arg.handle, device, qpn);
        if held.is_err() {
            // No core and no client has heard of it.
            let _ = self.objects.destroy(key);
            self.objects.remove(key);
            self.numbers.qpns.give(slot);
        }
        held
    }

    pub(crate) fn open_qp(&mut self, conn: u32, arg: &OpenQp) -> Verb<Reply> {
        let (xrcd, _, device) = self.xrcd(conn, arg.xrcd, "xrcd")?;
        self.check_present(conn, device)?;
        self.allow(conn, Kind::Target)?;
        let found = self.objects.find(IdKind::Number(view::Kind::Qp), arg.qpn);
        let of = found.and_then(|key| match &self.objects.peek(key)?.what {
            What::Qp(qp) => Some(qp.xrcd),
            _ => None,
        });
        if of != Some(xrcd) {
            return Err(Refusal::new(
                Errno::NOENT,
                format!(
                    "qpn is {:#x}; the XRC domain has no such target QP (destroyed already?)",
                    arg.qpn
                ),
            ));
        }
        self.hold_target(conn, arg.xrcd, device, arg.qpn)
    }

    /// Number and core of a domain that a client has opened, and its device.
    fn xrcd(&mut self, conn: u32, handle: u32, field: &str) -> Verb<(u32, usize, u32)> {
        let key = self.find(conn, Kind::Xrcd, handle, field)?;
        let object = self.objects.peek(key);
        match object.map(|object| (&object.what, object.device)) {
            Some((What::Xrcd(xrcd), device)) => Ok((xrcd.number, xrcd.core, device)),
            _ => Err(Refusal::invalid(format!("{field} is of no XRC domain"))),
        }
    }

    /// One holder more of the live target QP of this number.
    fn hold_target(&mut self, conn: u32, domain: u32, device: u32, qpn: u32) -> Verb<Reply> {
        let handle = self.take_handle(conn)?;
        let (xrcd, _) = self
            .hold(conn, Kind::Xrcd, domain, "xrcd")
            .inspect_err(|_| self.give_handle(conn, handle))?;
        let qp = self.objects.get(IdKind::Number(view::Kind::Qp), qpn);
        let client = self.client_mut(conn)?;
        let (region, index) = (client.region.clone(), client.index);
        client.events.install(&region, handle, qpn);
        let what = What::Target(Target { xrcd, qp });
        self.publish(Object::new(conn, handle, device, what), None);
        let holder = self.objects.find(IdKind::Handle(index), handle.0);
        if let Some(What::Qp(qp)) = qp
            .and_then(|qp| self.objects.peek_mut(qp))
            .map(|object| &mut object.what)
        {
            qp.holders.extend(holder);
        }
        Ok(Reply::new(&OpenQpReply {
            handle: handle.0,
            qpn,
        }))
    }

    /// The QP that a client means by a handle: its own, or a target QP that it holds.
    pub(crate) fn find_qp(&mut self, conn: u32, handle: u32) -> Verb<Key> {
        let index = self.client_mut(conn)?.index;
        let found = self.objects.find(IdKind::Handle(index), handle);
        let target = found.and_then(|key| match &self.objects.peek(key)?.what {
            What::Target(target) => target.qp,
            _ => None,
        });
        match target {
            Some(qp) => Ok(qp),
            None => self.find(conn, Kind::Qp, handle, "handle"),
        }
    }

    /// Destroys a QP of a client, or lets go of a target QP, which ends with its last holder.
    pub(crate) fn destroy_qp(&mut self, conn: u32, arg: HandleArg) -> Verb<Outcome> {
        let index = self.client_mut(conn)?.index;
        let found = self.objects.find(IdKind::Handle(index), arg.handle);
        let held = |key: &Key| matches!(self.objects.peek(*key).map(|o| o.kind()), Some(Kind::Target));
        let Some(key) = found.filter(held) else {
            return self.destroy_one(conn, Kind::Qp, arg);
        };
        // Nothing ever depends on a hold.
        let _ = self.refuse_new_work(key);
        // The answer is about the hold, and so about the object that comes last.
        let mut objects: Vec<Key> = self.let_go_of_target(key).into_iter().collect();
        objects.push(key);
        self.destroy_all(conn, objects, Then::Answer);
        Ok(Outcome::Pending)
    }

    /// A hold lets go of its target QP. The QP, if that was its last holder: it is refused new work then, and is to be
    /// destroyed. `None` for every other object.
    pub(crate) fn let_go_of_target(&mut self, key: Key) -> Option<Key> {
        let What::Target(target) = &mut self.objects.peek_mut(key)?.what else {
            return None;
        };
        let qp = target.qp.take()?;
        self.save(key);
        if let Some(What::Qp(qp)) = self.objects.peek_mut(qp).map(|object| &mut object.what) {
            qp.holders.retain(|holder| *holder != key);
        }
        self.objects.put(qp);
        (self.objects.users(qp) == 0 && self.refuse_new_work(qp).is_ok()).then_some(qp)
    }
}
