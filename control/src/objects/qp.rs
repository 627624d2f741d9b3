//! Queue pairs.

use std::fmt;

use rnic_abi::{Av, CreateQp, CreateQpReply, Handle, RingIndices, work_queue_size};
use rnic_engine::{
    command::Path,
    core::{self, QpInit, Receives},
    view,
};
use rnic_transport::{QpState, QpType};

use super::{IdKind, Key, Kind, Number, Object, What};
use crate::{
    congestion,
    control::Control,
    dispatch::Outcome,
    gid::GidHold,
    neighbour::Target,
    refusal::{Refusal, Verb},
    region_alloc::Slice,
    session::Reply,
};

/// A queue pair, as far as the control thread knows it.
pub struct Qp {
    /// Number on the wire.
    pub qpn: u32,
    /// Service type.
    pub qp_type: QpType,
    /// Its PD; an XRC target has none.
    pub pd: Option<Key>,
    /// CQ of its send queue, if it has one.
    pub send_cq: Option<Key>,
    /// CQ of its receive queue or SRQ, if it has either.
    pub recv_cq: Option<Key>,
    /// The poll core that owns it, or will.
    pub core: usize,
    /// The QP itself, until it moves to its core ([`crate::install`]).
    pub here: Option<Box<core::Qp>>,
    /// Its send queue; an XRC target has none.
    pub sq: Option<Slice>,
    /// Its receive queue, if it has one of its own.
    pub rq: Option<Slice>,
    /// The SRQ it draws from, on the same core.
    pub srq: Option<Key>,
    /// What its core keeps for it, in bytes.
    pub core_bytes: usize,
    /// The state it was last told to be in. Its core may have moved it to ERR since.
    pub state: QpState,
    /// The address vector given last.
    pub av: Option<Av>,
    /// Keeps the local address of `av` at its index, until the QP is freed or takes another path.
    pub gid: Option<GidHold>,
    /// The peer given last.
    pub dest_qpn: u32,
    /// The multicast groups it is attached to.
    pub groups: Vec<[u8; 16]>,
    /// The path its core has, but for commands under way.
    pub path: Option<Path>,
    /// The neighbour that path goes over.
    pub hop: Option<Target>,
    /// Number of the XRC domain of an XRC target, else 0.
    pub xrcd: u32,
    /// Of an XRC target: the objects by which clients hold it.
    pub holders: Vec<Key>,
}

impl Qp {
    /// Its slot: index in its core's arena.
    pub fn slot(&self) -> u32 {
        view::slot_of(self.qpn)
    }
}

impl fmt::Debug for Qp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.here.is_some() {
            "here"
        } else {
            "on its core"
        };
        write!(f, "Qp({:#x}, {}, {place} {})", self.qpn, self.state, self.core)
    }
}

impl Control {
    pub(crate) fn create_qp(&mut self, conn: u32, arg: &CreateQp) -> Verb<Outcome> {
        self.check_present_for(conn, arg.pd)?;
        self.allow(conn, Kind::Qp)?;
        let known = QpType::from_verbs(arg.qp_type);
        let Some(qp_type) = known.filter(|qp_type| qp_type.has_send_queue()) else {
            return Err(Refusal::unsupported(format!(
                "qp_type is {}; this rnicd makes RC (2), UC (3), UD (4) and XRC initiators (9) here, and XRC \
                 targets by create_xrc_tgt",
                arg.qp_type
            )));
        };
        let sq_depth = self.work_queue_depth("sq_units", arg.sq_units)?;
        if !qp_type.has_recv_queue() && (arg.recv_cq, arg.rq_units, arg.srq) != (0, 0, 0) {
            return Err(Refusal::invalid(
                "an XRC initiator receives nothing: recv_cq, rq_units and srq must be 0",
            ));
        }
        // With an SRQ it has no receive queue, whatever size it asks for (10.2.9).
        let rq_depth = match arg.srq {
            0 if !qp_type.has_recv_queue() => 0,
            0 => self.work_queue_depth("rq_units", arg.rq_units)?,
            _ => 0,
        };
        let mut held = Vec::new();
        let made = self
            .hold_for_qp(conn, arg, qp_type, &mut held)
            .and_then(|device| {
                self.make_qp(
                    conn,
                    device,
                    qp_type,
                    &held,
                    [sq_depth, rq_depth],
                    arg.sq_sig_all != 0,
                )
            });
        if made.is_err() {
            for key in held {
                self.objects.put(key);
            }
        }
        made.map(Outcome::Done)
    }

    fn work_queue_depth(&self, field: &str, units: u32) -> Verb<u32> {
        let limit = self.quota.wr_depth();
        match units.max(1).checked_next_power_of_two() {
            Some(depth) if depth <= limit => Ok(depth),
            _ => Err(Refusal::invalid(format!(
                "{field} is {units}; it must be at most {limit} (limits.per_client.wr_depth)"
            ))),
        }
    }

    /// Holds PD, CQs and perhaps an SRQ, all of one device.
    fn hold_for_qp(&mut self, conn: u32, arg: &CreateQp, qp_type: QpType, held: &mut Vec<Key>) -> Verb<u32> {
        let (pd, device) = self.hold(conn, Kind::Pd, arg.pd, "pd")?;
        held.push(pd);
        let cqs = [(arg.send_cq, "send_cq"), (arg.recv_cq, "recv_cq")];
        let count = if qp_type.has_recv_queue() { 2 } else { 1 };
        for (handle, field) in cqs.into_iter().take(count) {
            let (cq, of) = self.hold(conn, Kind::Cq, handle, field)?;
            held.push(cq);
            if matches!(self.objects.peek(cq).map(|o| &o.what), Some(What::Cq(cq)) if cq.failed) {
                return Err(Refusal::invalid(format!(
                    "{field} is {handle:#x}, which has overflowed (CQ_ERR); make another CQ"
                )));
            }
            if of != device {
                let (cq, pd) = (
                    &self.devices[of as usize].name,
                    &self.devices[device as usize].name,
                );
                return Err(Refusal::invalid(format!("{field} belongs to {cq}, pd to {pd}")));
            }
        }
        if arg.srq != 0 {
            let (srq, of) = self.hold(conn, Kind::Srq, arg.srq, "srq")?;
            held.push(srq);
            if matches!(self.objects.peek(srq).map(|o| &o.what), Some(What::Srq(srq)) if srq.failed) {
                return Err(Refusal::invalid(format!(
                    "srq is {:#x}, whose ring was found broken (SRQ_ERR); make another SRQ",
                    arg.srq
                )));
            }
            if matches!(self.objects.peek(srq).map(|o| &o.what), Some(What::Srq(srq)) if srq.xrc.is_some()) {
                return Err(Refusal::invalid(
                    "srq is an XRC SRQ, which serves the XRC target QPs of its domain and no others",
                ));
            }
            if of != device {
                return Err(Refusal::invalid("srq belongs to another device than pd"));
            }
        }
        Ok(device)
    }

    /// Makes a QP in RESET of what [`Control::hold_for_qp`] holds. It stays with the control thread for now, but for its number, which is its core's.
    fn make_qp(
        &mut self,
        conn: u32,
        device: u32,
        qp_type: QpType,
        held: &[Key],
        [sq_depth, rq_depth]: [u32; 2],
        sig_all: bool,
    ) -> Verb<Reply> {
        let [pd, send_cq, ref receives @ ..] = *held else {
            return Err(Refusal::invalid("create_qp"));
        };
        let (recv_cq, srq) = (receives.first().copied(), receives.get(1).copied());
        let pd_number = self.number_of(pd);
        let send_number = self.number_of(send_cq);
        let recv_number = recv_cq.map_or(0, |cq| self.number_of(cq));
        let full =
            || Refusal::exhausted("no QP number is free in the daemon (limits.qps); destroy QPs first");
        let shared = srq.and_then(|key| match &self.objects.peek(key)?.what {
            What::Srq(srq) => Some((srq.core, srq.slot(), srq.pd)),
            _ => None,
        });
        let number = match shared {
            // Its low bits say which core it is of: that of its SRQ.
            Some((core, ..)) => self.take_qpn_of(core),
            None => self.numbers.qpns.take(),
        };
        let Number { slot, generation } = number.ok_or_else(full)?;
        let qpn = view::number(slot, generation);
        let core = usize::from(self.engine.publisher().owner(qpn));
        let placed = self.place_qp(conn, sq_depth, rq_depth);
        let (handle, sq, rq) = placed.inspect_err(|_| self.numbers.qpns.give(slot))?;
        let client = self.client_mut(conn)?;
        let region = client.region.clone();
        for queue in [Some(sq), rq].into_iter().flatten() {
            region.copy_in(queue.offset, &[0; size_of::<RingIndices>()]);
        }
        // No core looks at the send queue yet: the first post must ring.
        region.write(sq.offset + RingIndices::NEED_KICK, &1u32);
        client.events.install(&region, handle, qpn);
        let client = client.index;
        let receives = match (shared, rq) {
            (Some((_, srq, pd)), _) => Receives::Shared {
                srq,
                pd: self.number_of(pd),
            },
            (None, Some(rq)) => Receives::Own {
                offset: rq.offset as u64,
                depth: rq_depth,
            },
            (None, None) => Receives::Nowhere,
        };
        let made = self.engine.make_qp(QpInit {
            qpn,
            handle: handle.0,
            client,
            pd: pd_number,
            send_cq: send_number,
            recv_cq: recv_number,
            region: Some(region),
            sq_offset: sq.offset as u64,
            sq_depth,
            receives,
            sig_all,
            qp_type,
            port: device as u16,
            mtu: self.devices[device as usize].path_mtu,
            congestion: {
                let device = &self.devices[device as usize];
                congestion::control(&device.congestion, device.speed_mbps)
            },
            xrcd: 0,
        });
        let engine_qp = match made {
            Ok(qp) => qp,
            Err(error) => {
                for queue in [Some(sq), rq].into_iter().flatten() {
                    self.give_queue_space(conn, queue);
                }
                self.give_handle(conn, handle);
                self.numbers.qpns.give(slot);
                return Err(Refusal::invalid(format!("create_qp: {error}")));
            }
        };
        let reply = CreateQpReply {
            handle: handle.0,
            qpn,
            sq_offset: sq.offset as u64,
            rq_offset: rq.map_or(0, |rq| rq.offset as u64),
            sq_depth,
            rq_depth,
            doorbell_block: core as u32,
            reserved: 0,
        };
        let what = What::Qp(Box::new(Qp {
            qpn,
            qp_type,
            pd: Some(pd),
            send_cq: Some(send_cq),
            recv_cq,
            core,
            core_bytes: engine_qp.bytes(),
            here: Some(engine_qp),
            sq: Some(sq),
            rq,
            srq,
            state: QpState::Reset,
            av: None,
            gid: None,
            dest_qpn: 0,
            groups: Vec::new(),
            path: None,
            hop: None,
            xrcd: 0,
            holders: Vec::new(),
        }));
        let id = (IdKind::Number(view::Kind::Qp), qpn);
        self.publish(Object::new(conn, handle, device, what), Some(id));
        Ok(Reply::new(&reply))
    }

    /// A number that says it is of this core.
    pub(super) fn take_qpn_of(&mut self, core: usize) -> Option<Number> {
        let publisher = self.engine.publisher();
        let owner = |slot| usize::from(publisher.owner(view::number(slot, 1)));
        self.numbers.qpns.take_where(|slot| owner(slot) == core)
    }

    /// A handle and room for both queues, if it has both.
    fn place_qp(&mut self, conn: u32, sq_depth: u32, rq_depth: u32) -> Verb<(Handle, Slice, Option<Slice>)> {
        let (handle, sq) = self.take_place(conn, work_queue_size(sq_depth))?;
        if rq_depth == 0 {
            return Ok((handle, sq, None));
        }
        let rq = self
            .take_queue_space(conn, work_queue_size(rq_depth))
            .inspect_err(|_| {
                self.give_queue_space(conn, sq);
                self.give_handle(conn, handle);
            })?;
        Ok((handle, sq, Some(rq)))
    }

    /// What cores know a PD or CQ by that is held.
    pub(super) fn number_of(&self, key: Key) -> u32 {
        match self.objects.peek(key).map(|object| &object.what) {
            Some(What::Pd(pd)) => pd.number,
            Some(What::Cq(cq)) => cq.slot(),
            Some(What::Xrcd(xrcd)) => xrcd.number,
            _ => 0,
        }
    }
}
