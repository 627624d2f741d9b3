//! Destruction in its one order, as a state machine that nobody waits for but the client who asked.
//!
//! 1. refuse new work; EBUSY while other objects depend on it
//! 2. unpublish every id of the object from every table, in one publication
//! 3. the owning cores stop it, discard its work requests without completions, cancel its timers
//! 4. a grace period, so that no core still holds what it found before
//! 5. its events that the client has not taken are withdrawn
//! 6. its numbers may be used again
//! 7. its memory is freed
//! 8. the client is answered, with the number of events it has taken or will find taken
//!
//! The death of a client is the same for all its objects: those that others depend on come last.

use rnic_abi::{DestroyReply, HandleArg};
use rnic_engine::command::Command;
use rnic_qsbr::Epoch;
use rnic_transport::{Cause, Check};
use rustix::io::Errno;

use crate::{
    control::Control,
    dispatch::Outcome,
    objects::{Key, Kind, Object, What},
    ops::{Op, Work},
    refusal::{Refusal, Verb},
    session::Reply,
};

/// Objects that are being destroyed together. Steps that wait are states; the others are functions called in
/// between.
#[derive(Debug)]
pub struct Destroy {
    objects: Vec<Key>,
    step: Step,
    /// Their bytes, which count as awaiting grace.
    bytes: usize,
    then: Then,
}

#[derive(Debug)]
enum Step {
    /// Step 3: cores are giving the objects back.
    Stop,
    /// Step 4: cores pass quiescent states.
    Grace(Epoch),
}

#[derive(Debug)]
enum Then {
    /// Step 8: the client is answered.
    Answer,
    /// There is nobody to answer: the client is leaving.
    Leave,
}

/// A client that owns nothing any more, on its way out.
#[derive(Debug)]
pub enum Departure {
    /// Cores are giving its doorbells back.
    Stop,
    /// Cores pass quiescent states.
    Grace(Epoch),
}

/// What the control thread and a core keep for an object, roughly: counts as awaiting grace beside its queues.
const BOOKKEEPING: usize = 512;

impl Control {
    /// Destroys one object at its client's request.
    pub(crate) fn destroy_one(&mut self, conn: u32, kind: Kind, arg: HandleArg) -> Verb<Outcome> {
        let key = self.find(conn, kind, arg.handle, "handle")?;
        self.refuse_new_work(key).map_err(|dependants| {
            let handle = arg.handle;
            let text = format!(
                "the {kind} {handle:#x} is in use by {dependants} other objects; destroy those first"
            );
            Refusal::new(Errno::BUSY, text)
        })?;
        self.destroy_all(conn, vec![key], Then::Answer);
        Ok(Outcome::Pending)
    }

    /// Destroys objects that [`Control::refuse_new_work`] was called for.
    fn destroy_all(&mut self, conn: u32, objects: Vec<Key>, then: Then) {
        let bytes = objects
            .iter()
            .filter_map(|key| self.objects.peek(*key))
            .map(bytes_of)
            .sum();
        if let Ok(client) = self.client_mut(conn) {
            client.awaiting_grace += bytes;
        }
        self.grace_bytes += bytes;
        self.unpublish(&objects);
        let commands = self.stop_commands(&objects);
        let stopped = commands.is_empty();
        let op = self.begin(
            conn,
            Work::Destroy(Destroy {
                objects,
                step: Step::Stop,
                bytes,
                then,
            }),
        );
        for (core, make) in commands {
            self.command(op, core, make);
        }
        if stopped {
            self.resume(op);
        }
    }

    /// Goes on with a destruction: its cores have answered, or time has passed.
    pub(crate) fn advance_destroy(&mut self, number: u64, mut op: Op) {
        let Work::Destroy(destroy) = &mut op.work else {
            return;
        };
        if let Step::Stop = destroy.step {
            let known_to_cores = |key: &Key| {
                let object = self.objects.peek(*key);
                object.is_some_and(|o| !matches!(o.kind(), Kind::Pd | Kind::Channel))
            };
            if !destroy.objects.iter().any(known_to_cores) {
                return self.finish(op);
            }
            destroy.step = Step::Grace(self.engine.start_grace());
        }
        match destroy.step {
            Step::Grace(epoch) if self.engine.passed(epoch) => self.finish(op),
            _ => {
                self.ops.in_grace.push(number);
                self.ops.put_back(number, op);
            }
        }
    }

    /// The grace period is over.
    fn finish(&mut self, op: Op) {
        let Op {
            conn,
            work: Work::Destroy(destroy),
            answers,
            ..
        } = op
        else {
            return;
        };
        let mut reply = Reply::default();
        for key in destroy.objects {
            let Some(mut object) = self.objects.remove(key) else {
                continue;
            };
            self.withdraw_events(&mut object);
            self.give_numbers(&object);
            reply = answer_to(&object);
            self.free(key, object);
        }
        // The cores' parts of the objects, given back in step 3, go here with `answers`.
        drop(answers);
        self.grace_bytes = self.grace_bytes.saturating_sub(destroy.bytes);
        if let Ok(client) = self.client_mut(conn) {
            client.awaiting_grace = client.awaiting_grace.saturating_sub(destroy.bytes);
        }
        match destroy.then {
            Then::Answer => self.answer(conn, Ok(reply)),
            Then::Leave => self.settle(conn),
        }
    }

    /// Step 1. No lookup finds the object any more, so nothing new can come to depend on it. Refused with the
    /// number of objects that do.
    fn refuse_new_work(&mut self, key: Key) -> Result<(), u32> {
        self.objects.destroy(key).map_err(|busy| busy.dependants)
    }

    /// Step 2. The control thread's own ids went in step 1; now those of the cores, in one publication.
    fn unpublish(&mut self, objects: &[Key]) {
        for key in objects {
            match self.objects.peek(*key).map(|object| &object.what) {
                Some(What::Qp(qp)) => {
                    self.engine.publisher().remove_qp(qp.qpn);
                }
                Some(What::Mr(mr)) => {
                    self.engine.mrs().invalidate(mr.key);
                }
                _ => {}
            }
        }
        if self.engine.publisher().is_dirty() {
            self.engine.commit();
        }
    }

    /// Step 3. What is to be told to which core.
    fn stop_commands(&self, objects: &[Key]) -> Vec<(usize, Stop)> {
        let mut commands: Vec<(usize, Stop)> = Vec::new();
        for key in objects {
            match self.objects.peek(*key).map(|object| &object.what) {
                Some(What::Qp(qp)) => {
                    let slot = qp.slot();
                    commands.push((qp.core, Box::new(move |token| Command::RemoveQp { slot, token })));
                }
                Some(What::Cq(cq)) => {
                    let cq = cq.number;
                    for core in 0..self.engine.core_count() {
                        commands.push((core, Box::new(move |token| Command::RemoveCq { cq, token })));
                    }
                }
                _ => {}
            }
        }
        commands
    }

    /// Step 5. What the client has not taken it will not find.
    fn withdraw_events(&mut self, object: &mut Object) {
        if let Ok(client) = self.client_mut(object.owner) {
            let withdrawn = client.events.withdraw(&client.region, object.handle.slot());
            // The client can set bits itself; then it is told of fewer events, not of more.
            object.reported = object.reported.saturating_sub(withdrawn);
        }
    }

    /// Step 6.
    fn give_numbers(&mut self, object: &Object) {
        match &object.what {
            What::Pd(pd) => self.numbers.pds.give(pd.number),
            What::Mr(mr) => self.numbers.keys.give(mr.slot),
            What::Cq(cq) => self.numbers.cqs.give(cq.number),
            What::Qp(qp) => self.numbers.qpns.give(qp.slot()),
            What::Channel(_) => {}
        }
        self.give_handle(object.owner, object.handle);
    }

    /// Step 7.
    fn free(&mut self, key: Key, object: Object) {
        let conn = object.owner;
        for dependency in object.depends_on() {
            self.objects.put(dependency);
        }
        if let Ok(client) = self.client_mut(conn) {
            client.objects.remove(&key);
            client.usage.remove(object.kind());
            if let What::Mr(mr) = &object.what {
                client.usage.deregister(mr.length);
            }
        }
        match object.what {
            What::Mr(mr) => self.mapper.unmap(mr.mem),
            What::Cq(cq) => self.give_queue_space(conn, cq.slice),
            What::Qp(qp) => {
                self.give_queue_space(conn, qp.sq);
                self.give_queue_space(conn, qp.rq);
            }
            What::Pd(_) | What::Channel(_) => {}
        }
    }

    /// A connection's socket is closed, or its client is broken: everything it owns goes.
    pub(crate) fn leave(&mut self, conn: u32) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if connection.leaving {
            return;
        }
        connection.leaving = true;
        self.poller.remove(&connection.session);
        let peer = &connection.session.peer;
        tracing::info!(session = connection.session.number, pid = peer.pid, comm = %peer.comm, "client left");
        // Nobody waits for the answer of a silent neighbour any more.
        let waiting: Vec<u64> = self.ops.of(conn).collect();
        for number in waiting {
            self.neighbours.forget(number);
            if self.ops.is_idle_modify(number) {
                self.ops.take(number);
            }
        }
        self.go_on_leaving(conn);
    }

    /// The next part of a client's leaving, when nothing of it is under way: QPs, then what they used, then what
    /// that used, then the client itself.
    pub(crate) fn go_on_leaving(&mut self, conn: u32) {
        if self.ops.of(conn).next().is_some() {
            return;
        }
        let Some(client) = self.connections.get(&conn).and_then(|c| c.client.as_deref()) else {
            self.connections.remove(&conn);
            return;
        };
        let of = |kinds: &[Kind]| -> Vec<Key> {
            let wanted = |key: &Key| self.objects.peek(*key).is_some_and(|o| kinds.contains(&o.kind()));
            client.objects.iter().copied().filter(wanted).collect()
        };
        let order: [&[Kind]; 3] = [&[Kind::Qp], &[Kind::Cq, Kind::Mr], &[Kind::Channel, Kind::Pd]];
        let batch = order.into_iter().map(of).find(|batch| !batch.is_empty());
        match batch {
            Some(batch) => {
                // As many as may await grace at once: the death of one client is no reason to refuse others.
                let mut room = self.quota.limits.bytes_awaiting_grace.bytes() as usize / 2;
                let mut free = Vec::new();
                for key in batch {
                    let bytes = self.objects.peek(key).map_or(0, bytes_of);
                    if !free.is_empty() && bytes > room {
                        break;
                    }
                    room = room.saturating_sub(bytes);
                    if self.refuse_new_work(key).is_ok() {
                        free.push(key);
                    }
                }
                debug_assert!(
                    !free.is_empty(),
                    "objects of a leaving client depend on each other in a circle"
                );
                self.destroy_all(conn, free, Then::Leave);
            }
            None => self.depart(conn),
        }
    }

    fn depart(&mut self, conn: u32) {
        let Ok(client) = self.client_mut(conn) else { return };
        let client = client.index;
        let op = self.begin(conn, Work::Depart(Departure::Stop));
        for core in 0..self.engine.core_count() {
            self.command(op, core, |token| Command::RemoveClient { client, token });
        }
    }

    /// Goes on with a departure: the cores have given the doorbells back, or time has passed.
    pub(crate) fn advance_departure(&mut self, number: u64, mut op: Op) {
        let Work::Depart(departure) = &mut op.work else {
            return;
        };
        let epoch = match *departure {
            Departure::Stop => self.engine.start_grace(),
            Departure::Grace(epoch) => epoch,
        };
        if !self.engine.passed(epoch) {
            *departure = Departure::Grace(epoch);
            self.ops.in_grace.push(number);
            self.ops.put_back(number, op);
            return;
        }
        // The region goes with the client and the last of the cores' parts.
        if let Some(client) = self.connections.remove(&op.conn).and_then(|c| c.client) {
            self.by_index.remove(&client.index);
            self.numbers.clients.give(client.index);
        }
    }

    /// A client that is broken (its memory was not there, or it forged what only it could forge): its QPs go to
    /// the error state, then it leaves.
    pub(crate) fn expel(&mut self, conn: u32, why: &str) {
        let Some(connection) = self.connections.get(&conn).filter(|c| !c.leaving) else {
            return;
        };
        let peer = &connection.session.peer;
        tracing::warn!(pid = peer.pid, comm = %peer.comm, "client is broken and is disconnected: {why}");
        let objects = connection
            .client
            .as_deref()
            .map(|client| client.objects.clone())
            .unwrap_or_default();
        let op = self.begin(conn, Work::Fail);
        let cause = Cause::of(Check::MemoryFault);
        let mut failing = false;
        for key in objects {
            if let Some(What::Qp(qp)) = self.objects.peek(key).map(|object| &object.what) {
                let (core, slot) = (qp.core, qp.slot());
                self.command(op, core, |token| Command::FailQp { slot, cause, token });
                failing = true;
            }
        }
        if !failing {
            self.ops.take(op);
        }
        if let Some(connection) = self.connections.get(&conn) {
            // The client learns of it now, not when its last object is gone.
            let _ = rustix::net::shutdown(&connection.session, rustix::net::Shutdown::Both);
        }
        self.leave(conn);
    }
}

type Stop = Box<dyn FnOnce(rnic_engine::command::Token) -> Command>;

/// Step 8.
fn answer_to(object: &Object) -> Reply {
    match object.kind() {
        Kind::Cq | Kind::Qp => Reply::new(&DestroyReply {
            events_reported: object.reported,
            reserved: 0,
        }),
        Kind::Pd | Kind::Mr | Kind::Channel => Reply::default(),
    }
}

/// Memory of the daemon that an object keeps; a region's pages are its client's.
fn bytes_of(object: &Object) -> usize {
    BOOKKEEPING
        + match &object.what {
            What::Qp(qp) => qp.sq.len + qp.rq.len,
            What::Cq(cq) => cq.slice.len,
            What::Pd(_) | What::Mr(_) | What::Channel(_) => 0,
        }
}
