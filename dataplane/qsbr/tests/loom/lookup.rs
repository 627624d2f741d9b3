//! One pointer, looked up by readers, swapped and freed by the publisher.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};

use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;
use rnic_qsbr::{Participant, Qsbr, Reclaimer};

use crate::harness::{Object, explore, explore_faulty};

struct World {
    qsbr: Arc<Qsbr>,
    objects: [Object; 3],
    current: AtomicUsize,
}

impl World {
    fn new(readers: usize) -> Arc<Self> {
        Arc::new(Self {
            qsbr: Arc::new(Qsbr::new(readers)),
            objects: std::array::from_fn(|_| Object::new()),
            current: AtomicUsize::new(0),
        })
    }

    fn look_up_and_use(&self) {
        self.objects[self.current.load(Relaxed)].use_it();
    }

    /// Publishes object `next`, and frees the old one if the grace period is over by one of the `looks`.
    fn replace(&self, next: usize, looks: usize, freed: &Count) {
        let old = self.current.swap(next, Relaxed);
        let epoch = self.qsbr.advance();
        if (0..looks).any(|_| self.qsbr.check(epoch)) {
            self.objects[old].free();
            freed.fetch_add(1, SeqCst);
        }
    }

    fn reader(
        self: &Arc<Self>,
        id: usize,
        body: impl Fn(&Self, &mut Participant) + 'static,
    ) -> thread::JoinHandle<()> {
        let world = Arc::clone(self);
        let mut participant = self.qsbr.register(id).expect("ids are distinct");
        thread::spawn(move || body(&world, &mut participant))
    }
}

fn iterate(world: &World, participant: &mut Participant, times: usize) {
    for _ in 0..times {
        let observed = participant.observe();
        world.look_up_and_use();
        participant.quiescent(observed);
    }
}

/// A model may not pass merely because the grace period never ended in it.
fn with_frees(run: impl FnOnce(Arc<Count>)) {
    let freed = Arc::new(Count::new(0));
    run(Arc::clone(&freed));
    assert!(freed.load(SeqCst) > 0, "no execution reached the free");
}

#[test]
fn reader_never_uses_a_freed_object() {
    with_frees(|freed| {
        explore(5, move || {
            let world = World::new(1);
            let reader = world.reader(0, |world, participant| {
                participant.online();
                iterate(world, participant, 2);
            });
            world.replace(1, 2, &freed);
            world.replace(2, 1, &freed);
            reader.join().unwrap();
        });
    });
}

#[test]
fn two_readers_are_both_waited_for() {
    with_frees(|freed| {
        explore(3, move || {
            let world = World::new(2);
            let readers = [0, 1].map(|id| {
                world.reader(id, |world, participant| {
                    participant.online();
                    iterate(world, participant, 2);
                })
            });
            world.replace(1, 2, &freed);
            for reader in readers {
                reader.join().unwrap();
            }
        });
    });
}

#[test]
fn reader_may_go_offline_and_come_back_during_a_publication() {
    with_frees(|freed| {
        explore(5, move || {
            let world = World::new(1);
            let reader = world.reader(0, |world, participant| {
                for _ in 0..2 {
                    let observed = participant.online();
                    world.look_up_and_use();
                    participant.quiescent(observed);
                    world.look_up_and_use();
                    participant.offline();
                }
            });
            world.replace(1, 2, &freed);
            world.replace(2, 1, &freed);
            reader.join().unwrap();
        });
    });
}

#[test]
fn reclaimer_frees_only_what_readers_have_passed() {
    with_frees(|freed| {
        explore(5, move || {
            let world = World::new(1);
            let reader = world.reader(0, |world, participant| {
                participant.online();
                iterate(world, participant, 2);
            });
            let mut reclaimer = Reclaimer::new();
            for next in [1, 2] {
                let old = world.current.swap(next, Relaxed);
                reclaimer.retire(old, world.qsbr.advance(), 1);
                let free = |object: usize| {
                    world.objects[object].free();
                    Ok(())
                };
                freed.fetch_add(reclaimer.poll(&world.qsbr, free), SeqCst);
            }
            reader.join().unwrap();
        });
    });
}

#[test]
fn handle_given_back_and_taken_by_another_thread_is_waited_for() {
    with_frees(|freed| {
        explore(3, move || {
            let world = World::new(1);
            let body = |world: &World, participant: &mut Participant| {
                participant.online();
                iterate(world, participant, 1);
            };
            let first = world.reader(0, body);
            world.replace(1, 1, &freed);
            first.join().unwrap();
            let second = world.reader(0, body);
            world.replace(2, 1, &freed);
            second.join().unwrap();
        });
    });
}

#[test]
fn coming_online_without_the_fence_is_caught() {
    let said = explore_faulty(5, || {
        let world = World::new(1);
        let reader = world.reader(0, |world, participant| {
            participant.online_without_fence();
            iterate(world, participant, 1);
        });
        world.replace(1, 1, &Count::new(0));
        reader.join().unwrap();
    });
    assert!(
        said.contains("after free") || said.contains("Causality violation"),
        "{said}"
    );
}

#[test]
fn looking_up_before_observing_is_caught() {
    let said = explore_faulty(5, || {
        let world = World::new(1);
        let reader = world.reader(0, |world, participant| {
            participant.online();
            let early = world.current.load(Relaxed);
            let observed = participant.observe();
            participant.quiescent(observed);
            world.objects[early].use_it();
        });
        world.replace(1, 2, &Count::new(0));
        reader.join().unwrap();
    });
    assert!(
        said.contains("after free") || said.contains("Causality violation"),
        "{said}"
    );
}
