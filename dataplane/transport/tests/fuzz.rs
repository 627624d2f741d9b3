//! A fuzzer that knows the structure of frames: most are what the QP waits for, many have one thing wrong, and all have a
//! right ICRC and, mostly, right keys, so that they come far. After each frame the record of the QP is checked as a
//! restarted daemon would (`Node::with`), and that nothing was written outside the region of its key.
//!
//! `RNIC_FUZZ_FRAMES=10000000` for more frames (`make fuzz`), `RNIC_FUZZ_SEED=17` plays one seed.

mod common;

use common::*;
use rnic_sim::{Effect, Node, Packet, Rng, connect_at};
use rnic_transport::{Access, Limits, QpState, Received, SendFlags, SendWr, Time, WrOpcode};
use rnic_wire::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Feth, Frame, FrameRepr, HeaderSet, Headers, Ipv4, Link,
    MAX_FRAME_HEADER_LEN, Mtu, Net, Opcode, Operation, Psn, Reth, Syndrome, TableCrc, Transport, verify_icrc,
};
use std::collections::VecDeque;

const FRAMES: u64 = 200_000;
/// Frames sent to one QP at most.
const ROUND: u64 = 400;
const MTU: usize = 256;
/// Bytes of the region that the peer may use.
const REGION: u64 = 4_096;
/// A region that the peer may only read, and one that it may not use at all.
const READ_ONLY: (u32, u64) = (0x88, 0x20_0000);
const SECRET: (u32, u64) = (0x99, 0x30_0000);
/// A key that may be invalidated.
const INVALIDATE: u32 = 0x5000;

/// One QP under fire.
struct Siege {
    rng: Rng,
    node: Node,
    /// The message being sent to it: whether it is a SEND, and bytes of a WRITE still to come.
    message: Option<(bool, u32)>,
    /// Right answers to what it has sent.
    answers: VecDeque<(Headers, usize)>,
    posted: u64,
    received: u64,
    effects: usize,
    frame: Vec<u8>,
}

#[derive(Default)]
struct Tally {
    frames: u64,
    accepted: u64,
    refused: u64,
    responses: u64,
}

impl Siege {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let psns = [0, 0].map(|_: u32| rng.pick(&[0xFF_FFF0, 0x7F_FFF0, 100]));
        let (mut node, _) = connect_at(Mtu::M256, psns, |attr| {
            attr.max_dest_rd_atomic = 4;
            attr.access = attr.access.union(Access::REMOTE_ATOMIC);
        });
        node.qp = node.qp.with_limits(Limits::new(8, 2));
        register(&mut node, REGION as usize);
        let (key, base) = READ_ONLY;
        node.host.register(key, base, vec![1; 512], Access::REMOTE_READ);
        let (key, base) = SECRET;
        node.host.register(key, base, vec![2; 512], Access::NONE);
        node.host.register(INVALIDATE, 0, Vec::new(), Access::NONE);
        Siege {
            rng,
            node,
            message: None,
            answers: VecDeque::new(),
            posted: 0,
            received: 0,
            effects: 0,
            frame: vec![0; MAX_FRAME_HEADER_LEN + 2_048],
        }
    }

    fn run(mut self, tally: &mut Tally) {
        let mut dead = 0;
        for _ in 0..ROUND {
            self.own_work();
            let (mut headers, mut len) = if self.rng.chance(300) && !self.answers.is_empty() {
                self.answers.pop_front().expect("it is not empty")
            } else {
                self.request()
            };
            if self.rng.chance(60) {
                self.twist(&mut headers, &mut len);
            }
            self.deliver(headers, len, tally);
            dead += u32::from(self.node.qp.state() == QpState::Err);
            if dead > 8 {
                break;
            }
        }
        self.finish();
    }

    /// What the QP's owner does meanwhile.
    fn own_work(&mut self) {
        if self.rng.chance(400) {
            self.node.host.post_recv(self.received, 1_024);
            self.received += 1;
        }
        if self.rng.chance(200) {
            let opcode = self.rng.pick(&[
                WrOpcode::Send,
                WrOpcode::Write,
                WrOpcode::Read,
                WrOpcode::FetchAdd,
            ]);
            let length = if opcode == WrOpcode::FetchAdd {
                8
            } else {
                self.rng.below(700) as u32
            };
            let data = self.node.host.add_send_buf(vec![3; length as usize]);
            let wr = SendWr {
                wr_id: self.posted,
                opcode,
                flags: SendFlags::SIGNALED,
                length,
                data,
                ..SendWr::default()
            };
            self.posted += u64::from(self.node.post(wr).is_ok());
        }
        if self.rng.chance(20) {
            let nanos = self.rng.below(9_000_000);
            self.node.wait(nanos);
        }
        let burst = self.rng.below(4) as usize;
        for _ in 0..burst {
            match self.node.transmit() {
                Some(packet) => self.answer(&packet),
                None => break,
            }
        }
    }

    /// Notes the right answers to a request of the QP.
    fn answer(&mut self, packet: &Packet) {
        let opcode = packet.headers.bth.opcode;
        let psn = packet.headers.bth.psn;
        let mut push = |operation, psn, len| self.answers.push_back((headers(operation, psn), len));
        if opcode.operation == Operation::ReadRequest {
            let len = packet.headers.reth.map_or(0, |reth| reth.dma_len);
            let packets = Mtu::M256.packets(len);
            for at in 0..packets {
                let operation = match (at == 0, at + 1 == packets) {
                    (true, true) => Operation::ReadResponseOnly,
                    (true, false) => Operation::ReadResponseFirst,
                    (false, false) => Operation::ReadResponseMiddle,
                    (false, true) => Operation::ReadResponseLast,
                };
                push(operation, psn + at, (len as usize - at as usize * MTU).min(MTU));
            }
        } else if opcode.is_atomic() {
            push(Operation::AtomicAcknowledge, psn, 0);
        } else if opcode.is_request() && opcode.ends_message() {
            push(Operation::Acknowledge, psn, 0);
        }
    }

    /// A request that the QP waits for.
    fn request(&mut self) -> (Headers, usize) {
        let rng = &mut self.rng;
        let psn = Psn::new(self.node.qp.query().rq_psn);
        let imm = rng.chance(300);
        let (operation, len, dma_len) = match self.message {
            Some((true, _)) if rng.chance(500) => (Operation::SendMiddle, MTU, 0),
            Some((true, _)) if imm => (Operation::SendLastImm, 1 + rng.below(256) as usize, 0),
            Some((true, _)) => (Operation::SendLast, 1 + rng.below(256) as usize, 0),
            Some((false, left)) if left as usize > MTU => (Operation::WriteMiddle, MTU, 0),
            Some((false, left)) if imm => (Operation::WriteLastImm, left as usize, 0),
            Some((false, left)) => (Operation::WriteLast, left as usize, 0),
            None => {
                let small = rng.below(257) as usize;
                match rng.below(10) {
                    0 => (Operation::SendFirst, MTU, 0),
                    1 => (Operation::SendOnly, small, 0),
                    2 => (Operation::SendOnlyImm, small, 0),
                    3 => (Operation::WriteFirst, MTU, 257 + rng.below(700) as u32),
                    4 => (Operation::WriteOnly, small, small as u32),
                    5 => (Operation::WriteOnlyImm, small, small as u32),
                    6 => (Operation::FetchAdd, 0, 0),
                    7 => (Operation::CompareSwap, 0, 0),
                    8 if rng.chance(20) => (Operation::SendOnlyInv, small, 0),
                    _ => (Operation::ReadRequest, 0, rng.below(1_000) as u32),
                }
            }
        };
        let mut headers = headers(operation, psn);
        if let Some(reth) = &mut headers.reth {
            reth.va = BASE + rng.below(REGION - 1_000);
            reth.dma_len = dma_len;
        }
        (headers, len)
    }

    /// Makes one thing wrong.
    fn twist(&mut self, headers: &mut Headers, len: &mut usize) {
        let rng = &mut self.rng;
        let odd = rng.next_u64();
        match rng.below(9) {
            0 => headers.bth.psn += rng.pick(&[1, 2, 9, 0xFF_FFFF, 0xFF_FFF0, 0x80_0000, 0x7F_FFFF]),
            1 => {
                let opcodes: Vec<Opcode> = Opcode::all()
                    .filter(|opcode| opcode.transport == Transport::Rc)
                    .collect();
                headers.bth.opcode = rng.pick(&opcodes);
                *headers = fitting(headers);
                if !headers.bth.opcode.has_payload() {
                    *len = 0;
                }
            }
            2 if headers.bth.opcode.has_payload() => *len = rng.pick(&[0, 1, 255, 256, 257, 1_024, 2_000]),
            3 => {
                let (key, va) = rng.pick(&[
                    READ_ONLY,
                    SECRET,
                    (KEY, BASE + REGION - 1),
                    (odd as u32, BASE),
                    (KEY, odd),
                ]);
                if let Some(reth) = &mut headers.reth {
                    (reth.rkey, reth.va) = (key, va);
                }
                if let Some(atomic) = &mut headers.atomic {
                    (atomic.rkey, atomic.va) = (key, va);
                }
            }
            4 => {
                if let Some(reth) = &mut headers.reth {
                    reth.dma_len = rng.pick(&[0, 1, 256, 4_097, 1 << 31, u32::MAX]);
                }
            }
            5 => {
                if let Some(aeth) = &mut headers.aeth {
                    aeth.syndrome =
                        Syndrome::from_u8(rng.pick(&[0, 0x20, 0x60, 0x61, 0x62, 0x63, odd as u8]));
                    aeth.msn = odd as u32 & 0xFF_FFFF;
                }
            }
            6 => headers.bth.ack_req = !headers.bth.ack_req,
            7 => headers.bth.solicited = !headers.bth.solicited,
            _ => headers.bth.mig_req = false,
        }
    }

    /// Sends a frame over the wire.
    fn deliver(&mut self, headers: Headers, len: usize, tally: &mut Tally) {
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
        const PAYLOAD: [u8; 2_048] = [0xAB; 2_048];
        let emitted = repr.emit_frame(&TableCrc, &PAYLOAD[..len], &mut self.frame);
        let frame = &self.frame[..emitted.expect("such a frame can be emitted")];
        let frame = Frame::parse(frame, None).expect("what was emitted parses");
        assert!(verify_icrc(&TableCrc, frame.datagram()));
        let packet = Packet {
            headers: *frame.headers(),
            payload: frame.payload().to_vec(),
        };
        let outcome = self.node.receive(&packet);
        let opcode = headers.bth.opcode;
        if outcome == Received::Accepted && (opcode.is_send() || opcode.is_write()) {
            let left = headers
                .reth
                .map_or(self.message.map_or(0, |(_, left)| left), |reth| reth.dma_len);
            let rest = (opcode.is_send(), left.saturating_sub(len as u32));
            self.message = (!opcode.ends_message()).then_some(rest);
        }
        tally.frames += 1;
        tally.responses += u64::from(opcode.is_response() && outcome == Received::Accepted);
        tally.accepted += u64::from(outcome == Received::Accepted);
        tally.refused += u64::from(matches!(outcome, Received::Refused(_)));
        self.check_effects();
    }

    /// Nothing was written outside the region that may be written.
    fn check_effects(&mut self) {
        // The last one may still grow.
        for effect in &self.node.host.effects[self.effects.saturating_sub(1)..] {
            match *effect {
                Effect::Write { addr, len } => {
                    assert!(addr >= BASE && addr + len <= BASE + REGION, "{effect:?}");
                }
                Effect::Atomic { addr, .. } => {
                    assert!(addr >= BASE && addr + 8 <= BASE + REGION, "{effect:?}")
                }
                _ => {}
            }
        }
        self.effects = self.node.host.effects.len();
        assert!(self.node.qp.poll_timeout().is_none_or(|at| at < Time::NEVER));
    }

    fn finish(mut self) {
        self.node.set_state(QpState::Err).expect("always possible");
        self.node.flush_all();
        self.node.transmit_all();
        every_request_completed_once(&self.node, self.posted, self.received);
        for ((key, _), byte) in [(READ_ONLY, 1), (SECRET, 2)] {
            let region = self.node.host.region(key).expect("it was registered");
            assert!(
                region.bytes.iter().all(|found| *found == byte),
                "region {key:#x} was written"
            );
        }
    }
}

/// A packet to the QP with the headers its operation demands.
fn headers(operation: Operation, psn: Psn) -> Headers {
    let mut bth = Bth::new(Opcode::new(Transport::Rc, operation), 0x11, psn);
    bth.ack_req = bth.opcode.is_request() && bth.opcode.ends_message();
    fitting(&Headers::new(bth))
}

/// The same packet with exactly the headers that its opcode demands.
fn fitting(old: &Headers) -> Headers {
    let has = |set| old.bth.opcode.headers().contains(set);
    let reth = Reth {
        va: BASE,
        rkey: KEY,
        dma_len: 8,
    };
    let ack = Aeth {
        syndrome: Syndrome::ACK,
        msn: 0,
    };
    let atomic = AtomicEth {
        va: BASE + 64,
        rkey: KEY,
        swap_or_add: 1,
        compare: 2,
    };
    let feth = Feth {
        placement: 1,
        selectivity: 0,
    };
    Headers {
        reth: has(HeaderSet::RETH).then(|| old.reth.unwrap_or(reth)),
        aeth: has(HeaderSet::AETH).then(|| old.aeth.unwrap_or(ack)),
        atomic: has(HeaderSet::ATOMIC).then(|| old.atomic.unwrap_or(atomic)),
        atomic_ack: has(HeaderSet::ATOMIC_ACK).then_some(AtomicAckEth { original: 3 }),
        feth: has(HeaderSet::FETH).then_some(feth),
        imm: has(HeaderSet::IMM).then_some(7),
        ieth: has(HeaderSet::IETH).then_some(INVALIDATE),
        ..Headers::new(old.bth)
    }
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

#[test]
fn frames_that_are_almost_right_leave_the_qp_and_the_memory_as_they_must_be() {
    let mut tally = Tally::default();
    if let Some(seed) = number("RNIC_FUZZ_SEED") {
        return Siege::new(seed).run(&mut tally);
    }
    let frames = number("RNIC_FUZZ_FRAMES").unwrap_or(FRAMES);
    let mut seed = 0;
    while tally.frames < frames {
        let run = std::panic::AssertUnwindSafe(|| Siege::new(seed).run(&mut tally));
        if std::panic::catch_unwind(run).is_err() {
            panic!("seed {seed} failed: RNIC_FUZZ_SEED={seed} cargo test -p rnic-transport --test fuzz");
        }
        seed += 1;
    }
    let Tally {
        frames,
        accepted,
        refused,
        responses,
    } = tally;
    println!(
        "{frames} frames to {seed} QPs: {accepted} accepted, {responses} of them responses, {refused} refused"
    );
    // They must come far to mean anything.
    assert!(accepted * 2 > frames && responses * 10 > frames && refused > seed / 10);
}
