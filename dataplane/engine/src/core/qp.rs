//! A QP on its core: the transport's record, the queues behind it, its path.
use std::sync::Arc;

use rnic_transport::{Cause, Ctx, QpState, RcQp, SendWr, Time};
use rnic_wire::{Ecn, FrameTemplate, Ipv4, Ipv6, Link, MacAddr, Net, VlanTag, VlanTags};

use super::{
    host::{Env, QpHost},
    queue::{InitError, RecvQueue, SendQueue},
};
use crate::{command::Path, mem::ClientMem, retire::RetireLink};

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
    /// Slot of the send CQ.
    pub send_cq: u32,
    /// Slot of the receive CQ.
    pub recv_cq: u32,
    /// The client's region.
    pub region: Arc<ClientMem>,
    /// Where the send queue stands in it.
    pub sq_offset: u64,
    /// Units of the send queue, a power of two.
    pub sq_depth: u32,
    /// Where the receive queue stands.
    pub rq_offset: u64,
    /// Units of the receive queue, a power of two.
    pub rq_depth: u32,
    /// Every send WQE is signalled.
    pub sig_all: bool,
}

/// Who a QP is.
#[derive(Copy, Clone, Debug)]
pub(super) struct Identity {
    pub qpn: u32,
    pub handle: u32,
    pub client: u32,
    pub pd: u32,
    pub send_cq: u32,
    pub recv_cq: u32,
    pub sig_all: bool,
}

/// Events that the control thread has not been told of yet.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Pending {
    /// Bits of [`rnic_abi::event_kind`].
    pub kinds: u32,
    /// Cause of the first.
    pub cause: Cause,
    /// Stands in the core's list.
    pub listed: bool,
}

/// What a QP has counted.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct QpCounters {
    pub sent_messages: u64,
    pub received_packets: u64,
    pub dropped_packets: u64,
    pub retries: u64,
}

/// A send WQE that cannot be executed; its turn comes when all before it are complete.
#[derive(Copy, Clone, Debug)]
pub(super) struct BadWr {
    pub wr_id: u64,
    pub cause: Cause,
}

/// A queue pair.
pub struct Qp {
    pub(super) rc: RcQp,
    pub(super) records: Box<[SendWr]>,
    pub(super) sq: SendQueue,
    pub(super) rq: RecvQueue,
    pub(super) id: Identity,
    pub(super) path: Option<Path>,
    pub(super) template: Option<FrameTemplate>,
    /// Send WQEs given to the transport so far.
    pub(super) posted: u32,
    pub(super) bad: Option<BadWr>,
    pub(super) pending: Pending,
    /// Why it is in the error state.
    pub(super) cause: Cause,
    /// Stands in the core's active list.
    pub(super) active: bool,
    pub(super) idle_passes: u8,
    /// IPv4 identification of the next frame.
    pub(super) ident: u16,
    pub(super) counters: QpCounters,
    pub(crate) link: RetireLink,
}

impl Qp {
    /// A QP in RESET. Control thread; it is moved to its core by [`crate::command::Command::AddQp`].
    pub fn new(init: QpInit) -> Result<Box<Self>, InitError> {
        let sq = SendQueue::new(init.region.clone(), init.sq_offset, init.sq_depth)?;
        let rq = RecvQueue::new(init.region, init.rq_offset, init.rq_depth)?;
        Ok(Box::new(Qp {
            rc: RcQp::new(init.qpn),
            records: vec![SendWr::default(); sq.depth() as usize].into(),
            sq,
            rq,
            id: Identity {
                qpn: init.qpn,
                handle: init.handle,
                client: init.client,
                pd: init.pd,
                send_cq: init.send_cq,
                recv_cq: init.recv_cq,
                sig_all: init.sig_all,
            },
            path: None,
            template: None,
            posted: 0,
            bad: None,
            pending: Pending::default(),
            cause: Cause::default(),
            active: false,
            idle_passes: 0,
            ident: 0,
            counters: QpCounters::default(),
            link: RetireLink::default(),
        }))
    }

    /// Memory of the daemon that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.records) + self.sq.bytes() + self.rq.bytes()
    }

    /// Its number.
    pub fn qpn(&self) -> u32 {
        self.id.qpn
    }

    /// Runs `f` on the transport with this QP's queues and the core's environment behind it.
    #[inline]
    pub(super) fn with<R>(
        &mut self,
        env: &mut Env,
        f: impl FnOnce(&mut RcQp, &mut Ctx<'_, QpHost<'_>>) -> R,
    ) -> R {
        let peer = self.rc.dest_qpn();
        let now = env.now;
        let mut host = QpHost {
            env,
            id: &self.id,
            peer,
            sq: &self.sq,
            rq: &mut self.rq,
            pending: &mut self.pending,
            cause: &mut self.cause,
            counters: &mut self.counters,
        };
        f(
            &mut self.rc,
            &mut Ctx {
                host: &mut host,
                sq: &mut self.records,
                now,
            },
        )
    }

    /// Takes a new path.
    pub(super) fn set_path(&mut self, path: Path) {
        self.template = Some(template(&path));
        self.path = Some(path);
    }

    /// Forgets the path; the next one is given with RTR.
    pub(super) fn forget_path(&mut self) {
        (self.path, self.template) = (None, None);
    }

    /// Send work requests in progress.
    #[inline]
    pub(super) fn outstanding(&self) -> u32 {
        let len = self.records.len() as u32;
        len - self.rc.sq_room(len)
    }

    /// First unit of the oldest work request in progress.
    #[inline]
    pub(super) fn oldest(&self) -> Option<u32> {
        let outstanding = self.outstanding();
        let index = self.posted.wrapping_sub(outstanding) as usize & (self.records.len() - 1);
        (outstanding > 0).then(|| self.records[index].data)
    }

    /// Whether it is in the error state.
    #[inline]
    pub(super) fn in_error(&self) -> bool {
        self.rc.state() == QpState::Err
    }

    /// Its next deadline.
    #[inline]
    pub(super) fn deadline(&self) -> Option<Time> {
        self.rc.poll_timeout()
    }

    /// Forgets what was posted, as RESET demands.
    pub(super) fn forget_queues(&mut self) {
        self.sq.discard();
        self.rq.discard();
        self.posted = 0;
        self.bad = None;
        self.cause = Cause::default();
    }
}

/// The IPv4 address in a mapped one.
pub(crate) fn ipv4_of(ip: [u8; 16]) -> Option<[u8; 4]> {
    match ip {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
        _ => None,
    }
}

fn template(path: &Path) -> FrameTemplate {
    let tags = path
        .vlan
        .map_or(VlanTags::NONE, |tci| VlanTags::one(VlanTag::customer(tci)));
    let link = Link {
        dst: MacAddr(path.remote_mac),
        src: MacAddr(path.local_mac),
        tags,
    };
    // Without congestion control frames leave as Not-ECT.
    let tos = Ecn::NotEct.on(path.traffic_class);
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
