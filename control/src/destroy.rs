//! Destruction in its one order, as a state machine that nobody waits for but the client who asked.
//!
//! 1. refuse new work; EBUSY while other objects depend on it
//! 2. unpublish every id of the object from every table, in one publication
//! 3. the owning cores stop it, discard its work requests without completions, cancel its timers
//! 4. a grace period, so that no core still holds what it found before; that of a QP's owner is over as it answers
//!    step 3, so the others may have passed theirs meanwhile: since the publication of step 2
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
    grace::Cost,
    lock_order::might_reclaim,
    objects::{Key, Kind, Object, What},
    ops::{Op, Work},
    refusal::{Refusal, Verb},
    session::Reply,
};

/// Objects that are being destroyed together. Steps that wait are states; the others are functions called in
/// between.
#[derive(Debug)]
pub struct Destroy {
    pub(crate) objects: Vec<Key>,
    step: Step,
    /// What of them counts as awaiting grace.
    pub(crate) cost: Cost,
    then: Then,
}

#[derive(Debug)]
enum Step {
    /// After step 1: too much awaits grace for now.
    Line,
    /// Step 2: the batch's publication is waited for.
    Unpublish,
    /// Step 3: cores are giving the objects back.
    Stop,
    /// They have; the next grace period is that of the batch.
    Stopped,
    /// Step 4: cores pass quiescent states.
    Grace(Epoch),
    /// Step 7: so many large regions are still being unmapped.
    Unmap { left: u32, reply: Reply },
}

impl Destroy {
    /// Whether it has not begun.
    pub(crate) fn is_in_line(&self) -> bool {
        matches!(self.step, Step::Line)
    }

    /// Whether cores are giving its objects up.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(self.step, Step::Stop)
    }

    /// Its grace period began.
    pub(crate) fn grace_began(&mut self, epoch: Epoch) {
        self.step = Step::Grace(epoch);
    }

    /// The epoch it waits for, if it does.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        match self.step {
            Step::Grace(epoch) => Some(epoch),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Then {
    /// Step 8: the client is answered.
    Answer,
    /// There is nobody to answer: the client is leaving.
    Leave,
}

impl Control {
    /// Destroys one object at its client's request.
    pub(crate) fn destroy_one(&mut self, conn: u32, kind: Kind, arg: HandleArg) -> Verb<Outcome> {
        let key = self.find(conn, kind, arg.handle, "handle")?;
        self.refuse_attached(key)?;
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

    /// Destroys objects that [`Control::refuse_new_work`] was called for, as soon as there is room for them among what
    /// awaits grace.
    pub(crate) fn destroy_all(&mut self, conn: u32, objects: Vec<Key>, then: Then) {
        let cost = self.cost_of(&objects);
        let op = self.begin(
            conn,
            Work::Destroy(Destroy {
                objects,
                step: Step::Line,
                cost,
                then,
            }),
        );
        self.begin_in_turn(op);
    }

    /// Step 2. It is on the account already.
    pub(crate) fn begin_destroy(&mut self, number: u64) {
        let Some(mut op) = self.ops.take(number) else {
            return;
        };
        let Work::Destroy(destroy) = &mut op.work else {
            return;
        };
        destroy.step = Step::Unpublish;
        self.unpublish(&destroy.objects);
        self.ops.put_back(number, op);
        self.batch.resume_unpublished(number);
    }

    /// The grace period that was begun for these objects before: memory regions whose keys were made invalid then, and QPs
    /// that were unpublished by the last publication at the latest.
    fn begun_grace(&self, objects: &[Key]) -> Option<Epoch> {
        let begun = |key: &Key| match &self.objects.peek(*key)?.what {
            What::Mr(mr) => mr.invalidated,
            What::Qp(_) => Some(self.engine.epoch()),
            _ => None,
        };
        objects
            .iter()
            .try_fold(Epoch::FIRST, |latest, key| Some(latest.max(begun(key)?)))
    }

    /// Goes on with a destruction: its step is done.
    pub(crate) fn advance_destroy(&mut self, number: u64, mut op: Op) {
        might_reclaim();
        let Work::Destroy(destroy) = &mut op.work else {
            return;
        };
        if let Step::Unpublish = destroy.step {
            destroy.step = Step::Stop;
            let commands = self.stop_commands(&destroy.objects);
            if !commands.is_empty() {
                self.ops.put_back(number, op);
                for (core, make) in commands {
                    self.command(number, core, make);
                }
                return;
            }
        }
        if let Step::Stop = destroy.step {
            let known_to_cores = |key: &Key| match self.objects.peek(*key).map(|object| &object.what) {
                Some(What::Qp(qp)) => qp.here.is_none(),
                Some(What::Mr(_) | What::Mw(_) | What::Cq(_) | What::Ah(_) | What::Srq(_)) => true,
                Some(What::Pd(_) | What::Channel(_) | What::Xrcd(_) | What::Target(_)) | None => false,
            };
            if destroy.objects.iter().any(known_to_cores) {
                match self.begun_grace(&destroy.objects) {
                    Some(epoch) if self.has_passed(epoch) => return self.finish(number, op),
                    Some(epoch) => {
                        self.ops.put_back(number, op);
                        self.ops.wait_for(epoch, vec![number]);
                        return;
                    }
                    None => destroy.step = Step::Stopped,
                }
                self.ops.put_back(number, op);
                self.batch.resume_after_grace(number);
                return;
            }
        }
        self.finish(number, op);
    }

    /// The grace period is over: steps 5 to 7.
    fn finish(&mut self, number: u64, mut op: Op) {
        let Work::Destroy(destroy) = &mut op.work else {
            return;
        };
        let mut reply = Reply::default();
        let mut left = 0;
        for key in std::mem::take(&mut destroy.objects) {
            let Some(mut object) = self.objects.remove(key) else {
                continue;
            };
            self.withdraw_events(&mut object);
            if let What::Qp(qp) = &object.what {
                // Before another QP can have its number.
                self.unbind_windows_of(object.owner, qp.qpn);
            }
            self.give_numbers(&object);
            reply = answer_to(&object);
            left += u32::from(self.free(number, key, object));
        }
        destroy.step = Step::Unmap { left, reply };
        if left > 0 {
            return self.ops.put_back(number, op);
        }
        self.destroyed(op);
    }

    /// A large region of a destruction is unmapped.
    pub(crate) fn unmapped(&mut self, number: u64, mut op: Op) {
        if let Work::Destroy(Destroy {
            step: Step::Unmap { left, .. },
            ..
        }) = &mut op.work
        {
            *left = left.saturating_sub(1);
            if *left > 0 {
                return self.ops.put_back(number, op);
            }
        }
        self.destroyed(op);
    }

    /// Everything is freed.
    fn destroyed(&mut self, op: Op) {
        let Op {
            conn,
            work: Work::Destroy(destroy),
            ..
        } = op
        else {
            return;
        };
        self.settle_grace(conn, destroy.cost);
        if let Ok(client) = self.client_mut(conn) {
            client.usage.deregister(destroy.cost.mapped);
        }
        let reply = match destroy.step {
            Step::Unmap { reply, .. } => reply,
            _ => Reply::default(),
        };
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

    /// The control thread's own ids went in step 1; now those of the cores, in one publication: that of the batch.
    fn unpublish(&mut self, objects: &[Key]) {
        for key in objects {
            self.detach_all(*key);
            match self.objects.peek(*key).map(|object| &object.what) {
                Some(What::Qp(qp)) if qp.here.is_none() => {
                    self.engine.publisher().remove(view::Kind::Qp, qp.qpn);
                    let slot = qp.slot();
                    self.unfollow(slot);
                }
                Some(What::Ah(ah)) => {
                    let number = ah.number;
                    self.unpublish_ah(number);
                }
                Some(What::Mr(mr)) => {
                    self.engine.mrs().invalidate(mr.key);
                }
                Some(What::Mw(mw)) => self.engine.mrs().withdraw_window(mw.number),
                _ => {}
            }
        }
    }

    /// Step 3. What is to be told to which core.
    fn stop_commands(&self, objects: &[Key]) -> Vec<(usize, Stop)> {
        let mut commands: Vec<(usize, Stop)> = Vec::new();
        for key in objects {
            match self.objects.peek(*key).map(|object| &object.what) {
                Some(What::Qp(qp)) if qp.here.is_none() => {
                    let slot = qp.slot();
                    commands.push((qp.core, Box::new(move |token| Command::RemoveQp { slot, token })));
                }
                Some(What::Srq(srq)) => {
                    let slot = srq.slot();
                    commands.push((
                        srq.core,
                        Box::new(move |token| Command::RemoveSrq { slot, token }),
                    ));
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
            What::Mw(mw) => self.numbers.keys.give(mw.slot()),
            What::Cq(cq) => self.numbers.cqs.give(cq.slot()),
            What::Qp(qp) => self.numbers.qpns.give(qp.slot()),
            What::Ah(ah) => self.ahs.give(ah.slot()),
            What::Srq(srq) => self.numbers.srqs.give(srq.slot()),
            What::Xrcd(xrcd) => self.let_go_of_domain(xrcd.number),
            What::Channel(_) | What::Target(_) => {}
        }
        self.give_handle(object.owner, object.handle);
    }

    /// Step 7. Tells whether a region will be unmapped only later.
    fn free(&mut self, number: u64, key: Key, object: Object) -> bool {
        let conn = object.owner;
        for dependency in object.depends_on() {
            self.objects.put(dependency);
        }
        if let Ok(client) = self.client_mut(conn) {
            client.objects.remove(&key);
            client.usage.remove(object.kind());
            if let What::Mw(mw) = &object.what {
                client.windows.remove(&mw.number);
            }
        }
        match object.what {
            What::Mr(mr) => {
                self.engine.mrs().release(mr.key);
                return self.mapper.unmap(number, mr.mem);
            }
            What::Mw(mw) => self.engine.mrs().release_window(mw.number),
            What::Cq(cq) => {
                for place in [Some(cq.slice), cq.left].into_iter().flatten() {
                    self.give_queue_space(conn, place);
                }
            }
            What::Qp(qp) => {
                for queue in [qp.sq, qp.rq].into_iter().flatten() {
                    self.give_queue_space(conn, queue);
                }
            }
            What::Srq(srq) => self.give_queue_space(conn, srq.slice),
            What::Pd(_) | What::Channel(_) | What::Ah(_) | What::Xrcd(_) | What::Target(_) => {}
        }
        false
    }
}

type Stop = Box<dyn FnOnce(rnic_engine::command::Token) -> Command>;

/// Step 8.
fn answer_to(object: &Object) -> Reply {
    match object.kind() {
        Kind::Cq | Kind::Qp | Kind::Srq | Kind::Target => Reply::new(&DestroyReply {
            events_reported: object.reported,
            reserved: 0,
        }),
        Kind::Pd | Kind::Mr | Kind::Mw | Kind::Channel | Kind::Ah | Kind::Xrcd => Reply::default(),
    }
}
