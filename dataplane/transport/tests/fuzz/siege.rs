//! One QP under fire.

mod owner;

use crate::Tally;
use crate::common::{KEY, register};
use crate::frames::{
    FOREIGN_SRQ, INVALIDATE, INVALIDATES, LONGEST, Message, SRQ, Spec, WINDOW, before_its_turn, request,
    twist,
};
use crate::model::Model;
use rnic_sim::{Node, Packet, Rng, connect_as, connect_xrc};
use rnic_transport::{
    Access, Check, Congestion, DcqcnSettings, EventKind, Limits, Mutation, QpAttr, QpState, QpType, Queue,
    RcQp, Received, Time,
};
use rnic_wire::{
    Bth, Frame, FrameRepr, Headers, Ipv4, Link, MAX_FRAME_HEADER_LEN, Mtu, Net, Opcode, Operation, Psn,
    TableCrc, Transport, verify_icrc,
};
use std::collections::{BTreeMap, VecDeque};

/// Frames sent to one QP at most.
const ROUND: u64 = 400;
/// Frames that a QP in ERR is sent.
const AFTERMATH: u32 = 8;
/// Bytes of the region that the peer may use.
pub const REGION: u64 = 4_096;
/// A region that the peer may only read, and one that it may not use at all: key and address.
pub const READ_ONLY: (u32, u64) = (0x88, 0x20_0000);
pub const SECRET: (u32, u64) = (0x99, 0x30_0000);
/// Bytes of each of them.
pub const SMALL_REGION: u64 = 512;
/// An address handle that is not valid.
const BAD_AH: u32 = 0xBAD;
/// Packets that a UC QP is behind at most when it drops one for being late.
const LATE: i32 = 1 << 16;
/// The XRC domain.
const XRCD: u32 = 7;
/// Bytes from which payloads are cut.
const NOISE: usize = 4_096;

pub struct Siege {
    rng: Rng,
    qp_type: QpType,
    srq: bool,
    node: Node,
    model: Model,
    noise: Vec<u8>,
    /// The message being sent to it.
    message: Option<Message>,
    /// The request sent last: now and then the network doubles it.
    last: Option<Spec>,
    /// Right answers to what it has sent.
    answers: VecDeque<Spec>,
    /// Work requests posted.
    posted: u64,
    received: u64,
    /// Keys that were invalidated.
    invalidated: u32,
    /// It has agreed on selective retransmission.
    selective: bool,
    /// What it has taken before its turn, by PSN.
    early: BTreeMap<u32, Packet>,
    /// A NAK of it stands: the next one may come only after what that waits for.
    nak: bool,
    /// Events seen when this QP began.
    events: usize,
    frame: Vec<u8>,
    tally: Tally,
}

impl Siege {
    pub fn new(qp_type: QpType, srq: bool, seed: u64, mutation: Option<Mutation>) -> Self {
        let mut rng = Rng::new(seed);
        let mut node = Node::new(qp(&mut rng, qp_type, srq), 64);
        node.qp.mutate(mutation);
        register(&mut node, REGION as usize);
        let region = node.host.region_mut(KEY).expect("it was registered");
        region.access = region.access.union(Access::MW_BIND).union(Access::FLUSH_GLOBAL);
        node.host.alloc_window(WINDOW >> 8);
        let (key, base) = READ_ONLY;
        node.host
            .register(key, base, vec![1; SMALL_REGION as usize], Access::REMOTE_READ);
        let (key, base) = SECRET;
        node.host
            .register(key, base, vec![2; SMALL_REGION as usize], Access::NONE);
        for key in 0..INVALIDATES {
            node.host.register(INVALIDATE + key, 0, Vec::new(), Access::NONE);
        }
        if qp_type == QpType::XrcTgt {
            node.host.add_srq(SRQ, XRCD);
            node.host.add_srq(FOREIGN_SRQ, XRCD + 1);
        }
        node.host.bad_ahs.push(BAD_AH);
        node.host.grace = rng.below(3) as u32;
        let ways = &mut Rng::new(seed ^ 0x5047);
        (node.short, node.sends_short) = (ways.chance(500), ways.chance(500));
        Siege {
            qp_type,
            srq,
            model: Model::new(node.host.regions[0].bytes.clone()),
            noise: rng.bytes(NOISE),
            rng,
            message: None,
            last: None,
            answers: VecDeque::new(),
            posted: 0,
            received: 0,
            invalidated: 0,
            selective: node.qp.query().selective,
            early: BTreeMap::new(),
            nak: false,
            events: 0,
            frame: vec![0; MAX_FRAME_HEADER_LEN + LONGEST + 8],
            tally: Tally::default(),
            node,
        }
    }

    pub fn run(mut self) -> Tally {
        let mut dead = 0;
        for _ in 0..ROUND {
            self.own_work();
            if self.rng.chance(5) {
                self.reserved();
            }
            if self.rng.chance(20) {
                self.congest();
            }
            let mut spec = self.next();
            if self.rng.chance(60) {
                twist(&mut self.rng, self.qp_type, &mut spec);
            }
            self.deliver(spec);
            self.check();
            if self.node.qp.state() == QpState::Err {
                dead += 1;
                if dead == AFTERMATH && self.srq {
                    // The next QP takes what this one has left in the SRQ.
                    self.end();
                    self.succeed();
                    dead = 0;
                } else if dead == AFTERMATH {
                    break;
                }
            }
        }
        self.end();
        self.tally.received = self.model.received;
        self.tally
    }

    fn next(&mut self) -> Spec {
        let often = if self.qp_type == QpType::XrcIni { 900 } else { 300 };
        if self.rng.chance(often)
            && let Some(answer) = self.answers.pop_front()
        {
            return answer;
        }
        if self.rng.chance(30)
            && let Some(last) = self.last
        {
            return last;
        }
        let psn = Psn::new(self.node.qp.query().rq_psn);
        if self.selective && self.rng.chance(400) {
            let sent = Psn::new(self.node.qp.query().sq_psn);
            return before_its_turn(&mut self.rng, self.message, psn, sent);
        }
        let spec = request(
            &mut self.rng,
            self.qp_type,
            self.message,
            psn,
            INVALIDATE + self.invalidated.min(INVALIDATES - 1),
        );
        self.last = Some(spec);
        spec
    }

    /// A CNP, or a mark: neither of them touches what the QP is about.
    fn congest(&mut self) {
        let before = self.before();
        let now = self.node.now;
        if self.qp_type == QpType::Rc && self.rng.chance(500) {
            let opcode = Opcode::new(Transport::Rc, Operation::SendOnly);
            self.node.with(|qp, _| qp.marked(opcode, now));
            assert_eq!(before, self.before());
            return;
        }
        let mut bth = Bth::new(Opcode::CNP, self.node.qp.qpn(), Psn::ZERO);
        bth.becn = true;
        let outcome = self.node.receive(&Packet::new(&Headers::new(bth), Vec::new()));
        self.check_outcome(before, true, false, outcome);
    }

    /// A packet of a reserved opcode: refused on RC, when its turn is there, and of no effect elsewhere.
    fn reserved(&mut self) {
        let class = (self.qp_type.transport() as u8) << 5;
        let opcodes: Vec<u8> = (class..class + 32)
            .filter(|raw| Opcode::from_u8(*raw).is_none())
            .collect();
        let opcode = self.rng.pick(&opcodes);
        // In sequence it ends an RC QP, which is not to happen to most of them.
        let shift = if self.rng.chance(100) {
            0
        } else {
            1 + self.rng.below(3) as u32
        };
        let psn = Psn::new(self.node.qp.query().rq_psn) + shift;
        let before = self.before();
        let outcome = self.node.with(|qp, ctx| qp.receive_reserved(ctx, opcode, psn));
        self.check_outcome(before, false, false, outcome);
    }

    /// Sends a frame over the wire.
    fn deliver(&mut self, (headers, len): Spec) {
        let address = |host| [10, 0, 0, host].into();
        let repr = FrameRepr {
            link: Link::default(),
            net: Net::V4(Ipv4 {
                src: address(2),
                dst: address(1),
                tos: 0,
                ttl: 64,
                ident: 0,
                dont_fragment: true,
            }),
            udp_src_port: 0xC000,
            headers,
        };
        let at = self.rng.below((NOISE - LONGEST) as u64) as usize;
        let payload = &self.noise[at..at + len];
        let emitted = repr.emit_frame(&TableCrc, payload, &mut self.frame);
        let frame = &self.frame[..emitted.expect("such a frame can be emitted")];
        let frame = Frame::parse(frame, None).expect("what was emitted parses");
        assert!(verify_icrc(&TableCrc, frame.datagram()));
        let packet = Packet {
            headers: *frame.headers(),
            payload: frame.payload().to_vec(),
        };
        let before = self.before();
        let place = headers.bth.psn.diff(Psn::new(self.node.qp.query().rq_psn));
        self.model.window = self.node.host.bound(WINDOW).copied();
        let outcome = self.node.receive(&packet);
        let opcode = headers.bth.opcode;
        // A gap is no reason to refuse what begins a UC message.
        let begins = self.qp_type == QpType::Uc && outcome == Received::OutOfOrder;
        let took = outcome == Received::Accepted || begins;
        if took && opcode.is_request() {
            // On UC only what begins a message may come after a gap, and nothing late.
            let due = match self.qp_type {
                QpType::Ud => true,
                QpType::Uc => place == 0 || opcode.starts_message() && !(-LATE..0).contains(&place),
                _ => place == 0,
            };
            assert!(due, "{outcome:?}, {place} from the PSN expected: {headers:?}");
            self.model.accept(&headers, &packet.payload);
            self.invalidated += u32::from(headers.ieth.is_some());
            self.follow(&packet);
            self.model.check_completions(&self.node);
            self.take_up(headers.bth.psn);
        } else if outcome == Received::Early {
            assert!(
                self.selective && opcode.is_write() && place > 0,
                "{place}: {headers:?}"
            );
            if let Some((addr, _)) = self.node.host.placed {
                self.model.place(addr, &packet.payload);
            }
            let twice = self.early.insert(headers.bth.psn.get(), packet);
            assert!(twice.is_none(), "placed twice: {headers:?}");
        } else if self.qp_type == QpType::Uc && !matches!(outcome, Received::Duplicate) {
            // Its message is dropped as a whole.
            self.message = None;
        }
        self.tally.frames += 1;
        self.tally.responses += u64::from(opcode.is_response() && outcome == Received::Accepted);
        self.tally.accepted += u64::from(took);
        self.tally.refused += u64::from(matches!(outcome, Received::Refused(_)));
        self.tally.dropped += u64::from(matches!(outcome, Received::Dropped(_)));
        let again = place < 0 && opcode.operation == Operation::ReadRequest;
        self.check_outcome(before, opcode.is_response(), again, outcome);
    }

    /// What was placed before its turn counts when that has come.
    fn take_up(&mut self, psn: Psn) {
        let passed = Psn::new(self.node.qp.query().rq_psn).diff(psn).unsigned_abs();
        for number in 1..passed {
            if let Some(packet) = self.early.remove(&(psn + number).get()) {
                self.model.accept(&packet.headers, &packet.payload);
                self.follow(&packet);
            }
        }
    }

    /// What has to follow a packet that was taken.
    fn follow(&mut self, packet: &Packet) {
        let opcode = packet.headers.bth.opcode;
        if !opcode.is_send() && !opcode.is_write() {
            return;
        }
        let before = self.message.map_or(0, |message| message.left);
        let left = packet.headers.reth.map_or(before, |reth| reth.dma_len);
        self.message = (!opcode.ends_message()).then_some(Message {
            is_send: opcode.is_send(),
            left: left.saturating_sub(packet.payload.len() as u32),
        });
    }

    fn reliable(&self) -> bool {
        self.qp_type.transport().is_reliable()
    }

    /// Receives that no message has taken.
    fn left(&self) -> usize {
        let host = &self.node.host;
        host.srqs
            .first()
            .map_or(host.recv_queue.len(), |srq| srq.queue.len())
    }

    /// How much there was of effects, completions and events.
    fn before(&self) -> [usize; 3] {
        let host = &self.node.host;
        [host.effects.len(), host.completions.len(), host.events.len()]
    }

    /// What became of a packet fits what it did.
    fn check_outcome(&mut self, before: [usize; 3], response: bool, again: bool, outcome: Received) {
        let (now, state) = (self.before(), self.node.qp.state());
        let nak = match outcome {
            // It may say more than once what is missing.
            _ if self.selective => false,
            _ if response => self.nak,
            Received::OutOfOrder | Received::NotReady => true,
            Received::Accepted => false,
            _ => self.nak,
        };
        let nak_stood = std::mem::replace(&mut self.nak, nak);
        match outcome {
            Received::Dropped(_) | Received::Duplicate | Received::NotReady | Received::Notified => {
                assert_eq!(before, now, "{outcome:?} had an effect");
            }
            Received::OutOfOrder if self.reliable() && !response => {
                assert_eq!(before, now, "{outcome:?} had an effect");
                assert!(!nak_stood, "a second NAK while one is outstanding");
            }
            // A repeated READ that may not be executed any more: its sender is told, and the QP lives on.
            Received::Refused(_) if again => assert_eq!(before, now, "{outcome:?} had an effect"),
            Received::Refused(_) => {
                assert_eq!(state, QpState::Err, "{outcome:?}");
                let said = now[1] > before[1] || now[2] > before[2];
                assert!(said, "{outcome:?}, and nobody was told");
                // The owner's own fault here is a receive buffer that cannot be written, and no other ends an
                // unreliable QP.
                let event = self.node.host.events.last();
                let fatal = event.filter(|event| event.kind == EventKind::QpFatal);
                let own = fatal.map(|event| event.cause.check == Check::Key);
                let fits = own.unwrap_or(self.reliable());
                assert!(response || fits, "{outcome:?}: {event:?}");
            }
            Received::Early => assert_eq!(before, now, "{outcome:?} had an effect"),
            Received::Accepted | Received::OutOfOrder => {
                assert!(response || state != QpState::Err, "{outcome:?}");
                let answers = response || self.reliable() || !self.node.qp.has_work();
                assert!(
                    answers || self.posted > 0,
                    "an unreliable QP has something to say"
                );
            }
        }
    }

    /// Memory and completions are as the model has them.
    fn check(&mut self) {
        self.model.check_completions(&self.node);
        let host = &self.node.host;
        let bytes = |key| &host.region(key).expect("it was registered").bytes;
        assert!(
            *bytes(KEY) == self.model.region,
            "the region is not what was written"
        );
        for ((key, _), byte) in [(READ_ONLY, 1), (SECRET, 2)] {
            let whole = bytes(key).iter().all(|found| *found == byte);
            assert!(whole, "region {key:#x} was written");
        }
        assert!(self.node.qp.poll_timeout().is_none_or(|at| at < Time::NEVER));
    }

    /// The QP ends: everything completes, once, but what is left in an SRQ.
    fn end(&mut self) {
        let left = self.left();
        if self.node.qp.state() != QpState::Err {
            self.set_state(QpState::Err);
        }
        self.node.flush_all();
        self.node.transmit_all();
        self.check();
        let kept = if self.srq { left } else { 0 };
        assert_eq!(self.left(), kept, "receives in the queue");
        assert_eq!(self.model.completed(Queue::Send), self.posted);
        assert_eq!(self.model.completed(Queue::Recv), self.received - kept as u64);
        let events = &self.node.event_kinds()[self.events..];
        let last = events.iter().filter(|kind| **kind == EventKind::LastWqeReached);
        assert_eq!(last.count(), usize::from(self.srq), "LAST_WQE_REACHED");
        assert!(!self.node.qp.has_work());
        self.tally.qps += 1;
    }

    /// Another QP on the same SRQ.
    fn succeed(&mut self) {
        self.node.qp = qp(&mut self.rng, self.qp_type, self.srq);
        self.selective = self.node.qp.query().selective;
        self.early.clear();
        self.node.early.clear();
        self.events = self.node.host.events.len();
        self.message = None;
        self.last = None;
        self.nak = false;
        self.answers.clear();
        self.model.revive(&[Queue::Send, Queue::Recv]);
    }
}

/// A QP in RTS.
fn qp(rng: &mut Rng, qp_type: QpType, srq: bool) -> RcQp {
    let psns = [0, 0].map(|_: u32| rng.pick(&[0xFF_FFF0, 0x7F_FFF0, 100]));
    let selective = qp_type == QpType::Rc && rng.chance(500);
    let adjust = |attr: &mut QpAttr| (attr.max_dest_rd_atomic, attr.selective) = (4, selective);
    let (node, _) = match qp_type {
        QpType::XrcIni => connect_xrc(XRCD, Mtu::M256, psns, adjust),
        QpType::XrcTgt => {
            let (initiator, target) = connect_xrc(XRCD, Mtu::M256, psns, adjust);
            (target, initiator)
        }
        _ => connect_as(qp_type, Mtu::M256, psns, adjust),
    };
    let mut qp = node.qp.with_limits(Limits::new(8, 2));
    if rng.chance(400) {
        let line_rate = rng.pick(&[10_000_000, 1_250_000_000]);
        qp = qp.with_congestion(&Congestion::Dcqcn(DcqcnSettings::for_line_rate(line_rate)));
    }
    if srq { qp.with_srq() } else { qp }
}
