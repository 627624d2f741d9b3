//! Schedules of UC and UD: one side sends, messages may be lost, and nothing else may happen to them.

use crate::network::{Faults, Network};
use crate::node::{GRH_BYTE, Node, QKEY, connect_as};
use crate::rng::Rng;
use rnic_transport::{
    Access, Completion, CompletionFlags, EventKind, GRH_AREA, QpState, QpType, Queue, RcQp, SendFlags,
    SendWr, Time, WcOpcode, WcStatus, WrOpcode,
};
use rnic_wire::Mtu;

/// Key and base address of the receiver's region.
const KEY: u32 = 0x100;
const BASE: u64 = 0x7F12_3456_7001;
/// Steps after which a run counts as endless.
const MAX_STEPS: u32 = 100_000;

/// Everything that one seed decides.
#[derive(Clone, Debug)]
pub struct Unreliable {
    /// Where it came from.
    pub seed: u64,
    /// UC or UD.
    pub qp_type: QpType,
    /// Path MTU.
    pub mtu: Mtu,
    /// The network.
    pub faults: Faults,
    /// First PSN.
    pub psn: u32,
    /// Packets sent before something else happens, at most.
    pub burst: u64,
    messages: Vec<Message>,
    /// When the next receive WQE is posted, and how long it is.
    recvs: Vec<(Time, u32)>,
}

#[derive(Clone)]
struct Message {
    opcode: WrOpcode,
    data: Vec<u8>,
    /// Where a WRITE goes.
    addr: u64,
    qkey: u32,
    signaled: bool,
    at: Time,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (opcode, len, at) = (self.opcode, self.data.len(), self.at.0);
        write!(f, "{opcode:?} of {len} bytes at {at} ns, Q_Key {:#x}", self.qkey)
    }
}

/// What happened.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages sent that the other side is to be told of.
    pub messages: usize,
    /// Those it was told of.
    pub delivered: usize,
    /// Packets.
    pub packets: usize,
}

type Verdict<T = ()> = Result<T, String>;

impl Unreliable {
    /// The scenario of a seed, for QPs of this type, UC or UD.
    pub fn new(qp_type: QpType, seed: u64) -> Self {
        let rng = &mut Rng::new(seed ^ 0xDA7A);
        let mtu = rng.pick(&[Mtu::M256, Mtu::M256, Mtu::M512, Mtu::M1024]);
        let level = |rng: &mut Rng| rng.pick(&[0, 0, 0, 10, 50, 200]);
        let faults = Faults {
            loss: level(rng),
            corruption: level(rng) / 4,
            duplication: level(rng),
            reordering: level(rng),
            delay: rng.between(500, 20_000),
            late_by: rng.pick(&[1_000, 20_000, 100_000, 600_000]),
        };
        let mut at = Time(0);
        let mut addr = BASE;
        let count = rng.between(1, 24);
        let messages = (0..count).map(|_| {
            at = at.saturating_add(rng.pick(&[0, 0, 1_000, 50_000]));
            let message = message(rng, qp_type, mtu, addr, at);
            addr += message.data.len() as u64;
            message
        });
        let messages: Vec<Message> = messages.collect();
        let longest = messages.iter().map(|m| m.data.len() as u32).max().unwrap_or(0) + GRH_AREA as u32;
        let mut at = Time(0);
        let stingy = rng.chance(300);
        let recvs = (0..count + 2).map(|_| {
            let late = if stingy { rng.below(60_000) } else { 0 };
            at = at.saturating_add(late);
            let short = stingy && rng.chance(200);
            (at, if short { rng.below(300) as u32 } else { longest })
        });
        let recvs = recvs.collect();
        Unreliable {
            seed,
            qp_type,
            mtu,
            faults,
            psn: rng.pick(&[0xFF_FFF8, 0x7F_FFF8, 100]) + rng.below(8) as u32,
            burst: rng.between(1, 24),
            recvs,
            messages,
        }
    }

    /// Whether nothing is in the way of any message.
    fn is_calm(&self) -> bool {
        let Faults {
            loss,
            corruption,
            duplication,
            reordering,
            ..
        } = self.faults;
        let plenty = self.recvs.iter().all(|recv| *recv == (Time(0), self.recvs[0].1));
        loss + corruption + duplication + reordering == 0 && plenty
    }

    /// Plays it. The error says what was violated.
    pub fn run(&self) -> Verdict<Tally> {
        self.run_with(|_| {})
    }

    /// The same with QPs changed by `adjust` before they are used.
    pub fn run_with(&self, adjust: impl Fn(&mut RcQp)) -> Verdict<Tally> {
        let (mut from, mut to) = connect_as(self.qp_type, self.mtu, [self.psn, 7], |_| {});
        adjust(&mut from.qp);
        adjust(&mut to.qp);
        let len = self.messages.iter().map(|m| m.data.len()).sum();
        to.host.register(KEY, BASE, vec![0; len], Access::REMOTE_WRITE);
        let mut network = Network::new(self.faults, Rng::new(self.seed ^ 0x5EED));
        let rng = &mut Rng::new(self.seed ^ 0xB00);
        let (mut posted, mut given, mut packets) = (0, 0, 0);
        for _ in 0..MAX_STEPS {
            let now = from.now;
            while given < self.recvs.len() && self.recvs[given].0 <= now {
                to.host.post_recv(given as u64, self.recvs[given].1);
                given += 1;
            }
            while posted < self.messages.len() && self.messages[posted].at <= now {
                self.post(&mut from, posted)?;
                posted += 1;
            }
            for _ in 0..rng.between(1, self.burst) {
                let Some(packet) = from.transmit() else { break };
                if packet.headers.bth.ack_req {
                    return Err(format!("{} asks for an ACK", packet.name()));
                }
                packets += 1;
                network.send(now, 1, packet);
            }
            while let Some((_, packet)) = network.arrive(now) {
                to.receive(&packet);
                if let Some(answer) = to.transmit() {
                    return Err(format!("answered by {}", answer.name()));
                }
            }
            let next = [
                self.messages.get(posted).map(|m| m.at),
                self.recvs.get(given).map(|(at, _)| *at),
                network.next_arrival(),
                from.qp.has_work().then(|| now.saturating_add(100)),
            ];
            match next.into_iter().flatten().min() {
                Some(at) => (from.now, to.now) = (at, at),
                None => return self.judge(&from, &to, packets),
            }
        }
        Err("never ends".into())
    }

    fn post(&self, from: &mut Node, at: usize) -> Verdict {
        let message = &self.messages[at];
        let data = from.host.add_send_buf(message.data.clone());
        let flags = match message.signaled {
            true => SendFlags::SIGNALED,
            false => SendFlags::NONE,
        };
        let mut wr = SendWr {
            wr_id: at as u64,
            opcode: message.opcode,
            flags,
            imm_or_rkey: at as u32,
            remote_addr: message.addr,
            rkey: KEY,
            length: message.data.len() as u32,
            data,
            ..SendWr::default()
        };
        if self.qp_type == QpType::Ud {
            wr = wr.to(0xABCD, 0x22, message.qkey);
        }
        from.post(wr).map_err(|error| format!("cannot post: {error}"))
    }

    fn judge(&self, from: &Node, to: &Node, packets: usize) -> Verdict<Tally> {
        for (node, events) in [(from, &[][..]), (to, &[EventKind::CommEst])] {
            if node.qp.state() != QpState::Rts || node.event_kinds().iter().any(|kind| !events.contains(kind))
            {
                return Err(format!("a QP is in {}: {:?}", node.qp.state(), node.host.events));
            }
        }
        let signaled = (0..).zip(&self.messages).filter(|(_, m)| m.signaled);
        let wanted: Vec<_> = signaled.map(|(at, _)| (at, WcStatus::Success)).collect();
        let found = from.host.statuses(Queue::Send);
        if found != wanted {
            return Err(format!("sends completed as {found:?}, not {wanted:?}"));
        }
        let mut last = None;
        for completion in &to.host.completions {
            let at = self.delivered(to, completion)?;
            // The network may double and reorder datagrams.
            if self.qp_type == QpType::Uc && last.is_some_and(|last| at <= last) {
                return Err(format!("message {at} after message {last:?}"));
            }
            last = Some(at);
        }
        let delivered = to.host.completions.len();
        let held = usize::from(to.qp.receiving().is_some());
        if delivered + held + to.host.recv_queue.len() != self.recvs.len() {
            return Err("receive WQEs are gone".into());
        }
        let messages = self.messages.iter().filter(|m| self.tells(m)).count();
        if self.is_calm() && delivered != messages {
            return Err(format!(
                "{delivered} of {messages} messages were delivered by a calm network"
            ));
        }
        Ok(Tally {
            messages,
            delivered,
            packets,
        })
    }

    /// Whether the receiver hears of a message, on a calm network.
    fn tells(&self, message: &Message) -> bool {
        let sent = self.qp_type == QpType::Uc || message.data.len() <= self.mtu.bytes();
        sent && message.opcode != WrOpcode::Write && message.qkey == QKEY
    }

    /// The message that a receive completion is for, whole and as it was sent.
    fn delivered(&self, to: &Node, completion: &Completion) -> Verdict<usize> {
        let at = completion.imm_or_rkey as usize;
        let with_imm = completion.flags.contains(CompletionFlags::WITH_IMM);
        let Some(message) = self.messages.get(at).filter(|m| with_imm && self.tells(m)) else {
            return Err(format!("{completion:?} is for no message that was sent"));
        };
        let (opcode, start, flags) = match self.qp_type {
            QpType::Ud => (WcOpcode::Recv, GRH_AREA, CompletionFlags::GRH),
            _ if message.opcode == WrOpcode::WriteImm => {
                (WcOpcode::RecvRdmaWithImm, 0, CompletionFlags::NONE)
            }
            _ => (WcOpcode::Recv, 0, CompletionFlags::NONE),
        };
        let len = message.data.len();
        let said = completion.opcode == opcode
            && completion.status == WcStatus::Success
            && completion.flags.contains(flags)
            && completion.src_qpn == 0x11
            && completion.byte_len as usize == start + len;
        let found = if message.opcode == WrOpcode::WriteImm {
            let at = (message.addr - BASE) as usize;
            &to.host.regions[0].bytes[at..at + len]
        } else {
            let buffer = &to.host.recv_bufs[completion.wr_id as usize];
            if buffer[..start].iter().any(|byte| *byte != GRH_BYTE) {
                return Err(format!("message {at} has no GRH area"));
            }
            &buffer[start..start + len]
        };
        if said && found == message.data {
            Ok(at)
        } else {
            Err(format!(
                "message {at} came as {completion:?}, or with other bytes than were sent"
            ))
        }
    }
}

fn message(rng: &mut Rng, qp_type: QpType, mtu: Mtu, addr: u64, at: Time) -> Message {
    let (opcode, len) = match qp_type {
        QpType::Ud => {
            let most = if rng.chance(100) { 3 } else { 1 };
            (WrOpcode::SendImm, rng.between(0, most * mtu.bytes() as u64))
        }
        _ => {
            let opcode = rng.pick(&[
                WrOpcode::SendImm,
                WrOpcode::SendImm,
                WrOpcode::WriteImm,
                WrOpcode::Write,
            ]);
            let around = rng.below(5) * mtu.bytes() as u64;
            (opcode, around + rng.pick(&[0, 0, 1, 17]))
        }
    };
    let strange = qp_type == QpType::Ud && rng.chance(100);
    Message {
        opcode,
        data: rng.bytes(len as usize),
        addr,
        qkey: if strange { QKEY + 1 } else { QKEY },
        signaled: rng.chance(700),
        at,
    }
}
