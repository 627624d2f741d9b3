//! A QP on its core: the transport's record, the queues behind it, its path.
use std::sync::Arc;

use rnic_qsbr::Epoch;
use rnic_transport::{
    BadField, Cause, Cold, Congestion, Ctx, ModifyError, QpAttr, QpAttrMask, QpState, QpType, RcQp, SendWr,
    Time,
};
use rnic_wire::{Ecn, FrameTemplate, Ipv4, Ipv6, Link, MacAddr, Mtu, Net, PlainFrame, VlanTag, VlanTags};

use super::{
    host::{Env, QpHost},
    queue::{Accepted, InitError, QueueError, Ring, SendQueue, Unit},
    records::{
        BadWr, CoreArenas, Cursor, Identity, NO_CLIENT, NO_CQ, NO_SRQ, PathRecord, Pending, Placed, QpBox,
        QpCounters, QpRecord,
    },
    recv_queue::RecvQueue,
};
use crate::{
    arena::{ArenaError, ArenaSlice},
    command::{Path, QpStatus},
    engine::PORT_SLOTS,
    mem::ClientMem,
    retire::RetireLink,
};

/// What the control thread knows when it makes a QP.
pub struct QpInit {
    /// Number on the wire.
    pub qpn: u32,
    /// Client's handle.
    pub handle: u32,
    /// Index of the client.
    pub client: u32,
    /// Protection domain, unique in the daemon.
    pub pd: u32,
    /// Slot of the send CQ. Not looked at on an XRC target.
    pub send_cq: u32,
    /// Slot of the receive CQ. Not looked at on either half of XRC.
    pub recv_cq: u32,
    /// The client's region; none of an XRC target, which has no queues and is of no client.
    pub region: Option<Arc<ClientMem>>,
    /// Where the send queue stands in it.
    pub sq_offset: u64,
    /// Units of the send queue, a power of two.
    pub sq_depth: u32,
    /// Where the receive WQEs come from.
    pub receives: Receives,
    /// Every send WQE is signalled.
    pub sig_all: bool,
    /// Service type.
    pub qp_type: QpType,
    /// Index of its device's port.
    pub port: u16,
    /// Largest path MTU of its device: what datagrams have.
    pub mtu: Mtu,
    /// How it deals with congestion, except towards QPs of this appliance that are reached without frames.
    pub congestion: Congestion,
    /// XRC domain of an XRC target, else 0.
    pub xrcd: u32,
}

impl QpInit {
    fn transport(&self) -> RcQp {
        let qp = match self.qp_type {
            QpType::Ud => RcQp::new_ud(self.qpn, self.mtu),
            QpType::XrcTgt => RcQp::new_xrc_tgt(self.qpn, self.xrcd),
            connected => RcQp::new(self.qpn).with_type(connected),
        };
        qp.with_congestion(&self.congestion)
    }
}

/// Where a QP has its receive WQEs from.
#[derive(Copy, Clone, Debug)]
pub enum Receives {
    /// Its own receive queue.
    Own {
        /// Where it stands in the client's region.
        offset: u64,
        /// Units, a power of two.
        depth: u32,
    },
    /// A shared receive queue on the same core.
    Shared {
        /// Its slot.
        srq: u32,
        /// Its protection domain.
        pd: u32,
    },
    /// Nowhere, of an XRC initiator; of an XRC target, from the XRC SRQs that requests name.
    Nowhere,
}

/// Which way a QP's packets go.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Index of the port.
    pub port: u16,
    /// To a QP of this appliance, without frames.
    pub direct: bool,
}

impl Route {
    fn of(path: &Path) -> Self {
        Route {
            port: path.port,
            direct: path.direct,
        }
    }
}

/// A queue pair: its record, and what is rebuilt from it.
pub struct Qp {
    pub(super) rec: QpBox,
    pub(super) records: ArenaSlice<SendWr>,
    pub(super) sq: SendQueue,
    /// None when it draws from SRQs, or receives nothing.
    pub(super) rq: Option<RecvQueue>,
    /// Of its path, what every packet needs; the rest is in its record.
    pub(super) route: Option<Route>,
    pub(super) template: Option<FrameTemplate>,
    /// Stands in the core's list of QPs with events.
    pub(super) listed: bool,
    /// Stands in the core's active list.
    pub(super) active: bool,
    pub(super) idle_passes: u8,
    /// The epoch after which nobody uses a key that it has invalidated. Not recorded: after a restart nobody does.
    invalidating: Option<Epoch>,
    /// The bind under way. Not recorded either: it is begun again.
    binding: Option<(u64, Epoch)>,
    pub(crate) link: RetireLink,
}

impl Qp {
    /// A QP in RESET, with its records in the arenas of the core it is for. It is the control thread's until
    /// [`crate::command::Command::AddQp`] moves it to that core.
    pub(crate) fn new(init: QpInit, arenas: &CoreArenas) -> Result<Box<Self>, InitError> {
        let sends = init.qp_type.has_send_queue();
        let sq = Cursor {
            offset: init.sq_offset,
            depth: if sends { init.sq_depth } else { 1 },
            next: 0,
        };
        let ring = |cursor: &Cursor| Ring::new(init.region.as_ref().ok_or(InitError::NoRegion)?, cursor);
        let send_ring = sends.then(|| ring(&sq)).transpose()?;
        let mut rq = Cursor {
            offset: 0,
            depth: 0,
            next: 0,
        };
        let (recv_ring, srq, recv_pd) = match init.receives {
            Receives::Own { offset, depth } => {
                (rq.offset, rq.depth) = (offset, depth);
                (Some(ring(&rq)?), NO_SRQ, init.pd)
            }
            Receives::Shared { srq, pd } => (None, srq, pd),
            Receives::Nowhere => (None, NO_SRQ, init.pd),
        };
        let mut rc = init.transport();
        if srq != NO_SRQ {
            rc = rc.with_srq();
        }
        let records = arenas.rings.put(sq.depth as usize, SendWr::default())?;
        let units = arenas.rings.put(sq.depth as usize, Unit::ZERO)?;
        let rec = arenas.qps.put(QpRecord {
            rc,
            id: Identity {
                qpn: init.qpn,
                handle: init.handle,
                client: init.client,
                pd: init.pd,
                send_cq: if sends { init.send_cq } else { NO_CQ },
                recv_cq: if init.qp_type.is_xrc() {
                    NO_CQ
                } else {
                    init.recv_cq
                },
                srq,
                recv_pd,
                sig_all: init.sig_all,
                port: init.port,
            },
            sq,
            rq,
            sends: records.offset(),
            units: units.offset(),
            bad: BadWr::default(),
            pending: Pending::default(),
            cause: Cause::default(),
            placed: Placed::default(),
            counters: QpCounters::default(),
            ident: 0,
            path: PathRecord::default(),
        })?;
        let (sq, rq) = (SendQueue::new(send_ring, units), recv_ring.map(RecvQueue::new));
        Ok(Box::new(Qp::over(rec, records, sq, rq)))
    }

    /// The QP of a record.
    fn over(rec: QpBox, records: ArenaSlice<SendWr>, sq: SendQueue, rq: Option<RecvQueue>) -> Self {
        let path = rec.path.path();
        Qp {
            records,
            sq,
            rq,
            template: path.as_ref().map(|path| template(path, rec.rc.is_ecn_capable())),
            route: path.as_ref().map(Route::of),
            listed: false,
            active: false,
            idle_passes: 0,
            invalidating: None,
            binding: None,
            link: RetireLink::default(),
            rec,
        }
    }

    /// The QP of a record that was found in an opened arena. Control thread.
    ///
    /// # Errors
    /// What of it contradicts itself, its queues or the region.
    pub(crate) fn resume(
        rec: QpBox,
        arenas: &CoreArenas,
        region: Option<&Arc<ClientMem>>,
    ) -> Result<Box<Self>, ArenaError> {
        let slot = rec.slot();
        let place = |error| ArenaError::Contradiction {
            arena: arenas.qps.id(),
            slot,
            error,
        };
        let misplaced = |field, cursor: &Cursor| {
            let value = cursor.offset;
            let must = "where a queue of its depth fits the client's region";
            place(BadField { field, value, must })
        };
        let ring = |field, cursor: &Cursor| {
            let ring = region.and_then(|region| Ring::new(region, cursor).ok());
            ring.ok_or_else(|| misplaced(field, cursor))
        };
        let qp_type = rec.rc.qp_type();
        let sends = qp_type.has_send_queue();
        let send_ring = sends.then(|| ring("sq.offset", &rec.sq)).transpose()?;
        let receives = qp_type.has_recv_queue() && rec.id.srq == NO_SRQ;
        let recv_ring = receives.then(|| ring("rq.offset", &rec.rq)).transpose()?;
        let depth = rec.sq.depth as usize;
        let records = arenas.rings.claim(rec.sends, depth, slot)?;
        let units = arenas.rings.claim(rec.units, depth, slot)?;
        let qp = Qp::over(
            rec,
            records,
            SendQueue::new(send_ring, units),
            recv_ring.map(RecvQueue::new),
        );
        qp.check().map_err(place)?;
        Ok(Box::new(qp))
    }

    /// Checks what its record says against the rest of it.
    fn check(&self) -> Result<(), BadField> {
        let rec = &self.rec;
        BadField::unless(
            rec.id.qpn == rec.rc.qpn(),
            "id.qpn",
            rec.id.qpn,
            "the number in rc.qpn",
        )?;
        let shares = rec.id.srq != NO_SRQ;
        BadField::unless(
            rec.rc.uses_srq() == shares,
            "id.srq",
            rec.id.srq,
            "an SRQ where rc.uses_srq is set, else none",
        )?;
        let of_nobody = rec.rc.qp_type() == QpType::XrcTgt;
        BadField::unless(
            (rec.id.client == NO_CLIENT) == of_nobody,
            "id.client",
            rec.id.client,
            "a client's index, but of an XRC target",
        )?;
        let own_pd = shares || rec.id.recv_pd == rec.id.pd;
        BadField::unless(
            own_pd,
            "id.recv_pd",
            rec.id.recv_pd,
            "its own where it has no SRQ",
        )?;
        let port = rec.path.path().map_or(0, |path| path.port);
        for (field, port) in [("path.port", port), ("id.port", rec.id.port)] {
            BadField::unless(usize::from(port) < PORT_SLOTS, field, port, "the index of a port")?;
        }
        rec.rc.check(&self.records, &rec.beside().cold)?;
        let oldest = rec.rc.sq_oldest();
        for i in 0..self.outstanding() {
            let index = oldest.wrapping_add(i) as usize & (self.records.len() - 1);
            let wr = &self.records[index];
            let sound = self.sq.is_sound(&rec.sq, wr);
            BadField::unless(
                sound,
                "sq.data",
                wr.data,
                "the first unit of the request's own WQE",
            )?;
        }
        let sound = rec
            .rc
            .receiving()
            .is_none_or(|wqe| RecvQueue::is_sound(&rec.beside().recv, &wqe));
        BadField::unless(sound, "recv", 0u8, "the WQE that the message under way uses")
    }

    /// What of it is the same before and after a restart, in words: for tests and for whoever compares two dumps.
    pub(crate) fn describe(&self) -> String {
        let beside = self.rec.rc.uses_cold().then(|| &self.rec.beside().cold);
        let wqe = self.rec.rc.receiving().map(|_| &self.rec.beside().recv);
        format!(
            "{:?} {:?} {:?} {beside:?} {wqe:?}",
            *self.rec, self.records, self.template
        )
    }

    /// Memory of the daemon that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        Self::bytes_for(self.records.len() as u32)
    }

    /// The same for a QP that may be made, of `sq_depth` units.
    pub const fn bytes_for(sq_depth: u32) -> usize {
        let depth = sq_depth as usize;
        size_of::<Self>() + size_of::<QpRecord>() + depth * size_of::<SendWr>() + SendQueue::bytes_for(depth)
    }

    /// Changes it while no core has it: from RESET or INIT to RESET or INIT. Control thread. On error nothing changed;
    /// any other transition is refused as illegal.
    pub fn modify(&mut self, attr: &QpAttr, mask: QpAttrMask) -> Result<QpState, ModifyError> {
        self.rec.rc.modify_alone(attr, mask)?;
        if self.rec.rc.state() == QpState::Reset {
            self.forget_queues();
        }
        Ok(self.rec.rc.state())
    }

    /// Its attributes and progress.
    pub fn status(&self) -> QpStatus {
        let counters = &self.rec.counters;
        QpStatus {
            attr: self.rec.rc.query(),
            cause: self.rec.cause,
            sent_messages: counters.sent_messages,
            received_packets: counters.received_packets,
            dropped_packets: counters.dropped_packets,
            retries: counters.retries,
            congestion: match self.rec.rc.controls_congestion() {
                true => self.rec.rc.congestion(),
                false => Congestion::Off,
            },
            rate: self.rec.rc.rate(),
            sq_depth: match self.rec.rc.qp_type().has_send_queue() {
                true => self.rec.sq.depth,
                false => 0,
            },
            rq_depth: self.rec.rq.depth,
            sig_all: self.rec.id.sig_all,
        }
    }

    /// Its number.
    pub fn qpn(&self) -> u32 {
        self.rec.id.qpn
    }

    /// Runs `f` on the transport with this QP's queues and the core's environment behind it.
    #[inline]
    pub(super) fn with<R>(
        &mut self,
        env: &mut Env,
        f: impl FnOnce(&mut RcQp, &mut Ctx<'_, QpHost<'_>>) -> R,
    ) -> R {
        let now = env.now;
        let (rc, mut host, sq, cold) = self.parts(env);
        let host = &mut host;
        f(rc, &mut Ctx { host, sq, cold, now })
    }

    /// The transport, this QP's queues with the core's environment, the send ring, and the peer's READs and atomics.
    #[inline(always)] // what is not asked for need not be put together
    pub(super) fn parts<'a>(
        &'a mut self,
        env: &'a mut Env,
    ) -> (&'a mut RcQp, QpHost<'a>, &'a mut [SendWr], &'a mut Cold) {
        let (rec, beside) = self.rec.both();
        let host = QpHost {
            env,
            id: &rec.id,
            sq: &self.sq,
            rq: self.rq.as_ref(),
            xrc: None,
            recv: &mut beside.recv,
            recv_cursor: &mut rec.rq,
            pending: &mut rec.pending,
            cause: &mut rec.cause,
            placed: &mut rec.placed,
            counters: &mut rec.counters,
            invalidating: &mut self.invalidating,
            binding: &mut self.binding,
        };
        (&mut rec.rc, host, &mut self.records, &mut beside.cold)
    }

    /// Whether it has something to do that no doorbell tells of.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.rec.rc.has_work() || self.rec.bad.set
    }

    /// Begins to load what of it [`Qp::prefetch_record`] needs.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch_lines(std::ptr::from_ref(self).cast(), 0..size_of::<Self>());
    }

    /// Begins to load what of its record every packet needs, and the indices of its send queue.
    #[inline]
    pub(super) fn prefetch_served(&self) {
        self.prefetch_record();
        self.sq.prefetch_indices();
    }

    /// Begins to load what of its record every packet needs.
    #[inline]
    pub(super) fn prefetch_record(&self) {
        let record = std::ptr::from_ref(&*self.rec).cast();
        for part in QpRecord::HOT {
            prefetch_lines(record, part);
        }
    }

    /// Begins to load the WQEs that are posted, and where they go.
    #[inline]
    pub(super) fn prefetch_sends(&self) {
        self.sq.prefetch(&self.rec.sq);
        let tail = self.rec.rc.sq_next() as usize & (self.records.len().wrapping_sub(1));
        if let Some(records) = self.records.get(tail..) {
            let few = &records[..records.len().min(PREFETCHED)];
            prefetch_lines(few.as_ptr().cast(), 0..size_of_val(few));
        }
    }

    /// Its path, once it has one.
    pub(super) fn path(&self) -> Option<Path> {
        self.rec.path.path()
    }

    /// Takes a new path.
    pub(super) fn set_path(&mut self, path: Path) {
        self.rec.path = PathRecord::from(&path);
        let rc = &mut self.rec.rc;
        if rc.controls_congestion() == path.direct {
            rc.use_congestion_control(!path.direct);
        }
        self.template = Some(template(&path, rc.is_ecn_capable()));
        self.route = Some(Route::of(&path));
    }

    /// Forgets the path; the next one is given with RTR.
    pub(super) fn forget_path(&mut self) {
        (self.route, self.template) = (None, None);
        self.rec.path = PathRecord::default();
    }

    /// Whether a frame that came through `port` is from the peer, and as plain as those that go there.
    #[inline]
    pub(super) fn is_from_peer(&self, port: u16, frame: &PlainFrame<'_>) -> bool {
        let (Some(route), Some(template)) = (&self.route, &self.template) else {
            return false;
        };
        route.port == port && frame.answers(template)
    }

    /// Send work requests in progress.
    #[inline]
    pub(super) fn outstanding(&self) -> u32 {
        let len = self.records.len() as u32;
        len - self.rec.rc.sq_room(len)
    }

    /// First unit of the oldest work request in progress.
    #[inline]
    pub(super) fn oldest(&self) -> Option<u32> {
        let index = self.rec.rc.sq_oldest() as usize & (self.records.len() - 1);
        (self.outstanding() > 0).then(|| self.records[index].data)
    }

    /// Copies the next WQE that was posted, if there is one and room for it.
    #[inline]
    pub(super) fn take_send(&mut self) -> Result<Option<Accepted>, QueueError> {
        let oldest = self.oldest();
        self.sq.take(&mut self.rec.sq, oldest)
    }

    /// Asks to be kicked, and tells whether the send queue can be left alone.
    #[inline]
    pub(super) fn release_send(&self) -> bool {
        self.sq.release(&self.rec.sq)
    }

    /// The same for its receive queue, if it has one, which a QP in error flushes.
    #[inline]
    pub(super) fn release_recv(&self) -> bool {
        self.rq.as_ref().is_none_or(|rq| rq.release(&self.rec.rq))
    }

    /// Whether it is in the error state.
    #[inline]
    pub(super) fn in_error(&self) -> bool {
        self.rec.rc.state() == QpState::Err
    }

    /// Whether its transport flushes what is posted to the send queue: in the error state, and in SQE.
    #[inline]
    pub(super) fn flushes_sends(&self) -> bool {
        matches!(self.rec.rc.state(), QpState::Err | QpState::Sqe)
    }

    /// Its next deadline.
    #[inline]
    pub(super) fn deadline(&self) -> Option<Time> {
        self.rec.rc.poll_timeout()
    }

    /// Forgets what was posted to the send queue: its indices were forged.
    pub(super) fn discard_send(&mut self) {
        self.sq.discard(&mut self.rec.sq);
    }

    /// Forgets what was posted, as RESET demands.
    pub(super) fn forget_queues(&mut self) {
        self.discard_send();
        if let Some(rq) = &self.rq {
            rq.discard(&mut self.rec.rq);
        }
        self.rec.bad = BadWr::default();
        self.rec.cause = Cause::default();
    }
}

/// WQEs of a queue that are loaded ahead.
pub(super) const PREFETCHED: usize = 16;

/// Begins to load those bytes behind `base` into the cache of this core.
#[inline]
pub(super) fn prefetch_lines(base: *const u8, bytes: std::ops::Range<usize>) {
    for at in bytes.step_by(64) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has PREFETCHT0, which changes nothing but caches, whatever the address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(base.wrapping_add(at).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (base, at);
    }
}

/// The IPv4 address in a mapped one.
pub(crate) fn ipv4_of(ip: [u8; 16]) -> Option<[u8; 4]> {
    match ip {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
        _ => None,
    }
}

/// The headers of frames on a path; `ecn` for a sender that hears of congestion.
pub(super) fn template(path: &Path, ecn: bool) -> FrameTemplate {
    let tags = path
        .vlan
        .map_or(VlanTags::NONE, |tci| VlanTags::one(VlanTag::customer(tci)));
    let link = Link {
        dst: MacAddr(path.remote_mac),
        src: MacAddr(path.local_mac),
        tags,
    };
    let tos = if ecn { Ecn::Ect0 } else { Ecn::NotEct }.on(path.traffic_class);
    let net = match (ipv4_of(path.local_ip), ipv4_of(path.remote_ip)) {
        (Some(src), Some(dst)) => Net::V4(Ipv4 {
            src: src.into(),
            dst: dst.into(),
            tos,
            ttl: path.hop_limit,
            ident: 0,
            dont_fragment: true,
        }),
        _ => Net::V6(Ipv6 {
            src: path.local_ip.into(),
            dst: path.remote_ip.into(),
            traffic_class: tos,
            flow_label: path.flow_label & 0xf_ffff,
            hop_limit: path.hop_limit,
        }),
    };
    FrameTemplate::new(link, net, path.udp_source)
}

#[cfg(test)]
mod tests {
    use super::{super::records::QpArena, *};

    #[test]
    fn what_an_idle_qp_takes_beside_its_queues_is_no_more_than_a_kibibyte() {
        let (record, rest) = (QpArena::STRIDE, size_of::<Qp>());
        assert!(
            record + rest <= 1024,
            "{record} bytes in the arena, {rest} beside it"
        );
    }
}
