//! One QP with its host and ring, and the packets that go in and out.

use crate::memory::{Effect, SimHost};
use rnic_transport::{
    Access, AtomicOp, Cold, Ctx, Emit, EventKind, GRH_AREA, ModifyError, PostError, QpAttr, QpAttrMask,
    QpState, QpType, RcQp, Received, SendFlags, SendWr, Source, Stretch, Time, WrOpcode,
};
use rnic_wire::{Extension, Headers, Mtu, Plain, Psn, Syndrome, Whole};
use std::collections::{BTreeMap, VecDeque};

/// The Q_Key of UD QPs.
pub const QKEY: u32 = 0x1111_1111;
/// What the GRH area of received datagrams is made of.
pub const GRH_BYTE: u8 = 0x60;

/// A packet on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Transport headers; they have been through the codec.
    pub headers: Headers,
    /// Payload without pad.
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet as the wire would deliver it.
    ///
    /// # Panics
    /// When the headers cannot be sent: whoever made them is wrong.
    pub fn new(headers: &Headers, payload: Vec<u8>) -> Self {
        let mut bytes = [0; 64];
        let len = headers
            .emit(&mut bytes)
            .expect("the transport emits only what the codec can");
        let (parsed, _) = Headers::parse(&bytes[..len]).expect("what was emitted parses");
        assert_eq!(parsed, *headers, "headers changed on the wire");
        Packet {
            headers: parsed,
            payload,
        }
    }

    /// Its PSN.
    pub fn psn(&self) -> u32 {
        self.headers.bth.psn.get()
    }

    /// PSN, syndrome and MSN, when it carries an AETH.
    pub fn aeth(&self) -> Option<(u32, Syndrome, u32)> {
        self.headers
            .aeth
            .map(|aeth| (self.psn(), aeth.syndrome, aeth.msn))
    }

    /// Whether it is a response that can take the requester further: anything but a NAK.
    pub fn takes_further(&self) -> bool {
        let nak = matches!(self.aeth(), Some((_, syndrome, _)) if !matches!(syndrome, Syndrome::Ack { .. }));
        self.headers.bth.opcode.is_response() && !nak
    }

    /// Its operation's name, "SEND_ONLY" say.
    pub fn name(&self) -> &'static str {
        self.headers.bth.opcode.operation.name()
    }
}

/// One side of a connection.
#[derive(Debug)]
pub struct Node {
    /// The state machines.
    pub qp: RcQp,
    /// What they act upon.
    pub host: SimHost,
    /// The send ring.
    pub sq: Vec<SendWr>,
    /// What of the QP is seldom needed.
    pub cold: Cold,
    /// Virtual time; the caller moves it.
    pub now: Time,
    /// Packets are taken the short way where they can ([`Node::receive_short`]).
    pub short: bool,
    /// What was placed before its turn, by PSN: its effect counts when that has come.
    pub early: BTreeMap<u32, Effect>,
    /// Requests and responses of one packet are sent the short way ([`RcQp::send_whole`]) where they can.
    pub sends_short: bool,
    /// What went out when it was posted, to be transmitted next.
    sent: VecDeque<Packet>,
}

impl Node {
    /// A QP in RESET with a ring of `ring_len` records, a power of two.
    pub fn new(qp: RcQp, ring_len: usize) -> Self {
        assert!(ring_len.is_power_of_two());
        Node {
            qp,
            host: SimHost::default(),
            sq: vec![SendWr::default(); ring_len],
            cold: Cold::EMPTY,
            now: Time(0),
            short: false,
            early: BTreeMap::new(),
            sends_short: false,
            sent: VecDeque::new(),
        }
    }

    /// Calls the QP with this node's context. Between two calls its record is one that a restarted daemon
    /// would take over.
    ///
    /// # Panics
    /// When the record contradicts itself.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut RcQp, &mut Ctx<'_, SimHost>) -> R) -> R {
        let mut ctx = Ctx {
            host: &mut self.host,
            sq: &mut self.sq,
            cold: &mut self.cold,
            now: self.now,
        };
        let result = f(&mut self.qp, &mut ctx);
        if let Err(error) = self.qp.check(&self.sq, &self.cold) {
            panic!("{error}: {:?}", self.qp);
        }
        result
    }

    /// Modifies the QP.
    pub fn modify(&mut self, attr: &QpAttr, mask: QpAttrMask) -> Result<(), ModifyError> {
        self.with(|qp, ctx| qp.modify(ctx, attr, mask))
    }

    /// Changes only the state.
    pub fn set_state(&mut self, state: QpState) -> Result<(), ModifyError> {
        self.modify(
            &QpAttr {
                state,
                ..QpAttr::default()
            },
            QpAttrMask::STATE,
        )
    }

    /// Brings the QP from RESET to RTR.
    pub fn to_rtr(&mut self, attr: &QpAttr) -> Result<(), ModifyError> {
        use QpAttrMask as M;
        let connected = M::AV | M::PATH_MTU | M::DEST_QPN | M::RQ_PSN;
        let features = if attr.selective { M::FEATURES } else { M::NONE };
        let (own, receive) = match self.qp.qp_type() {
            QpType::Rc | QpType::XrcTgt => (
                M::ACCESS_FLAGS,
                connected | M::MAX_DEST_RD_ATOMIC | M::MIN_RNR_TIMER | features,
            ),
            QpType::Uc | QpType::XrcIni => (M::ACCESS_FLAGS, connected),
            QpType::Ud => (M::QKEY, M::NONE),
        };
        let setup = M::STATE | M::PKEY_INDEX | M::PORT | own;
        self.modify(
            &QpAttr {
                state: QpState::Init,
                port: 1,
                ..*attr
            },
            setup,
        )?;
        self.modify(
            &QpAttr {
                state: QpState::Rtr,
                ..*attr
            },
            M::STATE | receive,
        )
    }

    /// Brings the QP from RTR to RTS.
    pub fn to_rts(&mut self, attr: &QpAttr) -> Result<(), ModifyError> {
        use QpAttrMask as M;
        let send = match self.qp.qp_type() {
            QpType::Rc | QpType::XrcIni => {
                M::SQ_PSN | M::TIMEOUT | M::RETRY_CNT | M::RNR_RETRY | M::MAX_QP_RD_ATOMIC
            }
            QpType::XrcTgt => M::SQ_PSN | M::TIMEOUT,
            QpType::Uc | QpType::Ud => M::SQ_PSN,
        };
        self.modify(
            &QpAttr {
                state: QpState::Rts,
                ..*attr
            },
            M::STATE | send,
        )
    }

    /// Posts a send work request.
    pub fn post(&mut self, wr: SendWr) -> Result<(), PostError> {
        if self.sends_short && self.post_whole(&wr) {
            return Ok(());
        }
        self.with(|qp, ctx| qp.post_send(ctx, wr))
    }

    /// Posts and sends a message of one packet, as an engine does that finds it at the head of the queue; `false` when it has
    /// to go the long way.
    fn post_whole(&mut self, wr: &SendWr) -> bool {
        let fits = wr.length as usize <= self.qp.query().path_mtu.bytes();
        if wr.flags.contains(SendFlags::FENCE) || !fits || self.qp.whole_room(self.sq.len() as u32) == 0 {
            return false;
        }
        match wr.opcode {
            WrOpcode::Send | WrOpcode::Write => {}
            WrOpcode::Read | WrOpcode::CompSwap | WrOpcode::FetchAdd if self.qp.may_fetch() => {
                let plain = self.with(|qp, ctx| qp.send_fetch(ctx.sq, ctx.now, |place| *place = *wr));
                self.sent.push_back(Packet::new(&plain.headers(), Vec::new()));
                return true;
            }
            _ => return false,
        }
        let Ok(payload) = self.host.gather(wr.data, 0, wr.length) else {
            return false;
        };
        let whole = self.with(|qp, ctx| qp.send_whole(ctx.sq, ctx.now, |place| *place = *wr));
        self.sent.push_back(Packet::new(&whole.headers(), payload));
        true
    }

    /// Posts a signalled operation of `bytes` (for a READ, of that many bytes to be fetched) against the
    /// peer's memory.
    ///
    /// # Panics
    /// When the QP refuses it.
    pub fn post_op(&mut self, wr_id: u64, opcode: WrOpcode, bytes: &[u8], rkey: u32, remote_addr: u64) {
        let data = self.host.add_send_buf(bytes.to_vec());
        self.post(SendWr {
            wr_id,
            opcode,
            flags: SendFlags::SIGNALED,
            imm_or_rkey: 0x1234_5678,
            remote_addr,
            rkey,
            length: bytes.len() as u32,
            data,
            ..SendWr::default()
        })
        .expect("the QP takes work requests");
    }

    /// Posts a signalled atomic on 8 bytes of the peer's memory; its send buffer is the next one.
    ///
    /// # Panics
    /// When the QP refuses it.
    pub fn post_atomic(&mut self, wr_id: u64, op: AtomicOp, rkey: u32, remote_addr: u64) {
        let data = self.host.add_send_buf(vec![0xEE; 8]);
        let (opcode, compare_add, swap) = match op {
            AtomicOp::CompareSwap { compare, swap } => (WrOpcode::CompSwap, compare, swap),
            AtomicOp::FetchAdd { add } => (WrOpcode::FetchAdd, add, 0),
        };
        self.post(SendWr {
            wr_id,
            opcode,
            flags: SendFlags::SIGNALED,
            remote_addr,
            rkey,
            compare_add,
            swap,
            length: 8,
            data,
            ..SendWr::default()
        })
        .expect("the QP takes work requests");
    }

    /// Posts a signalled SEND.
    pub fn post_bytes(&mut self, wr_id: u64, bytes: &[u8]) {
        self.post_op(wr_id, WrOpcode::Send, bytes, 0, 0);
    }

    /// Takes one packet.
    pub fn receive(&mut self, packet: &Packet) -> Received {
        let mut payload = Vec::new();
        if packet.headers.deth.is_some() {
            payload.extend([GRH_BYTE; GRH_AREA]);
        }
        payload.extend(&packet.payload);
        self.host.placed = None;
        let before = (self.host.effects.len(), self.host.effects.last().cloned());
        let expected = Psn::new(self.qp.query().rq_psn);
        let taken = self.short.then(|| self.receive_short(packet)).flatten();
        let outcome = taken
            .unwrap_or_else(|| self.with(|qp, ctx| qp.receive(ctx, &packet.headers, payload.as_slice())));
        if outcome == Received::Early {
            self.put_off(before, packet.psn());
        } else {
            self.take_up(expected);
        }
        outcome
    }

    /// Takes a packet the short way, if it is one that goes it; `None` when nothing has happened. What answers it at once is
    /// transmitted next.
    pub fn receive_short(&mut self, packet: &Packet) -> Option<Received> {
        let payload = packet.payload.as_slice();
        if let Some(whole) = Whole::of(&packet.headers) {
            return self.with(|qp, ctx| qp.receive_whole(ctx, &whole, payload));
        }
        let plain = Plain::of(&packet.headers)?;
        let Plain { psn, operation, .. } = plain;
        let (answer, payload) = match &plain.extension {
            Extension::Reth(reth) if payload.is_empty() => {
                let answer = self.qp.answer_read(psn, reth)?;
                let bytes = match reth.dma_len {
                    0 => Vec::new(),
                    len => self.host.read_remote(reth.rkey, reth.va, len).ok()?,
                };
                self.with(|qp, _| qp.fetch_answered());
                (answer, bytes)
            }
            Extension::Atomic(eth) if payload.is_empty() => {
                let answer = self.with(|qp, ctx| qp.answer_atomic(ctx, operation, psn, eth))?;
                (answer, Vec::new())
            }
            _ => return self.with(|qp, ctx| qp.receive_fetched(ctx, &plain, payload)),
        };
        self.sent.push_back(Packet::new(&answer.headers(), payload));
        Some(Received::Accepted)
    }

    /// The effect of a packet before its turn is taken back, to count later.
    fn put_off(&mut self, (count, last): (usize, Option<Effect>), psn: u32) {
        self.host.effects.truncate(count);
        if let (Some(kept), Some(last)) = (self.host.effects.last_mut(), last) {
            *kept = last;
        }
        let placed = self.host.placed;
        let (addr, len) = placed.unwrap_or_default();
        let twice = self.early.insert(psn, Effect::Write { addr, len });
        assert!(twice.is_none(), "PSN {psn} was placed twice before its turn");
    }

    /// What came before its turn has its effect when the PSN expected has passed it.
    fn take_up(&mut self, expected: Psn) {
        if self.early.is_empty() {
            return;
        }
        let passed = Psn::new(self.qp.query().rq_psn).diff(expected).unsigned_abs();
        for number in 0..passed {
            match self.early.remove(&(expected + number).get()) {
                Some(Effect::Write { addr, len }) if len > 0 => self.host.wrote(addr, len),
                _ => {}
            }
        }
    }

    /// Takes several packets.
    pub fn receive_all(&mut self, packets: &[Packet]) -> Vec<Received> {
        packets.iter().map(|packet| self.receive(packet)).collect()
    }

    /// The next packet to send, its payload gathered; failed gathers are reported to the QP.
    pub fn transmit(&mut self) -> Option<Packet> {
        if let Some(packet) = self.sent.pop_front() {
            return Some(packet);
        }
        if self.sends_short
            && let Some(packet) = self.transmit_response().or_else(|| self.transmit_middle())
        {
            return Some(packet);
        }
        loop {
            // Both halves of the QP may wait for a key, and what one hears the other is told at the next call.
            let waited = self.host.waits();
            let Some(emit) = self.with(|qp, ctx| qp.poll_transmit(ctx)) else {
                let spins = self.qp.has_work() && !matches!(self.qp.state(), QpState::Err | QpState::Sqe);
                if spins && (waited || self.host.waits()) {
                    continue;
                }
                assert!(!spins, "has_work is true, but there is nothing to send");
                return None;
            };
            if let Some(packet) = self.gather(&emit) {
                return Some(packet);
            }
        }
    }

    /// The next packet, if it is a response that nothing has to be asked about.
    fn transmit_response(&mut self) -> Option<Packet> {
        let (plain, source) = self.with(|qp, ctx| qp.response_ahead(ctx.cold))?;
        let payload = match source {
            Source::Remote { rkey, addr, len, .. } => self.host.read_remote(rkey, addr, len).ok()?,
            _ => Vec::new(),
        };
        self.with(|qp, ctx| qp.response_sent(ctx.cold));
        Some(Packet::new(&plain.headers(), payload))
    }

    /// The next packet, if it is the first of a stretch.
    fn transmit_middle(&mut self) -> Option<Packet> {
        let stretch = self.with(|qp, ctx| qp.stretch_ahead(ctx, 1 << 20))?;
        let Source::Send { data, offset, .. } = stretch.source else {
            unreachable!("a stretch is of a work request")
        };
        let len = stretch.mtu.bytes() as u32;
        let payload = self.host.gather(data, offset, len).ok()?;
        let headers = Headers::new(self.qp.stretch_bth(&stretch, 0));
        let first = Stretch {
            packets: 1,
            len,
            ..stretch
        };
        self.with(|qp, ctx| qp.stretch_sent(ctx, &first));
        Some(Packet::new(&headers, payload))
    }

    fn gather(&mut self, emit: &Emit) -> Option<Packet> {
        if emit.ah.is_some_and(|ah| self.host.bad_ahs.contains(&ah)) {
            self.with(|qp, ctx| qp.address_failed(ctx, emit));
            return None;
        }
        let payload = match emit.source {
            Source::None => Ok(Vec::new()),
            Source::Send {
                data, offset, len, ..
            } => self.host.gather(data, offset, len),
            Source::Remote { rkey, addr, len, .. } => self.host.read_remote(rkey, addr, len),
            Source::Missing => Ok(self.qp.selective_ack(&self.cold).to_vec()),
        };
        match payload {
            Ok(payload) => Some(Packet::new(&emit.headers, payload)),
            Err(err) => {
                self.with(|qp, ctx| qp.gather_failed(ctx, emit, err));
                None
            }
        }
    }

    /// Everything there is to send now.
    pub fn transmit_all(&mut self) -> Vec<Packet> {
        std::iter::from_fn(|| self.transmit()).collect()
    }

    /// Moves time on by `nanos` and acts on the deadlines passed.
    pub fn wait(&mut self, nanos: u64) {
        self.now = self.now.saturating_add(nanos);
        self.with(|qp, ctx| qp.handle_timeout(ctx));
    }

    /// Flushes a QP in ERR to the end.
    pub fn flush_all(&mut self) {
        while self.with(|qp, ctx| qp.flush(ctx, 3)) {}
    }

    /// Kinds of the events so far.
    pub fn event_kinds(&self) -> Vec<EventKind> {
        self.host.events.iter().map(|event| event.kind).collect()
    }
}

/// Two QPs connected to each other in RTS: numbers 0x11 and 0x22, first PSNs 100 and 200, every right and
/// every READ resource, an ACK timeout of 4.2 ms, 7 retries, unless `adjust`, which sees the attributes of
/// either side, says otherwise.
///
/// # Panics
/// When the attributes are not acceptable.
pub fn connect(mtu: Mtu, adjust: impl Fn(&mut QpAttr)) -> (Node, Node) {
    connect_at(mtu, [100, 200], adjust)
}

/// As [`connect`], with the first PSN of either side.
///
/// # Panics
/// When the attributes are not acceptable.
pub fn connect_at(mtu: Mtu, psns: [u32; 2], adjust: impl Fn(&mut QpAttr)) -> (Node, Node) {
    connect_as(QpType::Rc, mtu, psns, adjust)
}

/// As [`connect_at`], with QPs of any type. Datagrams need an address handle, any number, and the Q_Key [`QKEY`].
///
/// # Panics
/// When the attributes are not acceptable.
pub fn connect_as(qp_type: QpType, mtu: Mtu, psns: [u32; 2], adjust: impl Fn(&mut QpAttr)) -> (Node, Node) {
    let qp = |qpn| match qp_type {
        QpType::Ud => RcQp::new_ud(qpn, mtu),
        _ => RcQp::new(qpn).with_type(qp_type),
    };
    join([qp(0x11), qp(0x22)], mtu, psns, adjust)
}

/// As [`connect_at`]: an XRC initiator, and an XRC target of domain `xrcd`.
///
/// # Panics
/// When the attributes are not acceptable.
pub fn connect_xrc(xrcd: u32, mtu: Mtu, psns: [u32; 2], adjust: impl Fn(&mut QpAttr)) -> (Node, Node) {
    let from = RcQp::new(0x11).with_type(QpType::XrcIni);
    join([from, RcQp::new_xrc_tgt(0x22, xrcd)], mtu, psns, adjust)
}

fn join(qps: [RcQp; 2], mtu: Mtu, psns: [u32; 2], adjust: impl Fn(&mut QpAttr)) -> (Node, Node) {
    let side = |qp: RcQp, peer: u32, sq_psn: u32, rq_psn: u32| {
        let mut attr = QpAttr {
            path_mtu: mtu,
            qkey: QKEY,
            dest_qpn: peer,
            sq_psn,
            rq_psn,
            ..default_attr()
        };
        adjust(&mut attr);
        let mut node = Node::new(qp, 64);
        node.to_rtr(&attr).expect("attributes are legal");
        node.to_rts(&attr).expect("attributes are legal");
        node
    };
    let [a, b] = qps;
    (
        side(a, b.qpn(), psns[0], psns[1]),
        side(b, a.qpn(), psns[1], psns[0]),
    )
}

/// The attributes of [`connect`], apart from numbers, PSNs and MTU.
pub fn default_attr() -> QpAttr {
    QpAttr {
        access: Access::REMOTE_WRITE
            .union(Access::REMOTE_READ)
            .union(Access::REMOTE_ATOMIC)
            .union(Access::FLUSH_GLOBAL),
        port: 1,
        max_rd_atomic: 16,
        max_dest_rd_atomic: 16,
        min_rnr_timer: 1,
        timeout: 10,
        retry_cnt: 7,
        rnr_retry: 7,
        ..QpAttr::default()
    }
}
