//! Plays a script against the state machines, in virtual time.

use crate::link::{Arrival, Link, WIRE, name, picks, relative};
use crate::script::{Attribute, Heard, Operation, Post, Queue, Script, Service, Side, Srq, content};
use crate::trace::{self, Sent};
use rnic_sim::{Effect, Node, QKEY, connect_as, connect_xrc};
use rnic_transport::{
    Access, Congestion, DcqcnSettings, EventKind, QpAttr, QpState, QpType, Queue as WcQueue, RcQp, SendFlags,
    SendWr, Time, WcStatus, WrOpcode,
};
use rnic_wire::{Ecn, Psn};
use std::fmt::Write;

/// Key and address of the memory of either side.
const KEY: u32 = 0x77;
const BASE: u64 = 0x10_0000;
/// The target's XRC domain.
const XRCD: u32 = 7;
/// A key that names nothing.
const BAD_KEY: u32 = 0xBAD;
/// First PSNs, unless the script says otherwise.
const FIRST_PSNS: [u32; 2] = [100, 200];
/// Receive WQEs of a side for which the script has none, and their bytes.
const DEFAULT_RECVS: (usize, u32) = (256, 1 << 16);
/// Of congestion control: 10 Gb/s.
const LINE_RATE: u64 = 1_250_000_000;
/// Virtual time by which everything has to be over.
const LIMIT: Time = Time(600_000_000_000);
const STEPS: u32 = 1_000_000;
const SIDES: [Side; 2] = [Side::A, Side::B];

/// Plays a script twice: with packets that are a whole message taken the long way, and the short one.
///
/// # Errors
/// What came out otherwise than the script says, with the whole trace.
pub fn play(script: &Script) -> Result<(), String> {
    play_with(script, |_| {})
}

/// The same with QPs changed by `adjust` before anything happens.
///
/// # Errors
/// As [`play`].
pub fn play_with(script: &Script, adjust: impl Fn(&mut RcQp)) -> Result<(), String> {
    [false, true]
        .into_iter()
        .try_for_each(|short| play_once(script, &adjust, short))
}

fn play_once(script: &Script, adjust: &impl Fn(&mut RcQp), short: bool) -> Result<(), String> {
    let mut player = Player::new(script)?;
    for node in &mut player.nodes {
        adjust(&mut node.qp);
        node.short = short;
    }
    let result = player.run().and_then(|()| player.judge());
    result.map_err(|what| {
        let mut report = format!("{}: {what}\nThe trace was:\n", script.name);
        for sent in &player.sent {
            let (side, name, psn) = player.called(sent);
            let _ = writeln!(report, "  > {side} {name} {psn}    # at {} ns", sent.nanos);
        }
        report
    })
}

struct Player<'s> {
    script: &'s Script,
    firsts: [Psn; 2],
    nodes: [Node; 2],
    link: Link,
    sent: Vec<Sent>,
    now: Time,
    /// Work requests of each side by number, each with the offset of its memory.
    posts: [Vec<(Post, u64)>; 2],
    posted: [usize; 2],
    /// Receive WQEs to be posted: when, how many bytes, and over XRC where to.
    recvs: [Vec<(u64, u32, Srq)>; 2],
    received: [usize; 2],
}

impl<'s> Player<'s> {
    fn new(script: &'s Script) -> Result<Self, String> {
        let firsts = [0, 1].map(|at| {
            script
                .attribute(SIDES[at], Attribute::Psn)
                .unwrap_or(FIRST_PSNS[at])
        });
        let attributes = |attr: &mut QpAttr| {
            let side = if attr.dest_qpn == 0x22 { Side::A } else { Side::B };
            adjust(script, side, attr);
        };
        if script.xrc() && script.posts.iter().any(|post| post.side == Side::B) {
            return Err(format!("{}: b is an XRC target, and sends nothing", script.name));
        }
        let (a, mut b) = if script.xrc() {
            connect_xrc(XRCD, script.mtu, firsts, attributes)
        } else {
            let qp_type = match script.service {
                Service::Uc => QpType::Uc,
                Service::Ud => QpType::Ud,
                _ => QpType::Rc,
            };
            connect_as(qp_type, script.mtu, firsts, attributes)
        };
        if script.xrc() {
            b.host.add_srq(Srq::First.number(), XRCD);
            b.host.add_srq(Srq::Second.number(), XRCD);
            b.host.add_srq(Srq::Foreign.number(), XRCD + 1);
        }
        let mut player = Player {
            script,
            firsts: firsts.map(Psn::new),
            nodes: [a, b],
            link: Link::new(script, firsts),
            sent: Vec::new(),
            now: Time(0),
            posts: [Vec::new(), Vec::new()],
            posted: [0; 2],
            recvs: [Vec::new(), Vec::new()],
            received: [0; 2],
        };
        if script.congestion {
            let dcqcn = Congestion::Dcqcn(DcqcnSettings::for_line_rate(LINE_RATE));
            for node in &mut player.nodes {
                node.qp = node.qp.with_congestion(&dcqcn);
            }
        }
        player.load();
        Ok(player)
    }

    /// Makes memory and lists of what is to be posted.
    fn load(&mut self) {
        for side in SIDES {
            let at = side.index();
            self.posts[at] = self.script.posts_of(side);
            let end = |(post, offset): &(Post, u64)| *offset as usize + post.len.next_multiple_of(8);
            let bytes = (0..self.posts[at].last().map_or(0, end)).map(content).collect();
            let access = [
                Access::REMOTE_READ,
                Access::REMOTE_WRITE,
                Access::REMOTE_ATOMIC,
                Access::FLUSH_GLOBAL,
            ];
            let access = access.into_iter().fold(Access::NONE, Access::union);
            self.nodes[1 - at].host.register(KEY, BASE, bytes, access);
            let own: Vec<_> = self
                .script
                .recvs
                .iter()
                .filter(|recv| recv.side == side)
                .collect();
            for recv in &own {
                let each = (recv.at, recv.size as u32, recv.srq);
                self.recvs[at].extend(std::iter::repeat_n(each, recv.count));
            }
            if own.is_empty() && self.script.xrc() {
                let messages = self.script.messages_to(side);
                let srqs = messages.iter().map(|post| post.srq);
                let known = srqs.filter(|srq| *srq != Srq::Unknown);
                self.recvs[at] = known.map(|srq| (0, DEFAULT_RECVS.1, srq)).collect();
            } else if own.is_empty() {
                self.recvs[at] = vec![(0, DEFAULT_RECVS.1, Srq::First); DEFAULT_RECVS.0];
            }
            self.nodes[at].sq = vec![SendWr::default(); self.posts[at].len().next_power_of_two().max(1)];
        }
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.post_due();
            self.transmit();
            let timers = self.nodes.iter().filter_map(|node| node.qp.poll_timeout());
            let Some(next) = timers.chain(self.link.next()).chain(self.next_post()).min() else {
                return Ok(());
            };
            self.now = self.now.max(next);
            if self.now > LIMIT {
                break;
            }
            for node in &mut self.nodes {
                node.now = self.now;
            }
            // What arrives together is a burst: it is answered when all of it is in.
            let mut idle = true;
            while let Some((to, Arrival { packet, marked })) = self.link.arrive(self.now) {
                let (node, now) = (&mut self.nodes[to], self.now);
                if marked {
                    node.with(|qp, _| qp.marked(packet.headers.bth.opcode, now));
                }
                node.receive(&packet);
                idle = false;
            }
            if idle {
                self.nodes.iter_mut().for_each(|node| node.wait(0));
            }
        }
        Err(format!(
            "it never ends: at {} ns there is still something to do",
            self.now.0
        ))
    }

    fn next_post(&self) -> Option<Time> {
        let send = |at: usize| self.posts[at].get(self.posted[at]).map(|(post, _)| Time(post.at));
        let recv = |at: usize| {
            self.recvs[at]
                .get(self.received[at])
                .map(|(when, ..)| Time(*when))
        };
        (0..2).flat_map(|at| [send(at), recv(at)]).flatten().min()
    }

    fn post_due(&mut self) {
        for at in 0..2 {
            while let Some((when, size, srq)) = self.recvs[at].get(self.received[at])
                && *when <= self.now.0
            {
                let (host, number) = (&mut self.nodes[at].host, self.received[at] as u64);
                if self.script.xrc() && at == Side::B.index() {
                    host.post_srq_recv(srq.number(), number, *size);
                } else {
                    host.post_recv(number, self.script.grh() as u32 + *size);
                }
                self.received[at] += 1;
            }
            while let Some((post, offset)) = self.posts[at].get(self.posted[at])
                && post.at <= self.now.0
            {
                let mut wr = work(post, *offset, self.posted[at]);
                if self.script.service == Service::Ud {
                    let qkey = QKEY + u32::from(post.bad_qkey);
                    wr = wr.to(0, [0x22, 0x11][at], qkey);
                }
                let bytes = match post.operation {
                    Operation::Read | Operation::FetchAdd | Operation::CmpSwap => vec![0xEE; post.len],
                    _ => (0..post.len).map(|at| content(at + 1)).collect(),
                };
                self.posted[at] += 1;
                let node = &mut self.nodes[at];
                let data = node.host.add_send_buf(bytes);
                node.post(SendWr { data, ..wr })
                    .expect("the ring has room for every request");
            }
        }
    }

    fn transmit(&mut self) {
        for side in SIDES {
            let node = &mut self.nodes[side.index()];
            while let Some(packet) = node.transmit() {
                let marked = self.link.send(self.now, side, packet.clone());
                self.sent.push(Sent {
                    nanos: self.now.0,
                    side,
                    packet,
                    ecn: match (self.script.congestion, marked) {
                        (false, _) => Ecn::NotEct,
                        (true, false) => Ecn::Ect0,
                        (true, true) => Ecn::Ce,
                    },
                });
            }
            if node.qp.state() == QpState::Err {
                node.flush_all();
            }
        }
    }

    fn called(&self, sent: &Sent) -> (char, String, u32) {
        let side = ['a', 'b'][sent.side.index()];
        let psn = relative(&sent.packet, sent.side, self.firsts);
        (side, name(&sent.packet), psn)
    }

    fn judge(&self) -> Result<(), String> {
        self.judge_trace()?;
        for count in &self.script.counts {
            let of = |sent: &&Sent| {
                let psn = relative(&sent.packet, sent.side, self.firsts);
                picks(&count.pick, sent.side, &sent.packet, psn)
            };
            let counted = self.sent.iter().filter(of).count();
            if counted != count.count {
                return Err(format!(
                    "line {}: {counted} such frames instead of {}",
                    count.line, count.count
                ));
            }
        }
        for side in SIDES {
            self.judge_sends(side)?;
            self.judge_recvs(side)?;
            self.judge_events(side)?;
        }
        let report = trace::check(&self.sent, 2 * WIRE);
        match report.violations.first() {
            Some(violation) => Err(violation.to_string()),
            None => Ok(()),
        }
    }

    fn judge_trace(&self) -> Result<(), String> {
        let mut before = 0;
        for (at, line) in self.script.trace.iter().enumerate() {
            let wanted = (['a', 'b'][line.side.index()], line.name.clone(), line.psn);
            let Some(sent) = self.sent.get(at) else {
                return Err(format!("line {}: the trace ends before it", line.line));
            };
            let called = self.called(sent);
            if called != wanted {
                let (side, name, psn) = called;
                return Err(format!("line {}: {side} sent {name} {psn} instead", line.line));
            }
            if sent.nanos - before < line.after {
                return Err(format!(
                    "line {}: sent after {} ns already",
                    line.line,
                    sent.nanos - before
                ));
            }
            before = sent.nanos;
        }
        match self.sent.get(self.script.trace.len()) {
            Some(more) if !self.script.trace.is_empty() => {
                let (side, name, psn) = self.called(more);
                Err(format!(
                    "{side} sent {name} {psn} after the last frame of the script"
                ))
            }
            _ => Ok(()),
        }
    }

    fn judge_sends(&self, side: Side) -> Result<(), String> {
        let at = side.index();
        let statuses = self.nodes[at].host.statuses(WcQueue::Send);
        let wanted: Vec<(u64, WcStatus)> = (0..self.posts[at].len())
            .map(|number| (number as u64, self.script.status(side, Queue::Send, number)))
            .collect();
        if statuses != wanted {
            return Err(format!(
                "{side:?}'s send completions are {statuses:?} instead of {wanted:?}"
            ));
        }
        for ((post, offset), (number, status)) in self.posts[at].iter().zip(&statuses) {
            let read = &self.nodes[at].host.send_bufs[*number as usize];
            let region = &self.nodes[1 - at]
                .host
                .region(KEY)
                .expect("it was registered")
                .bytes;
            let start = *offset as usize;
            let memory = &region[start..start + post.len];
            let intact = match post.operation {
                _ if *status != WcStatus::Success || !self.script.arrives(side, *number as usize, post) => {
                    true
                }
                Operation::Write | Operation::WriteImm => sound(memory, 1),
                Operation::Read => sound(read, start),
                // Each atomic has a word of its own, to which it adds 1, or which it replaces by 1.
                Operation::FetchAdd => {
                    *read == original(start) && word(memory) == word(&original(start)).wrapping_add(1)
                }
                Operation::CmpSwap => *read == original(start) && word(memory) == 1,
                Operation::AtomicWrite => {
                    let addr = BASE + offset;
                    sound(memory, 1) && self.effects(1 - at, &Effect::AtomicWrite { addr }) == 1
                }
                Operation::Flush => {
                    let (addr, len) = (BASE + offset, post.len as u32);
                    let flush = Effect::Flush {
                        addr,
                        len,
                        whole: false,
                    };
                    self.effects(1 - at, &flush) == 1
                }
                Operation::Send | Operation::SendImm => true,
            };
            if !intact {
                return Err(format!("the data of {side:?}'s request {number} is wrong"));
            }
        }
        Ok(())
    }

    /// How often a node was made to do something.
    fn effects(&self, at: usize, effect: &Effect) -> usize {
        let effects = self.nodes[at].host.effects.iter();
        effects.filter(|seen| *seen == effect).count()
    }

    fn judge_recvs(&self, side: Side) -> Result<(), String> {
        let host = &self.nodes[side.index()].host;
        let messages = self.script.messages_to(side);
        let statuses = host.statuses(WcQueue::Recv);
        // Who ends in error flushes as many as it has.
        let real = statuses
            .iter()
            .filter(|(_, status)| *status != WcStatus::WrFlushErr);
        let heard = self.script.heard(side);
        // Receives, and messages, so far.
        let (mut seen, mut next) = (0, 0);
        for (number, status) in real {
            let wanted = self.script.status(side, Queue::Recv, *number as usize);
            if *status != wanted {
                return Err(format!(
                    "{side:?}'s receive {number} completes with {status:?} instead of {wanted:?}"
                ));
            }
            if *number != seen {
                return Err(format!(
                    "{side:?}'s receive {number} completes where {seen} is due"
                ));
            }
            seen += 1;
            let to = self.recvs[side.index()]
                .get(*number as usize)
                .map(|(.., srq)| srq.number());
            let at = host
                .completions
                .iter()
                .position(|done| done.queue == WcQueue::Recv && done.wr_id == *number);
            if self.script.xrc() && at.and_then(|at| host.completed_to.get(at)).copied() != to {
                return Err(format!(
                    "{side:?}'s receive {number} completes to another XRC SRQ"
                ));
            }
            let done = at.and_then(|at| host.completions.get(at));
            let len = done
                .map_or(0, |done| done.byte_len as usize)
                .wrapping_sub(self.script.grh());
            let message = match heard {
                Some(Heard::Some) => messages[next..].iter().position(|message| message.len == len),
                _ => (next < messages.len()).then_some(0),
            };
            let Some(message) = message.map(|skipped| &messages[next + skipped]) else {
                return Err(format!("{side:?}'s receive {number} completes without a message"));
            };
            next = 1 + messages
                .iter()
                .position(|m| std::ptr::eq(m, message))
                .unwrap_or(next);
            let start = self.script.grh();
            let buffer = host.recv_bufs[*number as usize].get(start..start + message.len);
            let placed = message.operation == Operation::WriteImm || sound(buffer.unwrap_or(&[]), 1);
            if *status == WcStatus::Success && (len != message.len || !placed) {
                return Err(format!("the data of {side:?}'s receive {number} is wrong"));
            }
        }
        let listed = |done: &&crate::script::Done| (done.side, done.queue) == (side, Queue::Recv);
        for done in self.script.done.iter().filter(listed) {
            if !statuses.contains(&(done.number as u64, done.status)) {
                return Err(format!(
                    "{side:?}'s receive {} does not end with {:?}",
                    done.number, done.status
                ));
            }
        }
        let lives = self.nodes[1 - side.index()].qp.state() != QpState::Err;
        let enough = match heard {
            Some(Heard::Some) => seen > 0,
            _ => next == messages.len(),
        };
        if lives && !enough {
            return Err(format!(
                "{side:?} has received {seen} of {} messages",
                messages.len()
            ));
        }
        Ok(())
    }

    fn judge_events(&self, side: Side) -> Result<(), String> {
        let mut events = self.nodes[side.index()].event_kinds();
        events.retain(|kind| *kind != EventKind::CommEst);
        let of = |(at, kind): &(Side, EventKind)| (*at == side).then_some(*kind);
        let wanted: Vec<EventKind> = self.script.events.iter().filter_map(of).collect();
        if events == wanted {
            Ok(())
        } else {
            Err(format!("{side:?}'s events are {events:?} instead of {wanted:?}"))
        }
    }
}

fn adjust(script: &Script, side: Side, attr: &mut QpAttr) {
    for (at, attribute, value) in &script.attributes {
        let value = *value as u8;
        let field = match attribute {
            _ if *at != side => continue,
            Attribute::Psn => continue,
            Attribute::Timeout => &mut attr.timeout,
            Attribute::RetryCnt => &mut attr.retry_cnt,
            Attribute::RnrRetry => &mut attr.rnr_retry,
            Attribute::MinRnrTimer => &mut attr.min_rnr_timer,
            Attribute::MaxRdAtomic => &mut attr.max_rd_atomic,
            Attribute::MaxDestRdAtomic => &mut attr.max_dest_rd_atomic,
        };
        *field = value;
    }
}

fn work(post: &Post, offset: u64, number: usize) -> SendWr {
    let opcode = match post.operation {
        Operation::Send => WrOpcode::Send,
        Operation::SendImm => WrOpcode::SendImm,
        Operation::Write => WrOpcode::Write,
        Operation::WriteImm => WrOpcode::WriteImm,
        Operation::Read => WrOpcode::Read,
        Operation::FetchAdd => WrOpcode::FetchAdd,
        Operation::CmpSwap => WrOpcode::CompSwap,
        Operation::AtomicWrite => WrOpcode::AtomicWrite,
        Operation::Flush => WrOpcode::Flush,
    };
    let flushes = post.operation == Operation::Flush;
    let mut flags = SendFlags::SIGNALED;
    if post.fence {
        flags = flags.union(SendFlags::FENCE);
    }
    SendWr {
        wr_id: number as u64,
        opcode,
        flags,
        imm_or_rkey: 0x1234_5678,
        remote_addr: BASE + offset,
        rkey: if post.bad_key { BAD_KEY } else { KEY },
        length: if flushes { 0 } else { post.len as u32 },
        compare_add: match post.operation {
            Operation::CmpSwap => word(&original(offset as usize)),
            Operation::Flush => post.len as u64,
            _ => 1,
        },
        // Of a FLUSH: global visibility of a range.
        swap: 1,
        remote_srqn: post.srq.number(),
        ..SendWr::default()
    }
}

/// The word at a place of memory before anything happens.
fn original(at: usize) -> Vec<u8> {
    (at..at + 8).map(content).collect()
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().expect("atomics are of 8 bytes"))
}

fn sound(bytes: &[u8], from: usize) -> bool {
    bytes
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte == content(from + at))
}
