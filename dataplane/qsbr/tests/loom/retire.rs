//! Handles on their way from a poll core to the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};

use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;
use rnic_qsbr::{NoPage, Qsbr, Reclaimer, retire_channel};

use crate::harness::{Object, explore, explore_faulty};

#[test]
fn handles_arrive_once_and_in_order() {
    explore(5, || {
        let (mut cache, mut collector) = retire_channel::<u32>(2, 1);
        let core = thread::spawn(move || {
            let refused: Vec<u32> = (0..4)
                .filter_map(|n| cache.push(n).err())
                .map(|NoPage(n)| n)
                .collect();
            cache.flush();
            (refused, cache)
        });
        let mut got = Vec::new();
        for _ in 0..2 {
            collector.collect(|n| got.push(n));
        }
        let (refused, _cache) = core.join().unwrap();
        collector.collect(|n| got.push(n));
        assert!(got.is_sorted(), "{got:?}");
        let mut all = [got, refused].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    });
}

/// When the control thread begins the epoch that a batch waits for.
#[derive(Clone, Copy, PartialEq)]
enum Epoch {
    AfterCollecting,
    /// Wrong: an object may be unpublished and retired between the two.
    BeforeCollecting,
}

/// Core 0 unpublishes and retires; core 1 looks up; the control thread begins the epoch on core 0's behalf.
fn retire_beside_a_reader(when: Epoch, freed: &Count) {
    let qsbr = Arc::new(Qsbr::new(1));
    let objects = Arc::new([Object::new(), Object::new()]);
    let current = Arc::new(AtomicUsize::new(0));
    let (mut cache, mut collector) = retire_channel::<usize>(1, 1);

    let retiring = {
        let current = Arc::clone(&current);
        thread::spawn(move || {
            cache.push(current.swap(1, Relaxed)).expect("the page is free");
            cache
        })
    };
    let reading = {
        let mut participant = qsbr.register(0).unwrap();
        let (objects, current) = (Arc::clone(&objects), Arc::clone(&current));
        thread::spawn(move || {
            let mut observed = participant.online();
            for _ in 0..2 {
                objects[current.load(Relaxed)].use_it();
                participant.quiescent(observed);
                observed = participant.observe();
            }
        })
    };

    let mut reclaimer = Reclaimer::new();
    let mut batch = Vec::new();
    let early = (when == Epoch::BeforeCollecting).then(|| qsbr.advance());
    collector.collect(|object| batch.push(object));
    let epoch = early.unwrap_or_else(|| qsbr.advance());
    batch
        .into_iter()
        .for_each(|object| reclaimer.retire(object, epoch, 1));
    let free = |object: usize| {
        objects[object].free();
        Ok(())
    };
    freed.fetch_add(reclaimer.poll(&qsbr, free), SeqCst);
    drop(retiring.join().unwrap());
    reading.join().unwrap();
}

#[test]
fn object_retired_by_one_core_outlives_its_use_on_another() {
    let freed = Arc::new(Count::new(0));
    let count = Arc::clone(&freed);
    explore(3, move || retire_beside_a_reader(Epoch::AfterCollecting, &count));
    assert!(freed.load(SeqCst) > 0, "no execution reached the free");
}

#[test]
fn beginning_the_epoch_before_the_collection_is_caught() {
    let said = explore_faulty(3, || {
        retire_beside_a_reader(Epoch::BeforeCollecting, &Count::new(0))
    });
    assert!(
        said.contains("after free") || said.contains("Causality violation"),
        "{said}"
    );
}
