//! The views of a poll core: a cache holds its own counted reference to the snapshot, as `arc_swap::Cache` does, and
//! must never be the one to drop the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};

use loom::sync::atomic::{
    AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use loom::thread;
use rnic_qsbr::{Epoch, Participant, Qsbr};

use crate::harness::{Object, explore, explore_faulty};

/// The static view of an offline core: not counted, finds nothing.
const EMPTY: usize = usize::MAX;

struct Snapshot {
    object: Object,
    owners: AtomicUsize,
}

struct World {
    qsbr: Arc<Qsbr>,
    /// Each begun with one owner: the swap's pointer, or whoever will publish it.
    snapshots: [Snapshot; 2],
    current: AtomicUsize,
}

/// What the reclaimer does when the grace period is over.
#[derive(Clone, Copy, PartialEq)]
enum Reclaim {
    /// Frees only a snapshot it is the sole owner of (`Arc::get_mut`), else queues it again.
    IfSoleOwner,
    /// Drops its reference, trusting that it is the last.
    Trusting,
}

#[derive(Default)]
struct Outcome {
    freed: Count,
    requeued: Count,
}

impl World {
    fn new() -> Arc<Self> {
        let snapshot = |_| Snapshot {
            object: Object::new(),
            owners: AtomicUsize::new(1),
        };
        Arc::new(Self {
            qsbr: Arc::new(Qsbr::new(1)),
            snapshots: std::array::from_fn(snapshot),
            current: AtomicUsize::new(0),
        })
    }

    fn publish_and_reclaim(&self, reclaim: Reclaim, outcome: &Outcome) {
        let old = self.current.swap(1, AcqRel);
        let epoch = self.qsbr.advance();
        if !(0..2).any(|_| self.qsbr.check(epoch)) {
            return;
        }
        let snapshot = &self.snapshots[old];
        let last = match reclaim {
            Reclaim::IfSoleOwner => snapshot.owners.load(Acquire) == 1,
            Reclaim::Trusting => snapshot.owners.fetch_sub(1, AcqRel) == 1,
        };
        if last {
            snapshot.object.free();
            outcome.freed.fetch_add(1, SeqCst);
        } else {
            outcome.requeued.fetch_add(1, SeqCst);
        }
    }
}

struct Cache<'a> {
    world: &'a World,
    held: usize,
}

impl<'a> Cache<'a> {
    fn new(world: &'a World) -> Self {
        Self { world, held: EMPTY }
    }

    fn refresh(&mut self) {
        let current = self.world.current.load(Acquire);
        if current != self.held {
            let before = self.world.snapshots[current].owners.fetch_add(1, Relaxed);
            assert!(before > 0, "a freed snapshot was cloned");
            self.give_up();
            self.held = current;
        }
    }

    fn give_up(&mut self) {
        if self.held != EMPTY {
            let before = self.world.snapshots[self.held].owners.fetch_sub(1, AcqRel);
            assert!(before > 1, "a snapshot was freed on the poll core");
            self.held = EMPTY;
        }
    }

    fn use_it(&self) {
        self.world.snapshots[self.held].object.use_it();
    }
}

type Report = fn(&Participant, Epoch) -> Epoch;

fn observed_first(_: &Participant, observed: Epoch) -> Epoch {
    observed
}

fn current_at_the_end(participant: &Participant, _: Epoch) -> Epoch {
    participant.observe()
}

/// A core that iterates, reporting as told.
fn iterating(report: Report, reclaim: Reclaim, outcome: &Outcome) {
    let world = World::new();
    let mut participant = world.qsbr.register(0).unwrap();
    let on_core = Arc::clone(&world);
    let core = thread::spawn(move || {
        let mut cache = Cache::new(&on_core);
        participant.online();
        for _ in 0..2 {
            let observed = participant.observe();
            cache.refresh();
            cache.use_it();
            participant.quiescent(report(&participant, observed));
        }
        // The cache goes to the control thread with the core's value, the participant still online until then.
        (cache.held, participant)
    });
    world.publish_and_reclaim(reclaim, outcome);
    core.join().unwrap();
}

/// A core that sleeps in between, giving up its view.
fn sleeping(come_online: fn(&mut Participant) -> Epoch, reclaim: Reclaim, outcome: &Outcome) {
    let world = World::new();
    let mut participant = world.qsbr.register(0).unwrap();
    let on_core = Arc::clone(&world);
    let core = thread::spawn(move || {
        let mut cache = Cache::new(&on_core);
        for _ in 0..2 {
            let observed = come_online(&mut participant);
            cache.refresh();
            cache.use_it();
            participant.quiescent(observed);
            cache.use_it();
            cache.give_up();
            participant.offline();
        }
    });
    world.publish_and_reclaim(reclaim, outcome);
    core.join().unwrap();
}

/// Explores and returns how often snapshots were freed and requeued, over all executions.
fn tally(model: impl Fn(&Outcome) + Send + Sync + 'static) -> (usize, usize) {
    let outcome = Arc::new(Outcome::default());
    let inner = Arc::clone(&outcome);
    explore(5, move || model(&inner));
    (outcome.freed.load(SeqCst), outcome.requeued.load(SeqCst))
}

#[test]
fn after_the_grace_period_the_reclaimer_is_the_sole_owner() {
    for reclaim in [Reclaim::IfSoleOwner, Reclaim::Trusting] {
        let (freed, requeued) = tally(move |outcome| iterating(observed_first, reclaim, outcome));
        assert!(freed > 0 && requeued == 0, "{freed} freed, {requeued} requeued");
    }
}

#[test]
fn a_core_that_sleeps_without_a_view_keeps_nothing_alive() {
    for reclaim in [Reclaim::IfSoleOwner, Reclaim::Trusting] {
        let (freed, requeued) = tally(move |outcome| sleeping(Participant::online, reclaim, outcome));
        assert!(freed > 0 && requeued == 0, "{freed} freed, {requeued} requeued");
    }
}

#[test]
fn reporting_the_current_epoch_is_caught_as_a_free_on_the_poll_core() {
    let said = explore_faulty(5, || {
        iterating(current_at_the_end, Reclaim::Trusting, &Outcome::default())
    });
    assert!(said.contains("freed on the poll core"), "{said}");
}

#[test]
fn sole_ownership_makes_even_reporting_the_current_epoch_harmless() {
    let (freed, requeued) = tally(|outcome| iterating(current_at_the_end, Reclaim::IfSoleOwner, outcome));
    assert!(freed > 0 && requeued > 0, "{freed} freed, {requeued} requeued");
}

#[test]
fn coming_online_without_the_fence_is_caught() {
    for reclaim in [Reclaim::IfSoleOwner, Reclaim::Trusting] {
        let said = explore_faulty(5, move || {
            sleeping(Participant::online_without_fence, reclaim, &Outcome::default())
        });
        let known = ["after free", "freed", "Causality violation"];
        assert!(known.iter().any(|&word| said.contains(word)), "{said}");
    }
}
