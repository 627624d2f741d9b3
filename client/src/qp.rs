//! Queue pairs.
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rnic_abi::{
    CreateQp, CreateQpReply, Empty, Handle, McastArg, ModifyQp, Op, QpAttrs, qp_mask, work_queue_size,
};

use crate::connect::Side;
use crate::cq::Source;
use crate::queue::{Doorbell, QpQueues, Receives, WorkQueue};
use crate::session::Session;
use crate::{
    Batch, ConnectOptions, Cq, Endpoint, Error, Gid, Pd, QpAttr, QpChange, QpConfig, QpState, QpType,
    RecvBatch, Result, Srq,
};

/// A queue pair. Any thread; each of its two queues has a lock.
///
/// Dropping it destroys it: outstanding work requests end without completions and let their memory go,
/// completions not yet polled are dropped. It waits for events of it that other threads hold
/// ([`AsyncEvent`](crate::AsyncEvent)).
#[derive(Debug)]
pub struct Qp {
    handle: u32,
    qpn: u32,
    qp_type: QpType,
    initial_psn: u32,
    sq_sig_all: bool,
    state: AtomicU8,
    queues: Arc<QpQueues>,
    send_cq: Cq,
    recv_cq: Cq,
    pd: Pd,
    /// Groups it is attached to.
    groups: Mutex<Vec<Gid>>,
}

impl Qp {
    pub(crate) fn create(pd: &Pd, config: QpConfig) -> Result<Qp> {
        let session = &pd.context().session;
        if !config.send_cq.0.is_of(session) || !config.recv_cq.0.is_of(session) {
            return Err(Error::InvalidArgument(
                "the CQ belongs to another context than the PD".into(),
            ));
        }
        if config.srq.as_ref().is_some_and(|srq| !srq.0.is_of(session)) {
            return Err(Error::InvalidArgument(
                "the SRQ belongs to another context than the PD".into(),
            ));
        }
        let (sq_units, rq_units) = config.units()?;
        let body = CreateQp {
            pd: pd.0.handle,
            send_cq: config.send_cq.0.handle(),
            recv_cq: match config.qp_type {
                QpType::XrcIni => 0,
                _ => config.recv_cq.0.handle(),
            },
            qp_type: config.qp_type as u32,
            sq_units,
            rq_units,
            sq_sig_all: config.sq_sig_all.into(),
            srq: config.srq.as_ref().map_or(0, |srq| srq.0.handle()),
        };
        let reply: CreateQpReply = session.control.request(Op::CreateQp, &body)?;
        let queues = Arc::new(Self::queues(session, &config, &reply)?);
        for cq in [&config.send_cq, &config.recv_cq] {
            cq.0.attach(reply.handle, Source::Qp(queues.clone()));
        }
        Ok(Qp {
            handle: reply.handle,
            qpn: reply.qpn,
            qp_type: config.qp_type,
            initial_psn: unpredictable_psn(reply.qpn),
            sq_sig_all: config.sq_sig_all,
            state: AtomicU8::new(QpState::Reset as u8),
            queues,
            send_cq: config.send_cq,
            recv_cq: config.recv_cq,
            pd: pd.clone(),
            groups: Mutex::default(),
        })
    }

    fn queues(session: &Session, config: &QpConfig, reply: &CreateQpReply) -> Result<QpQueues> {
        let doorbell = Doorbell {
            block: reply.doorbell_block,
            slot: Handle(reply.handle).slot(),
        };
        session.check_doorbell(doorbell.block, doorbell.slot)?;
        let queue = |name, offset, depth, limits| {
            let depth = session.check_depth(depth)?;
            let ring = session.check_queue(offset, work_queue_size(depth))?;
            Ok::<_, Error>(WorkQueue::new(
                session, name, reply.qpn, ring, depth, limits, doorbell,
            ))
        };
        Ok(QpQueues {
            send: queue("send", reply.sq_offset, reply.sq_depth, config.send_limits())?,
            recv: match &config.srq {
                Some(srq) => Receives::Shared(srq.clone()),
                None if config.qp_type == QpType::XrcIni => Receives::Nowhere,
                None => Receives::Own(queue(
                    "receive",
                    reply.rq_offset,
                    reply.rq_depth,
                    config.recv_limits(),
                )?),
            },
        })
    }

    /// Its number on the wire and in completions and events, 24 bits.
    pub fn qpn(&self) -> u32 {
        self.qpn
    }

    /// Its service type.
    pub fn qp_type(&self) -> QpType {
        self.qp_type
    }

    /// The protection domain it was made in.
    pub fn pd(&self) -> &Pd {
        &self.pd
    }

    /// The CQ of its sends.
    pub fn send_cq(&self) -> &Cq {
        &self.send_cq
    }

    /// The CQ of its receives.
    pub fn recv_cq(&self) -> &Cq {
        &self.recv_cq
    }

    /// Units of 64 bytes of the send and of the receive queue (0 of a QP on an SRQ); a request takes one and more
    /// when it has more than two scatter/gather entries or 32 inline bytes.
    pub fn depths(&self) -> (u32, u32) {
        let recv = match &self.queues.recv {
            Receives::Own(queue) => queue.depth(),
            Receives::Shared(_) | Receives::Nowhere => 0,
        };
        (self.queues.send.depth(), recv)
    }

    /// The SRQ it draws its receives from, if it does.
    pub fn srq(&self) -> Option<&Srq> {
        match &self.queues.recv {
            Receives::Own(_) | Receives::Nowhere => None,
            Receives::Shared(srq) => Some(srq),
        }
    }

    /// Starts a batch of sends. See [`Batch`] for what it holds.
    pub fn batch(&self) -> Batch<'_> {
        let writer = self.queues.send.writer(&self.pd.context().session, &self.pd);
        let not_ready = match self.last_state() {
            QpState::Reset | QpState::Init | QpState::Rtr => Some("sends can be posted from RTS on"),
            _ => None,
        };
        Batch::new(writer, self.not_ready(not_ready), self.sq_sig_all)
    }

    /// Builds a batch of sends and posts it; tells how many there were.
    pub fn post(&self, build: impl FnOnce(&mut Batch<'_>)) -> Result<usize> {
        let mut batch = self.batch();
        build(&mut batch);
        batch.post()
    }

    /// Starts a batch of receives. See [`RecvBatch`] for what it holds. An error on a QP that draws from an SRQ:
    /// receives are posted there.
    pub fn recv_batch(&self) -> Result<RecvBatch<'_>> {
        let Receives::Own(queue) = &self.queues.recv else {
            let why = match self.qp_type {
                QpType::XrcIni => "receives nothing",
                _ => "draws its receives from an SRQ; post them there",
            };
            return Err(Error::InvalidArgument(format!("QP {:#x} {why}", self.qpn)));
        };
        let writer = queue.writer(&self.pd.context().session, &self.pd);
        let not_ready = match self.last_state() {
            QpState::Reset => Some("receives can be posted from INIT on"),
            _ => None,
        };
        Ok(RecvBatch::new(writer, self.not_ready(not_ready)))
    }

    /// Builds a batch of receives and posts it; tells how many there were.
    pub fn post_recv(&self, build: impl FnOnce(&mut RecvBatch<'_>)) -> Result<usize> {
        let mut batch = self.recv_batch()?;
        build(&mut batch);
        batch.post()
    }

    /// RESET → INIT, where receives may be posted. [`Qp::connect`] does it too.
    pub fn init(&self, options: &ConnectOptions) -> Result<()> {
        let (state, mask, attrs) = options.init_transition();
        self.enter(state, mask, attrs)
    }

    /// What the peer needs to connect to this QP.
    pub fn endpoint(&self, options: &ConnectOptions) -> Result<Endpoint> {
        Endpoint::of(self.pd.context(), self.qpn, self.initial_psn, options)
    }

    /// RESET or INIT → RTR → RTS, connected to the peer's QP of the same type. The peer does the same with our endpoint; a
    /// send posted before it has is retried until it has, as `options` allow, and lost on UC.
    pub fn connect(&self, peer: &Endpoint, options: &ConnectOptions) -> Result<()> {
        let ours = self.endpoint(options)?;
        let transitions = options.transitions(self.pd.context(), Side::of(self.qp_type), &ours, peer)?;
        if self.last_state() == QpState::Reset {
            self.init(options)?;
        }
        for (state, mask, attrs) in transitions {
            self.enter(state, mask, attrs)?;
        }
        Ok(())
    }

    /// RESET → INIT → RTR → RTS of a UD QP, which takes datagrams with this Q_Key from then on.
    pub fn activate(&self, qkey: u32) -> Result<()> {
        let attrs = QpAttrs {
            port_num: 1,
            qkey,
            sq_psn: self.initial_psn,
            ..QpAttrs::default()
        };
        let setup = qp_mask::PKEY_INDEX | qp_mask::PORT | qp_mask::QKEY;
        self.enter(QpState::Init, setup, attrs)?;
        self.enter(QpState::Rtr, 0, attrs)?;
        self.enter(QpState::Rts, qp_mask::SQ_PSN, attrs)
    }

    /// Attaches a UD QP to a multicast group of its port: datagrams to the group arrive here too. They come from AHs to
    /// the group's address, for the QP [`Qp::MULTICAST`]. Destroying the QP detaches it.
    pub fn attach_mcast(&self, group: impl Into<Gid>) -> Result<()> {
        self.mcast(Op::AttachMcast, group.into())
    }

    /// Undoes it.
    pub fn detach_mcast(&self, group: impl Into<Gid>) -> Result<()> {
        self.mcast(Op::DetachMcast, group.into())
    }

    /// The number that stands for all QPs attached to a group.
    pub const MULTICAST: u32 = 0xFF_FFFF;

    fn mcast(&self, op: Op, group: Gid) -> Result<()> {
        let body = McastArg {
            handle: self.handle,
            reserved: 0,
            mgid: group.0,
        };
        self.session().control.request::<Empty>(op, &body)?;
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|joined| *joined != group);
        if op == Op::AttachMcast {
            groups.push(group);
        }
        Ok(())
    }

    /// Moves it to the error state: everything posted is flushed.
    pub fn fail(&self) -> Result<()> {
        self.enter(QpState::Error, 0, QpAttrs::default())
    }

    /// Moves it to RESET: outstanding requests and completions not yet polled are gone.
    pub fn reset(&self) -> Result<()> {
        self.modify(QpChange::to(QpState::Reset))
    }

    fn forget_posted(&self) {
        self.send_cq.0.paused(|| self.queues.send.retire_all());
        match &self.queues.recv {
            Receives::Own(queue) => self.recv_cq.0.paused(|| queue.retire_all()),
            Receives::Shared(_) | Receives::Nowhere => {}
        }
        self.queues.settle();
    }

    /// Changes its state or attributes (IBTA 10.3.1, 11.2.5.2): everything that [`Qp::connect`] and its like do not. A
    /// refused change changes nothing, and says which attribute is wrong and what would be right.
    pub fn modify(&self, change: QpChange) -> Result<()> {
        let QpChange { mask, attrs } = change;
        modify(self.session(), self.handle, change)?;
        if mask & qp_mask::STATE != 0 {
            self.state.store(attrs.qp_state, Ordering::Relaxed);
            if attrs.qp_state == QpState::Reset as u8 {
                self.forget_posted();
            }
        }
        Ok(())
    }

    /// Its attributes as the daemon has them, what it was made with, and why it failed if it did.
    pub fn query(&self) -> Result<QpAttr> {
        let attr = QpAttr::query(self.session(), self.handle)?;
        self.state.store(attr.state as u8, Ordering::Relaxed);
        Ok(attr)
    }

    /// Destroys it now, as dropping does, and tells whether that worked.
    pub fn destroy(self) -> Result<()> {
        let result = self.tear_down();
        // The fields are dropped as usual; only the second tear-down is left out.
        self.state.store(DESTROYED, Ordering::Relaxed);
        result
    }

    fn tear_down(&self) -> Result<()> {
        let groups = std::mem::take(&mut *self.groups.lock().unwrap_or_else(PoisonError::into_inner));
        for group in groups {
            self.mcast(Op::DetachMcast, group)?;
        }
        if self.srq().is_some() {
            // The receive of a message under way completes, and is not lost to the SRQ.
            let _ = self.fail();
        }
        let result = self.session().destroy(Op::DestroyQp, self.handle);
        self.send_cq.0.detach(self.handle);
        self.recv_cq.0.detach(self.handle);
        result
    }

    fn enter(&self, state: QpState, mask: u32, attrs: QpAttrs) -> Result<()> {
        let change = QpChange { mask, attrs };
        self.modify(change.state(state))
    }

    /// The state as far as the library knows: a failure found by the daemon shows in completions and
    /// [`Qp::query`].
    fn last_state(&self) -> QpState {
        QpState::from_code(self.state.load(Ordering::Relaxed)).unwrap_or(QpState::Error)
    }

    fn not_ready(&self, why: Option<&str>) -> Option<Error> {
        why.map(|why| {
            Error::InvalidArgument(format!(
                "QP {:#x} is in state {}; {why}",
                self.qpn,
                self.last_state()
            ))
        })
    }

    fn session(&self) -> &Session {
        &self.pd.context().session
    }
}

/// Changes a QP, or a target QP.
pub(crate) fn modify(session: &Session, handle: u32, change: QpChange) -> Result<()> {
    let QpChange { mask, attrs } = change;
    let body = ModifyQp { handle, mask, attrs };
    session.control.request::<Empty>(Op::ModifyQp, &body).map(drop)
}

/// A first PSN that nobody can guess, so that frames of an earlier connection do not fit (IBTA 9.7.1).
pub(crate) fn unpredictable_psn(qpn: u32) -> u32 {
    RandomState::new().hash_one(qpn) as u32 & 0xFF_FFFF
}

/// Value of [`Qp::state`] after [`Qp::destroy`]; no number of `enum ibv_qp_state`.
const DESTROYED: u8 = u8::MAX;

impl Drop for Qp {
    fn drop(&mut self) {
        if self.state.load(Ordering::Relaxed) != DESTROYED {
            // Nothing to tell anyone: a daemon that is gone has destroyed it.
            let _ = self.tear_down();
        }
    }
}
