//! The conformance scripts that do not depend on the machine, against an appliance whose ports lose and damage frames as
//! the script says.
use std::time::Duration;

use rnic::{
    Access, AddressVector, Ah, Completion, ConnectOptions, Context, Cq, EventKind, EventObject, Mr, Mtu, Pd,
    Qp, QpConfig, QpType, Status,
};
use rnic_conformance::{
    Attribute, FaultKind, Heard, Operation, Post, Queue, Rate, Script, Service, Side, content, scripts,
};
use rnic_tests::{Appliance, PortSetup, Setup, Turn};
use rnic_transport::{EventKind as TransportEvent, WcStatus};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));
/// Silence after which nothing more is on its way.
const SILENCE: Option<Duration> = Some(Duration::from_millis(300));
const QKEY: u32 = 0x1111_1111;

#[test]
fn every_script_that_does_not_depend_on_the_machine_holds_on_an_appliance() {
    let _turn = Turn::take();
    let mut played = 0;
    for path in scripts() {
        let text = std::fs::read_to_string(&path).expect("a script");
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let script = Script::parse(&name, &text).unwrap_or_else(|error| panic!("{error}"));
        if script.is_live() {
            println!("{name}");
            play(&script);
            played += 1;
        }
    }
    assert!(played >= 8, "only {played} scripts were played");
}

/// The port of a side. What happens to frames of the other happens here, so that captures show them as they were sent.
fn port(script: &Script, side: Side) -> PortSetup {
    let (own, other) = (side.index() as u32, 1 - side.index() as u32);
    let mut faults = format!("seed: {}, rx: {{ ", script.seed + u64::from(own));
    let elsewhere = |rate: &&Rate| rate.side != side && rate.kind != FaultKind::Mark;
    for rate in script.rates.iter().filter(elsewhere) {
        let percent = rate.per_mille / 10;
        faults += &match rate.kind {
            FaultKind::Drop => format!("drop: {percent}%, "),
            FaultKind::Duplicate => format!("duplicate: {percent}%, "),
            FaultKind::Corrupt => format!("corrupt: {percent}%, "),
            FaultKind::Reorder => format!("reorder: {percent}%, "),
            FaultKind::Mark => continue,
            FaultKind::Delay(nanos) => format!("delay: {nanos}ns, "),
        };
    }
    faults += "}";
    // But marks, whose CNPs would have no cause in a capture of unmarked frames.
    let marks = |rate: &&Rate| rate.side == side && rate.kind == FaultKind::Mark;
    for rate in script.rates.iter().filter(marks) {
        faults += &format!(", tx: {{ ecn_mark: {}% }}", rate.per_mille / 10);
    }
    let congestion = if script.congestion { "dcqcn" } else { "off" };
    // Neighbours are known beforehand: a script may lose every frame.
    PortSetup::ring(own).with(&format!(
        "loopback: wire\ncongestion: {congestion}\nmac: \"02:00:00:00:00:0{own}\"\n\
         neighbours: [{{ ip: 10.0.0.{}, mac: \"02:00:00:00:00:0{other}\" }}]\nfaults: {{ {faults} }}",
        other + 1
    ))
}

/// Ends a work request; the builders of different operations are different types.
macro_rules! finish {
    ($wr:expr, $number:expr, $fence:expr) => {{
        let wr = $wr.wr_id($number).signaled();
        if $fence {
            wr.fence();
        }
    }};
}

/// One side: what it has, and what it does.
struct End<'s> {
    script: &'s Script,
    side: Side,
    context: Context,
    pd: Pd,
    qp: Qp,
    send_cq: Cq,
    recv_cq: Cq,
    /// Buffers of what it posts, each at the offset of its target.
    local: Mr,
    /// Memory for the peer's requests.
    memory: Mr,
    /// Buffers of receive WQEs, by number, at multiples of `slot`.
    inbox: Mr,
    slot: usize,
}

fn options(script: &Script, side: Side) -> ConnectOptions {
    let given = |attribute, default| {
        script
            .attribute(side, attribute)
            .map_or(default, |value| value as u8)
    };
    ConnectOptions {
        mtu: Mtu::from_bytes(script.mtu.bytes() as u32).ok(),
        timeout: given(Attribute::Timeout, 10),
        retry_cnt: given(Attribute::RetryCnt, 7),
        rnr_retry: given(Attribute::RnrRetry, 7),
        min_rnr_timer: given(Attribute::MinRnrTimer, 1),
        rd_atomic: given(Attribute::MaxRdAtomic, 16),
        access: Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ,
        ..ConnectOptions::default()
    }
}

impl<'s> End<'s> {
    fn new(script: &'s Script, side: Side, appliance: &Appliance) -> End<'s> {
        let context = appliance.open(["rnic0", "rnic1"][side.index()]);
        let pd = context.alloc_pd().expect("a PD");
        let (send_cq, recv_cq) = (
            context.create_cq(256).expect("a CQ"),
            context.create_cq(256).expect("a CQ"),
        );
        let qp_type = match script.service {
            Service::Uc => QpType::Uc,
            Service::Ud => QpType::Ud,
            _ => QpType::Rc,
        };
        let config = QpConfig::new(&send_cq, &recv_cq).qp_type(qp_type);
        let qp = pd.create_qp(config).expect("a QP");
        let all = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
        let len = |of: Side| {
            let end = |(post, offset): &(Post, u64)| *offset as usize + post.len;
            script.posts_of(of).last().map_or(0, end).max(1)
        };
        let other = [Side::B, Side::A][side.index()];
        let slot = script
            .messages_to(side)
            .iter()
            .map(|post| post.len)
            .max()
            .unwrap_or(0)
            .max(1)
            + script.grh();
        let end = End {
            local: pd.alloc_mr(len(side), Access::LOCAL_WRITE).expect("memory"),
            memory: pd.alloc_mr(len(other), all).expect("memory"),
            inbox: pd.alloc_mr(slot * 64, Access::LOCAL_WRITE).expect("memory"),
            script,
            side,
            context,
            pd,
            qp,
            send_cq,
            recv_cq,
            slot,
        };
        let bytes: Vec<u8> = (0..end.memory.len()).map(content).collect();
        end.memory.write_at(0, &bytes);
        end
    }

    fn post_recvs(&self) {
        let own: Vec<_> = self
            .script
            .recvs
            .iter()
            .filter(|recv| recv.side == self.side)
            .collect();
        let mut sizes: Vec<usize> = own
            .iter()
            .flat_map(|recv| vec![recv.size + self.script.grh(); recv.count])
            .collect();
        if own.is_empty() {
            sizes = vec![self.slot; self.script.messages_to(self.side).len()];
        }
        for (number, size) in sizes.into_iter().enumerate() {
            let start = number * self.slot;
            let buffer = self.inbox.slice(start..start + size.min(self.slot));
            self.qp
                .post_recv(|batch| {
                    batch.recv(buffer).wr_id(number as u64);
                })
                .expect("room for a receive");
        }
    }

    /// An address handle to the peer.
    fn ah(&self, peer: &End<'_>) -> Ah {
        let dgid = peer.context.gid(0).expect("a GID").gid;
        let to = AddressVector::to(dgid).gid_index(0);
        self.pd.create_ah(&to).expect("an address handle")
    }

    fn post_sends(&self, peer: &End<'_>) {
        let ah = (self.script.service == Service::Ud).then(|| self.ah(peer));
        for (number, (post, offset)) in self.script.posts_of(self.side).into_iter().enumerate() {
            let start = offset as usize;
            let filled: Vec<u8> = match post.operation {
                Operation::Read => vec![0xEE; post.len],
                _ => (0..post.len).map(|at| content(at + 1)).collect(),
            };
            self.local.write_at(start, &filled);
            let local = self.local.slice(start..start + post.len);
            let mut remote = peer.memory.remote().at(offset);
            remote.rkey ^= u32::from(post.bad_key) << 31;
            let number = number as u64;
            let mut batch = self.qp.batch();
            let datagram = ah
                .as_ref()
                .map(|ah| (ah, peer.qp.qpn(), QKEY + u32::from(post.bad_qkey)));
            match (post.operation, datagram) {
                (Operation::Send, Some((ah, qpn, qkey))) => {
                    finish!(batch.send_to(local, ah, qpn, qkey), number, post.fence);
                }
                (Operation::SendImm, Some((ah, qpn, qkey))) => {
                    finish!(batch.send_to(local, ah, qpn, qkey).imm(7), number, post.fence);
                }
                (Operation::Send, _) => finish!(batch.send(local), number, post.fence),
                (Operation::SendImm, _) => finish!(batch.send(local).imm(7), number, post.fence),
                (Operation::Write, _) => finish!(batch.write(local, remote), number, post.fence),
                (Operation::WriteImm, _) => finish!(batch.write(local, remote).imm(7), number, post.fence),
                (Operation::Read, _) => finish!(batch.read(local, remote), number, post.fence),
                (Operation::FetchAdd | Operation::CmpSwap | Operation::AtomicWrite | Operation::Flush, _) => {
                    unreachable!("is_live excludes atomics")
                }
            }
            batch.post().expect("room for a request");
        }
    }

    /// Looks at completions and events; returns the completions of what it has sent.
    fn judge(&self) -> Vec<Completion> {
        let name = format!("{}: {:?}", self.script.name, self.side);
        let posts = self.script.posts_of(self.side);
        let sends = collect(&self.send_cq, posts.len());
        for (number, completion) in sends.iter().enumerate() {
            let wanted = self.script.status(self.side, Queue::Send, number);
            assert_eq!(
                (completion.wr_id, completion.status),
                (number as u64, status(wanted)),
                "{name}"
            );
        }
        self.judge_recvs(&name);
        for (_, kind) in self.script.events.iter().filter(|(side, _)| *side == self.side) {
            let event = self
                .context
                .next_event(PATIENCE)
                .expect("the daemon lives")
                .expect("an event");
            assert_eq!(
                (event.object, event.kind),
                (EventObject::Qp(self.qp.qpn()), event_kind(*kind)),
                "{name}"
            );
        }
        sends
    }

    /// Looks at the data of what has arrived. Of UC nobody knows that it has before the peer is told of something behind it.
    fn judge_data(&self, sends: &[Completion], peer: &End<'_>) {
        let name = format!("{}: {:?}", self.script.name, self.side);
        let posts = self.script.posts_of(self.side);
        for ((post, offset), completion) in posts.iter().zip(sends) {
            let start = *offset as usize;
            let (bytes, from) = match post.operation {
                _ if completion.status != Status::Success => continue,
                Operation::Read => (self.local.read_vec(start, post.len), start),
                Operation::Write | Operation::WriteImm
                    if !self.script.arrives(self.side, completion.wr_id as usize, post) =>
                {
                    continue;
                }
                Operation::Write | Operation::WriteImm => (peer.memory.read_vec(start, post.len), 1),
                _ => continue,
            };
            assert!(
                sound(&bytes, from),
                "{name}: data of request {}",
                completion.wr_id
            );
        }
    }

    fn judge_recvs(&self, name: &str) {
        let messages = self.script.messages_to(self.side);
        let fails = self
            .script
            .done
            .iter()
            .any(|done| done.side != self.side && done.queue == Queue::Send);
        let listed = |done: &&rnic_conformance::Done| (done.side, done.queue) == (self.side, Queue::Recv);
        let due = if fails {
            self.script.done.iter().filter(listed).count()
        } else {
            messages.len()
        };
        let some = self.script.heard(self.side) == Some(&Heard::Some);
        let completions = match some {
            true => collect_until_silent(&self.recv_cq),
            false => collect(&self.recv_cq, due),
        };
        assert!(!some || !completions.is_empty(), "{name} has received nothing");
        let mut messages = messages.iter();
        for (number, completion) in completions.iter().enumerate() {
            let wanted = self.script.status(self.side, Queue::Recv, number);
            assert_eq!(
                (completion.wr_id, completion.status),
                (number as u64, status(wanted)),
                "{name}"
            );
            let grh = self.script.grh();
            let len = completion.byte_len as usize;
            // Of messages some of which get lost, the length says which it is.
            let message = messages.find(|message| !some || message.len + grh == len);
            let message = message.unwrap_or_else(|| panic!("{name}: {completion:?} is for no message due"));
            if wanted != WcStatus::Success {
                continue;
            }
            assert_eq!(len, message.len + grh, "{name}: length of message {number}");
            if message.operation != Operation::WriteImm {
                let bytes = self.inbox.read_vec(number * self.slot + grh, message.len);
                assert!(sound(&bytes, 1), "{name}: data of message {number}");
            }
        }
        // Nothing comes that is not listed.
        if !self.script.service.is_reliable() && !some {
            let more = self.recv_cq.wait_vec(1, SILENCE).expect("the daemon lives");
            assert!(more.is_empty(), "{name}: a message too many: {more:?}");
        }
    }
}

fn collect_until_silent(cq: &Cq) -> Vec<Completion> {
    let mut all = Vec::new();
    loop {
        let some = cq.wait_vec(16, SILENCE).expect("the daemon lives");
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn collect(cq: &Cq, count: usize) -> Vec<Completion> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = cq
            .wait_vec(count - all.len(), PATIENCE)
            .expect("the daemon lives");
        assert!(!some.is_empty(), "only {} of {count} completions", all.len());
        all.extend(some);
    }
    all
}

fn sound(bytes: &[u8], from: usize) -> bool {
    bytes
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte == content(from + at))
}

fn status(status: WcStatus) -> Status {
    match status {
        WcStatus::Success => Status::Success,
        WcStatus::LocLenErr => Status::LocalLength,
        WcStatus::WrFlushErr => Status::Flushed,
        WcStatus::RemInvReqErr => Status::RemoteInvalidRequest,
        WcStatus::RemAccessErr => Status::RemoteAccess,
        WcStatus::RemOpErr => Status::RemoteOperation,
        WcStatus::RetryExcErr => Status::RetryExceeded,
        WcStatus::RnrRetryExcErr => Status::RnrRetryExceeded,
        other => panic!("no script for an appliance names {other:?}"),
    }
}

fn event_kind(kind: TransportEvent) -> EventKind {
    match kind {
        TransportEvent::QpFatal => EventKind::QpFatal,
        TransportEvent::QpReqErr => EventKind::QpRequestError,
        TransportEvent::QpAccessErr => EventKind::QpAccessError,
        other => panic!("no script for an appliance names {other:?}"),
    }
}

fn play(script: &Script) {
    let appliance = Appliance::start(&Setup::new([Side::A, Side::B].map(|side| port(script, side))));
    let [a, b] = [Side::A, Side::B].map(|side| End::new(script, side, &appliance));
    let (to_a, to_b) = (options(script, Side::A), options(script, Side::B));
    if script.service == Service::Ud {
        for end in [&a, &b] {
            end.qp.activate(QKEY).expect("a UD QP");
        }
    } else {
        let (of_a, of_b) = (
            a.qp.endpoint(&to_a).expect("an endpoint"),
            b.qp.endpoint(&to_b).expect("an endpoint"),
        );
        a.qp.connect(&of_b, &to_a).expect("a connects");
        b.qp.connect(&of_a, &to_b).expect("b connects");
    }
    a.post_recvs();
    b.post_recvs();
    a.post_sends(&b);
    b.post_sends(&a);
    let (by_a, by_b) = (a.judge(), b.judge());
    a.judge_data(&by_a, &b);
    b.judge_data(&by_b, &a);
    drop((a, b));
    appliance.stop();
}
