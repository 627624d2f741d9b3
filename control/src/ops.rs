//! Requests that wait: for poll cores, a grace period, a neighbour, or memory being mapped. Each is a small state
//! machine that the event loop resumes; nobody else waits for it.

use std::{collections::VecDeque, time::Instant};

use rnic_engine::command::{Command, Message, QpStatus, Token};
use rnic_qsbr::Epoch;
use rnic_transport::{ModifyError, QpState};
use rustc_hash::FxHashMap;

use crate::{
    admin::QpListing,
    control::Control,
    destroy::Destroy,
    grace::Cost,
    hotplug::{Addition, Removal},
    leave::Departure,
    mapper::Done,
    modify::Modify,
    objects::{AhCreation, CqCreation, Key, Mapping, SrqCreation},
    refusal::{Refusal, Verb},
    session::Reply,
};

/// What is being done.
#[derive(Debug)]
pub enum Work {
    /// Cores take in a client's doorbells; then this is the answer.
    Hello(Reply),
    /// A region is being mapped.
    Map(Mapping),
    /// Cores take in a CQ.
    CreateCq(CqCreation),
    /// Cores go on with a CQ in another place.
    ResizeCq(Key),
    /// Cores moderate a CQ: count and period.
    ModifyCq(Key, (u16, u16)),
    /// A core takes in an SRQ.
    CreateSrq(SrqCreation),
    /// A core arms the limit of an SRQ.
    ArmSrq(Key, u32),
    /// An address handle waits for its neighbour.
    CreateAh(Box<AhCreation>),
    /// A QP is being changed.
    Modify(Box<Modify>),
    /// A QP's core is asked for its attributes.
    Query(Key),
    /// A QP whose client's memory is broken goes to the error state.
    Fail,
    /// Objects are being destroyed.
    Destroy(Destroy),
    /// A client that owns nothing any more is being removed from the cores.
    Depart(Departure),
    /// `rnicctl` asked for all QPs.
    ListQps(QpListing),
    /// Ports are being added.
    AddPorts(Addition),
    /// A port is being removed.
    RemovePort(Box<Removal>),
}

/// What a core answered.
#[derive(Default)]
pub struct Answers {
    /// Result of a modify.
    pub modified: Option<Result<QpState, ModifyError>>,
    /// Results of queries, with the core that answered; each core answers in the order it was asked.
    pub queried: Vec<(usize, Option<QpStatus>)>,
    /// QPs that are not flushed yet: core and slot.
    pub unflushed: Vec<(usize, u32)>,
}

/// A request that waits.
pub struct Op {
    /// Connection it is for.
    pub conn: u32,
    /// Commands without an answer yet.
    pub waiting: u32,
    /// What came in.
    pub answers: Answers,
    /// When it began.
    pub started: Instant,
    /// What is being done.
    pub work: Work,
}

/// All requests that wait.
#[derive(Default)]
pub struct Ops {
    next: u64,
    ops: FxHashMap<u64, Op>,
    /// Commands without an answer yet, of all requests.
    unanswered: usize,
    /// Those that wait for a grace period, by its epoch.
    in_grace: VecDeque<(Epoch, Vec<u64>)>,
}

impl Ops {
    /// Takes one out, to resume it.
    pub fn take(&mut self, number: u64) -> Option<Op> {
        self.ops.remove(&number)
    }

    /// Puts it back: it waits for more.
    pub fn put_back(&mut self, number: u64, op: Op) {
        self.ops.insert(number, op);
    }

    /// Requests of one connection.
    pub fn of(&self, conn: u32) -> impl Iterator<Item = u64> {
        self.ops
            .iter()
            .filter(move |(_, op)| op.conn == conn)
            .map(|(number, _)| *number)
    }

    /// Commands that poll cores have not answered.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Whether anything waits for a grace period.
    pub fn await_grace(&self) -> bool {
        !self.in_grace.is_empty()
    }

    /// Has requests wait for a grace period that has begun.
    pub fn wait_for(&mut self, epoch: Epoch, requests: Vec<u64>) {
        for number in &requests {
            match self.ops.get_mut(number).map(|op| &mut op.work) {
                Some(Work::Destroy(destroy)) => destroy.grace_began(epoch),
                Some(Work::Depart(departure)) => departure.grace_began(epoch),
                _ => {}
            }
        }
        let at = self.in_grace.partition_point(|(began, _)| *began <= epoch);
        self.in_grace.insert(at, (epoch, requests));
    }

    /// The grace period that began first.
    pub fn next_grace(&self) -> Option<Epoch> {
        self.in_grace.front().map(|(epoch, _)| *epoch)
    }

    /// Takes out those who wait for the grace period that began first: it is over.
    pub fn end_grace(&mut self) -> Vec<u64> {
        self.in_grace
            .pop_front()
            .map(|(_, requests)| requests)
            .unwrap_or_default()
    }

    /// When the oldest destruction under way began.
    pub fn oldest_in_grace(&self) -> Option<Instant> {
        let under_way = |op: &&Op| match &op.work {
            Work::Destroy(destroy) => !destroy.is_in_line(),
            Work::Depart(departure) => !departure.is_in_line(),
            _ => false,
        };
        self.ops.values().filter(under_way).map(|op| op.started).min()
    }

    /// Whether a request waits for a neighbour: no core knows of it.
    pub fn waits_for_neighbour(&self, number: u64) -> bool {
        let waits = |op: &Op| op.waiting == 0 && matches!(op.work, Work::Modify(_) | Work::CreateAh(_));
        self.ops.get(&number).is_some_and(waits)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Op> {
        self.ops.values()
    }

    /// What a request does.
    pub fn work_of(&self, number: u64) -> Option<&Work> {
        self.ops.get(&number).map(|op| &op.work)
    }

    /// The same, to change.
    pub fn work_mut(&mut self, number: u64) -> Option<&mut Work> {
        self.ops.get_mut(&number).map(|op| &mut op.work)
    }

    /// Connection and cost of a request that destroys.
    pub fn cost_of(&self, number: u64) -> Option<(u32, Cost)> {
        let op = self.ops.get(&number)?;
        Some((op.conn, op.work.cost()?))
    }

    /// A request begins only now to hold what it destroys.
    pub fn restart_clock(&mut self, number: u64, now: Instant) {
        if let Some(op) = self.ops.get_mut(&number) {
            op.started = now;
        }
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Op> {
        self.ops.get_mut(&number)
    }
}

impl Control {
    /// Begins a request that waits.
    pub(crate) fn begin(&mut self, conn: u32, work: Work) -> u64 {
        let number = self.ops.next;
        self.ops.next += 1;
        let op = Op {
            conn,
            waiting: 0,
            answers: Answers::default(),
            started: self.now,
            work,
        };
        self.ops.put_back(number, op);
        number
    }

    /// Sends a command on behalf of a request, which is resumed when all its commands are answered.
    pub(crate) fn command(&mut self, number: u64, core: usize, make: impl FnOnce(Token) -> Command) {
        if let Some(op) = self.ops.get_mut(number) {
            op.waiting += 1;
            self.ops.unanswered += 1;
            self.engine.submit(core, make(Token(number)));
        }
    }

    /// Takes a core's answer.
    pub(crate) fn answered(&mut self, core: usize, message: Message) {
        let token = match &message {
            Message::Done { token }
            | Message::Removed { token, .. }
            | Message::Modified { token, .. }
            | Message::Flushed { token, .. }
            | Message::Queried { token, .. } => *token,
            _ => return,
        };
        let Some(op) = self.ops.ops.get_mut(&token.0) else {
            return;
        };
        self.ops.unanswered -= 1;
        match message {
            Message::Modified { result, .. } => op.answers.modified = result,
            Message::Queried { state, .. } => op.answers.queried.push((core, *state)),
            Message::Flushed { slot, more: true, .. } => op.answers.unflushed.push((core, slot)),
            // What was removed is with the reclaimer, which frees it before the grace period of the request is over.
            _ => {}
        }
        op.waiting = op.waiting.saturating_sub(1);
        if op.waiting == 0 {
            self.resume(token.0);
        }
    }

    /// Goes on with a request whose wait may be over.
    pub(crate) fn resume(&mut self, number: u64) {
        let Some(mut op) = self.ops.take(number) else {
            return;
        };
        let conn = op.conn;
        match op.work {
            Work::Hello(reply) => {
                self.client_admitted(conn);
                self.answer(conn, Ok(reply));
            }
            Work::Map(_) | Work::CreateAh(_) => self.ops.put_back(number, op),
            Work::CreateCq(creation) => {
                let reply = self.cq_installed(conn, creation);
                self.answer(conn, Ok(reply));
            }
            Work::ResizeCq(key) => {
                let reply = self.cq_resized(key);
                self.answer(conn, reply);
            }
            Work::ModifyCq(key, moderation) => {
                let reply = self.cq_modified(key, moderation);
                self.answer(conn, reply);
            }
            Work::CreateSrq(creation) => {
                let reply = self.srq_installed(conn, creation);
                self.answer(conn, Ok(reply));
            }
            Work::ArmSrq(key, limit) => {
                let reply = self.srq_armed(key, limit);
                self.answer(conn, Ok(reply));
            }
            Work::Modify(modify) => {
                let key = modify.qp();
                let result = self.modified(*modify, op.answers.modified.take());
                match self.publish_qp(key) {
                    true => self.batch.answer_published(conn, result),
                    false => self.answer(conn, result),
                }
            }
            Work::Query(key) => {
                let result = self.queried(key, op.answers.queried.pop().and_then(|(_, status)| status));
                self.answer(conn, result);
            }
            Work::Fail => self.settle(conn),
            Work::Destroy(_) => self.advance_destroy(number, op),
            Work::Depart(_) => self.advance_departure(number, op),
            Work::ListQps(listing) => self.qps_listed(listing, op.answers.queried),
            Work::AddPorts(addition) => self.ports_added(addition),
            Work::RemovePort(_) => self.advance_removal(number, op),
        }
    }

    /// Takes what the mapper has done.
    pub(crate) fn mapped(&mut self) {
        for (number, done) in self.mapper.results() {
            let Some(op) = self.ops.take(number) else { continue };
            match (op.work, done) {
                (Work::Map(mapping), Done::Mapped(result)) => {
                    let reply = self.region_mapped(op.conn, mapping, result);
                    self.answer(op.conn, reply);
                }
                (work @ Work::Destroy(_), Done::Unmapped) => self.unmapped(number, Op { work, ..op }),
                (work, _) => self.ops.put_back(number, Op { work, ..op }),
            }
        }
    }

    /// Answers a connection's request and serves its next one.
    pub(crate) fn answer(&mut self, conn: u32, result: Verb<Reply>) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if let Err(refusal) = &result {
            log_refusal(connection.session.peer.pid, refusal);
        }
        self.follow_up.answered(conn);
        if !connection.leaving && connection.session.answer(result).is_err() {
            self.leave(conn);
            return;
        }
        self.settle(conn);
    }
}

fn log_refusal(pid: i32, refusal: &Refusal) {
    tracing::debug!(pid, errno = refusal.errno().raw_os_error(), "refused: {refusal}");
}
