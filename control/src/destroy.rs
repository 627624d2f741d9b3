//! Destruction in its one order, as a state machine that nobody waits for but the client who asked.
//!
//! 1. refuse new work; EBUSY while other objects depend on it
//! 2. unpublish every id of the object from every table, in one publication
//! 3. the owning cores stop it, discard its work requests without completions, cancel its timers
//! 4. a grace period, so that no core still holds what it found before
//! 5. its events that the client has not taken are withdrawn
//! 6. its numbers may be used again
//! 7. its memory is freed: what the cores gave up in step 3 by the engine's reclaimer as the grace period is seen to
//!    be over, the rest here
//! 8. the client is answered, with the number of events it has taken or will find taken
//!
//! The death of a client is the same for all its objects: those that others depend on come last.

use rnic_abi::{DestroyReply, HandleArg};
use rnic_engine::{command::Command, view};
use rnic_qsbr::Epoch;
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
pub(crate) enum Then {
    /// Step 8: the client is answered.
    Answer,
    /// There is nobody to answer: the client is leaving.
    Leave,
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
    pub(crate) fn destroy_all(&mut self, conn: u32, objects: Vec<Key>, then: Then) {
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
    pub(crate) fn refuse_new_work(&mut self, key: Key) -> Result<(), u32> {
        self.objects.destroy(key).map_err(|busy| busy.dependants)
    }

    /// Step 2. The control thread's own ids went in step 1; now those of the cores, in one publication.
    fn unpublish(&mut self, objects: &[Key]) {
        for key in objects {
            match self.objects.peek(*key).map(|object| &object.what) {
                Some(What::Qp(qp)) => {
                    self.engine.publisher().remove(view::Kind::Qp, qp.qpn);
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
                    let cq = cq.slot();
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
            What::Pd(pd) => self.numbers.pds.give(view::slot_of(pd.number)),
            What::Mr(mr) => self.numbers.keys.give(mr.slot),
            What::Cq(cq) => self.numbers.cqs.give(cq.slot()),
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
pub(crate) fn bytes_of(object: &Object) -> usize {
    BOOKKEEPING
        + match &object.what {
            What::Qp(qp) => qp.sq.len + qp.rq.len,
            What::Cq(cq) => cq.slice.len,
            What::Pd(_) | What::Mr(_) | What::Channel(_) => 0,
        }
}
