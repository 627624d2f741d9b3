//! What must hold of one direction: operations of one side, their effects on the other, their completions.

use crate::memory::{Effect, SimHost};
use crate::node::Node;
use crate::operation::{Kind, effects, is_fetching, is_intact, own_effect};
use crate::scenario::{ATOMIC_KEY, Injected, Plan, RECV_ID, bytes_of};
use rnic_transport::{Completion, EventKind, Queue, SendFlags, WcStatus};

/// What the peer must never show.
pub(crate) const NEVER: Effect = Effect::Write { addr: 0, len: 0 };

pub(crate) type Verdict = Result<(), String>;

/// Follows the operations of one side.
pub(crate) struct Checker {
    /// Effects that the operations must have, in order.
    expected: Vec<Effect>,
    /// How many of them come before the end of each operation.
    through: Vec<usize>,
    /// Requests that do something here alone, and how many of them have.
    locals: Vec<usize>,
    own: usize,
    /// Effects checked for good.
    settled: usize,
    /// Completions looked at, of the sender's send queue and of the receiver's receive queue.
    seen_sends: usize,
    seen_recvs: usize,
    /// Operations before this one are done.
    next_op: usize,
    next_recv: u64,
    /// The XRC SRQ of each operation that uses a receive WQE; 0 on RC.
    srqns: Vec<u32>,
    /// Send requests that failed, and its status.
    pub failed: Option<(usize, WcStatus)>,
    pub recv_failed: Option<WcStatus>,
    pub flushed: usize,
    /// Requests before this one succeeded.
    pub succeeded: usize,
    recvs_flushed: bool,
}

impl Checker {
    pub fn new(plan: &Plan) -> Self {
        let mut expected = Vec::new();
        let mut through = Vec::new();
        for (at, op) in plan.ops.iter().enumerate() {
            let injected = plan.injected.filter(|(bad, _)| *bad == at).map(|(_, kind)| kind);
            effects(op, injected, &mut expected);
            through.push(expected.len());
        }
        let receives = plan.ops.iter().filter(|op| op.recv.is_some());
        Checker {
            expected,
            through,
            locals: (0..plan.ops.len())
                .filter(|at| plan.ops[*at].kind() == Kind::Local)
                .collect(),
            own: 0,
            settled: 0,
            seen_sends: 0,
            seen_recvs: 0,
            next_op: 0,
            next_recv: RECV_ID,
            srqns: receives.map(|op| op.srqn).collect(),
            failed: None,
            recv_failed: None,
            flushed: 0,
            succeeded: 0,
            recvs_flushed: false,
        }
    }

    /// Checks everything that happened since the last call.
    pub fn check(&mut self, plan: &Plan, from: &Node, to: &Node) -> Verdict {
        self.check_effects(&to.host)?;
        self.check_own(plan, &from.host, &to.host)?;
        self.check_recvs(&to.host)?;
        while let Some(completion) = from.host.completions.get(self.seen_sends) {
            self.seen_sends += 1;
            if completion.queue == Queue::Send {
                self.check_send(plan, completion, from, to)?;
            }
        }
        Ok(())
    }

    /// The effects are a prefix of those expected, the last of them perhaps not finished yet.
    fn check_effects(&mut self, host: &SimHost) -> Verdict {
        let actual = &host.effects;
        while self.settled < actual.len() {
            let at = self.settled;
            let Some(wanted) = self.expected.get(at) else {
                return Err(format!("effect {at} is one too many: {:?}", actual[at]));
            };
            if actual[at] != *wanted {
                if at + 1 == actual.len() && is_part(&actual[at], wanted) {
                    return Ok(());
                }
                return Err(format!("effect {at} is {:?}, expected {wanted:?}", actual[at]));
            }
            self.settled += 1;
        }
        Ok(())
    }

    /// What a side does to itself is in its turn: everything before it is done, and nothing behind it has begun.
    fn check_own(&mut self, plan: &Plan, host: &SimHost, peer: &SimHost) -> Verdict {
        while let Some(effect) = host.own_effects.get(self.own) {
            let at = self.locals.get(self.own);
            let wanted = at.map(|at| own_effect(&plan.ops[*at]));
            if wanted.as_ref() != Some(effect) {
                return Err(format!("its own effect {effect:?} where {wanted:?} is due"));
            }
            let early = |at: &usize| self.settled < self.through[*at] || is_fetching(&plan.ops[..*at], host);
            if at.is_some_and(early) {
                return Err(format!("{effect:?} before the requests before it are done"));
            }
            self.own += 1;
        }
        if host.too_soon {
            return Err("an invalidation or a bind completed while somebody used what it takes away".into());
        }
        match self.locals.get(self.own) {
            Some(at) if peer.effects.len() > self.through[*at] => {
                Err(format!("what is behind request {at} began before it was done"))
            }
            _ => Ok(()),
        }
    }

    /// Receive completions come in order, each once, and none succeeds after an error.
    fn check_recvs(&mut self, host: &SimHost) -> Verdict {
        while let Some(completion) = host.completions.get(self.seen_recvs) {
            let srqn = host.completed_to[self.seen_recvs];
            self.seen_recvs += 1;
            if completion.queue != Queue::Recv {
                continue;
            }
            if completion.wr_id != self.next_recv {
                return Err(format!(
                    "receive completion {} instead of {}",
                    completion.wr_id, self.next_recv
                ));
            }
            if completion.status == WcStatus::Success
                && self.srqns.get((self.next_recv - RECV_ID) as usize) != Some(&srqn)
            {
                return Err(format!(
                    "receive {} completed to XRC SRQ {srqn:#x}",
                    completion.wr_id
                ));
            }
            self.next_recv += 1;
            match completion.status {
                WcStatus::Success if self.recv_failed.is_some() || self.recvs_flushed => {
                    return Err("a receive completed with success after an error".into());
                }
                WcStatus::Success => {}
                WcStatus::WrFlushErr => self.recvs_flushed = true,
                status if self.recv_failed.is_none() && !self.recvs_flushed => {
                    self.recv_failed = Some(status)
                }
                status => return Err(format!("a second receive error: {status:?}")),
            }
        }
        Ok(())
    }

    fn check_send(&mut self, plan: &Plan, completion: &Completion, from: &Node, to: &Node) -> Verdict {
        let at = completion.wr_id as usize;
        let Some(op) = plan.ops.get(at) else {
            return Err(format!("completion of unknown request {at}"));
        };
        if at < self.next_op {
            return Err(format!("request {at} completed again or out of order"));
        }
        let skipped = self.next_op..at;
        self.next_op = at + 1;
        if completion.opcode != op.opcode.wc_opcode() {
            return Err(format!("request {at} completed as {:?}", completion.opcode));
        }
        let in_error = self.failed.is_some() || self.flushed > 0;
        match completion.status {
            WcStatus::WrFlushErr => {
                if in_error && !skipped.is_empty() {
                    return Err(format!("requests {skipped:?} were not flushed"));
                }
                self.flushed += 1;
                Ok(())
            }
            _ if in_error => Err(format!(
                "request {at} completed with {:?} after an error",
                completion.status
            )),
            status => {
                // What was skipped was not signalled, and must have succeeded.
                for earlier in skipped {
                    self.check_done(plan, earlier, from, to)?;
                    if plan.ops[earlier].flags.contains(SendFlags::SIGNALED) {
                        return Err(format!("request {earlier} has no completion"));
                    }
                }
                self.succeeded = at;
                if status != WcStatus::Success {
                    self.failed = Some((at, status));
                    return Ok(());
                }
                self.succeeded = at + 1;
                if !op.flags.contains(SendFlags::SIGNALED) {
                    return Err(format!("request {at} completed, but was not signalled"));
                }
                let fetched = if op.kind().fetches() {
                    op.data.len() as u32
                } else {
                    0
                };
                if completion.byte_len != fetched {
                    return Err(format!(
                        "request {at} completed with {} bytes",
                        completion.byte_len
                    ));
                }
                self.check_done(plan, at, from, to)
            }
        }
    }

    /// An operation that succeeded had all its effects, and its data is where it belongs.
    fn check_done(&self, plan: &Plan, at: usize, from: &Node, to: &Node) -> Verdict {
        if plan.injected.is_some_and(|(bad, _)| bad == at) {
            return Err(format!(
                "request {at} succeeded in spite of its error {:?}",
                plan.injected
            ));
        }
        if self.settled < self.through[at] {
            return Err(format!(
                "request {at} succeeded before its effects: {} of {}",
                self.settled, self.through[at]
            ));
        }
        if is_intact(&plan.ops[at], at, from, to) {
            Ok(())
        } else {
            Err(format!("the data of request {at} is not what was sent"))
        }
    }

    /// The end: everything is done, or the QP is in error and says so for everything that is not.
    pub fn finish(&self, plan: &Plan, from: &Node, to: &Node) -> Verdict {
        let all = plan.ops.len();
        let in_error = self.failed.is_some() || self.flushed > 0;
        if self.next_op != all {
            return Err(format!(
                "requests {}..{all} never completed, QP in {}",
                self.next_op,
                from.qp.state()
            ));
        }
        if in_error {
            return Ok(());
        }
        for at in 0..all {
            self.check_done(plan, at, from, to)?;
        }
        if self.settled != self.expected.len() {
            return Err("effects are missing".into());
        }
        let words = to.host.region(ATOMIC_KEY).map(|region| &region.bytes);
        if words != Some(&bytes_of(&plan.words[1])) {
            return Err("the words of the atomics are not what they left".into());
        }
        Ok(())
    }

    /// Receive WQEs completed so far.
    pub fn recvs_completed(&self) -> usize {
        (self.next_recv - RECV_ID) as usize
    }
}

/// Sender's status, receiver's status (if a receive WQE is involved) and receiver's event of an injected
/// error.
pub(crate) fn outcome_of(kind: Injected) -> (WcStatus, Option<WcStatus>, Option<EventKind>) {
    match kind {
        Injected::BadKey | Injected::ClosedWindow | Injected::BadRange => {
            (WcStatus::RemAccessErr, None, Some(EventKind::QpAccessErr))
        }
        Injected::Unaligned => (WcStatus::RemInvReqErr, None, Some(EventKind::QpReqErr)),
        Injected::NoSrq | Injected::OtherDomain => (WcStatus::RemInvReqErr, None, Some(EventKind::QpReqErr)),
        Injected::TooLong => (
            WcStatus::RemInvReqErr,
            Some(WcStatus::LocLenErr),
            Some(EventKind::QpReqErr),
        ),
        Injected::BadInvalidate => (
            WcStatus::RemAccessErr,
            Some(WcStatus::RemInvReqErr),
            Some(EventKind::QpAccessErr),
        ),
        Injected::LocalRecv => (
            WcStatus::RemOpErr,
            Some(WcStatus::LocProtErr),
            Some(EventKind::QpFatal),
        ),
        Injected::BadLocalKey => (WcStatus::MwBindErr, None, None),
        Injected::LocalSend | Injected::LocalRead => (WcStatus::LocProtErr, None, None),
        Injected::NoReceive => (WcStatus::RnrRetryExcErr, None, None),
    }
}

/// Whether `actual` is the beginning of `wanted`.
fn is_part(actual: &Effect, wanted: &Effect) -> bool {
    match (actual, wanted) {
        (Effect::Write { addr: a, len: x }, Effect::Write { addr: b, len: y }) => a == b && x < y,
        (
            Effect::Receive {
                wr_id: a,
                offset: o,
                len: x,
            },
            Effect::Receive {
                wr_id: b,
                offset: p,
                len: y,
            },
        ) => a == b && o == p && x < y,
        _ => false,
    }
}
