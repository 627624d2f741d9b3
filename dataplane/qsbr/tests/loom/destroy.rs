//! The whole order of destruction (DESIGN I3), over the real grace periods and the real event word: the control thread
//! destroys an object while the core that owns it uses it and raises an event, another core looks it up and uses what
//! it finds, and the client takes events.
//!
//! What must hold: nothing freed is touched, a number is used again only when nobody holds it, no event of the object
//! is seen after the answer, and each event is told once: the client takes as many as the answer says. Every step has
//! a variant without it, or too early, which must be caught.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};

use loom::sync::atomic::{
    AtomicBool, AtomicU32, AtomicUsize, Ordering,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};
use loom::thread;
use rnic_abi::event::{self, event_kind::QP_FATAL};
use rnic_abi::protocol::Word32;
use rnic_qsbr::{Participant, Qsbr};

use crate::harness::{Object, explore, explore_faulty};

/// A part of the order that is left out, or done too early.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Step 1: the object can still be found by the control thread's own lookups.
    StaysFindable,
    /// Step 2.
    NotUnpublished,
    /// Step 2, after step 4.
    UnpublishedAfterGrace,
    /// Step 3.
    NotStopped,
    /// Step 3 is answered before the owner has passed a quiescent state.
    AnsweredInPass,
    /// Step 4.
    NoGrace,
    /// Step 5.
    NotWithdrawn,
    /// Step 6, before step 4.
    NumberBeforeGrace,
    /// Step 7, before step 4.
    FreedBeforeGrace,
    /// Step 8, before step 5.
    AnsweredBeforeWithdrawal,
}

struct Word(AtomicU32);

impl Word32 for Word {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, order)
    }
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.0.swap(value, order)
    }
    fn fetch_and(&self, value: u32, order: Ordering) -> u32 {
        self.0.fetch_and(value, order)
    }
    fn compare_exchange(&self, current: u32, new: u32, ok: Ordering, failed: Ordering) -> Result<u32, u32> {
        self.0.compare_exchange(current, new, ok, failed)
    }
    fn fence(order: Ordering) {
        fence(order)
    }
}

struct World {
    qsbr: Arc<Qsbr>,
    /// What the view says of the number: whether the object can be found.
    published: AtomicBool,
    /// The object's memory.
    object: Object,
    /// What the number means: given to another object when it is freed.
    number: Object,
    /// The command to the owner, and its answer.
    stop: AtomicBool,
    stopped: AtomicBool,
    /// The owner's message: there is an event.
    message: AtomicBool,
    /// The event word of the object's slot, in memory shared with the client.
    pending: Word,
    /// The client was answered.
    answered: AtomicBool,
    /// What the answer says, and one: zero is none.
    reported: AtomicUsize,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(World {
            qsbr: Arc::new(Qsbr::new(2)),
            published: AtomicBool::new(true),
            object: Object::new(),
            number: Object::new(),
            stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            // Told in an earlier pass and not heard yet.
            message: AtomicBool::new(true),
            pending: Word(AtomicU32::new(0)),
            answered: AtomicBool::new(false),
            reported: AtomicUsize::new(0),
        })
    }

    /// The core that owns the object: it serves it from its active list, raises an event once, and carries out the
    /// command to stop it, which it answers when it has passed a quiescent state.
    fn owner(&self, participant: &mut Participant, fault: Fault) {
        participant.online();
        let mut mine = true;
        for pass in 0..2 {
            let observed = participant.observe();
            let stop = mine && self.stop.load(Acquire);
            if stop && fault == Fault::AnsweredInPass {
                self.stopped.store(true, Release);
            }
            if mine {
                self.object.use_it();
                if pass == 0 {
                    self.message.store(true, Release);
                }
            }
            participant.quiescent(observed);
            if stop {
                mine = false;
                self.stopped.store(true, Release);
            }
        }
        participant.offline();
    }

    /// Another core: finds the object by its number and uses it.
    fn other(&self, participant: &mut Participant, _: Fault) {
        let observed = participant.online();
        // Relaxed: what order there is comes from the grace period.
        if self.published.load(Relaxed) {
            self.number.use_it();
            self.object.use_it();
        }
        participant.quiescent(observed);
        participant.offline();
    }

    /// The client takes what stands in its slot.
    fn take(&self) -> u32 {
        // Read first: what is taken after the answer was seen is late.
        let answered = self.answered.load(Acquire);
        let (kinds, _) = event::take(&self.pending, || ());
        assert!(!answered || kinds == 0, "an event after the answer");
        kinds.count_ones()
    }

    /// The control thread hears the owner's message, if it has come, and tells the client.
    fn hear(&self, findable: bool) -> u32 {
        if !self.message.swap(false, Acquire) || !findable {
            return 0;
        }
        event::raise(&self.pending, 1, QP_FATAL, || ()).reported
    }

    /// Destroys the object; false when it did not come to its end within the looks it has.
    fn destroy(&self, fault: Fault) -> bool {
        let mut told = self.hear(true);
        let findable = fault == Fault::StaysFindable; // 1
        if !matches!(fault, Fault::NotUnpublished | Fault::UnpublishedAfterGrace) {
            self.published.store(false, Relaxed); // 2
        }
        // The publication begins the epoch that the others are waited for.
        let epoch = self.qsbr.advance();
        if fault != Fault::NotStopped {
            self.stop.store(true, Release); // 3
            if !(0..2).any(|_| self.stopped.load(Acquire)) {
                return false;
            }
        }
        if fault == Fault::NumberBeforeGrace {
            self.number.free();
        }
        if fault == Fault::FreedBeforeGrace {
            self.object.free();
        }
        if fault != Fault::NoGrace && !(0..2).any(|_| self.qsbr.check(epoch)) {
            return false; // 4
        }
        if fault == Fault::UnpublishedAfterGrace {
            self.published.store(false, Relaxed);
        }
        if fault == Fault::AnsweredBeforeWithdrawal {
            self.answered.store(true, Release);
        }
        if fault != Fault::NotWithdrawn {
            told -= event::withdraw(&self.pending); // 5
        }
        if fault != Fault::NumberBeforeGrace {
            self.number.free(); // 6
        }
        if fault != Fault::FreedBeforeGrace {
            self.object.free(); // 7
        }
        self.reported.store(told as usize + 1, Relaxed);
        self.answered.store(true, Release); // 8
        // What the owner told before it stopped may be heard as late as this.
        self.hear(findable);
        true
    }
}

fn model(fault: Fault, destroyed: &Count) {
    let world = World::new();
    let core = |id, body: fn(&World, &mut Participant, Fault)| {
        let mut participant = world.qsbr.register(id).expect("ids are distinct");
        let world = Arc::clone(&world);
        thread::spawn(move || body(&world, &mut participant, fault))
    };
    let owner = core(0, World::owner);
    let other = core(1, World::other);
    let client = {
        let world = Arc::clone(&world);
        thread::spawn(move || world.take())
    };
    let done = world.destroy(fault);
    let mut taken = client.join().unwrap();
    owner.join().unwrap();
    other.join().unwrap();
    taken += world.take();
    if done {
        destroyed.fetch_add(1, SeqCst);
        let reported = world.reported.load(Relaxed) as u32 - 1;
        assert_eq!(taken, reported, "events taken and events reported");
    }
}

/// Forced switches in one execution.
const PREEMPTIONS: usize = 2;

#[test]
fn in_its_order_destruction_leaves_nothing_to_be_touched_or_told() {
    let destroyed = Arc::new(Count::new(0));
    let count = Arc::clone(&destroyed);
    explore(PREEMPTIONS, move || model(Fault::None, &count));
    assert!(destroyed.load(SeqCst) > 0, "no execution came to its end");
}

fn caught(fault: Fault, by: &[&str]) {
    let said = explore_faulty(PREEMPTIONS, move || model(fault, &Count::new(0)));
    assert!(by.iter().any(|word| said.contains(word)), "{fault:?}: {said}");
}

/// loom says it in its own words when it sees the race itself.
const TOUCHED: [&str; 2] = ["after free", "Causality violation"];

#[test]
fn an_object_that_stays_findable_is_caught_by_an_event_after_the_answer() {
    caught(
        Fault::StaysFindable,
        &["an event after the answer", "events taken"],
    );
}

#[test]
fn an_object_that_stays_published_is_caught() {
    caught(Fault::NotUnpublished, &TOUCHED);
}

#[test]
fn unpublishing_after_the_grace_period_is_caught() {
    caught(Fault::UnpublishedAfterGrace, &TOUCHED);
}

#[test]
fn an_object_that_its_core_does_not_stop_is_caught() {
    caught(Fault::NotStopped, &TOUCHED);
}

#[test]
fn an_owner_that_answers_before_its_quiescent_state_is_caught() {
    caught(Fault::AnsweredInPass, &TOUCHED);
}

#[test]
fn destruction_without_a_grace_period_is_caught() {
    caught(Fault::NoGrace, &TOUCHED);
}

#[test]
fn events_that_are_not_withdrawn_are_caught() {
    caught(
        Fault::NotWithdrawn,
        &["an event after the answer", "events taken"],
    );
}

#[test]
fn a_number_given_back_before_the_grace_period_is_caught() {
    caught(Fault::NumberBeforeGrace, &TOUCHED);
}

#[test]
fn memory_freed_before_the_grace_period_is_caught() {
    caught(Fault::FreedBeforeGrace, &TOUCHED);
}

#[test]
fn an_answer_before_the_withdrawal_is_caught() {
    caught(Fault::AnsweredBeforeWithdrawal, &["an event after the answer"]);
}
