//! The shared-memory protocols under loom: the code that runs, over modelled words. Each is also run with one
//! fence missing, and must then be caught losing a wake: that shows that the models can fail.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p rnic-abi --test loom --release --target-dir target/loom`
#![cfg(loom)]

use std::panic::catch_unwind;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;
use rnic_abi::protocol::{self, Word32, Word64};
use rnic_abi::{arm, event, event_kind};

/// One side's view of a shared u32; the side's fences are real or left out.
struct Word<const FENCED: bool>(Arc<AtomicU32>);

impl<const FENCED: bool> Word32 for Word<FENCED> {
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
        if FENCED {
            fence(order)
        }
    }
}

/// A shared u64.
struct Bits(Arc<AtomicU64>);

impl Word64 for Bits {
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_or(value, order)
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.0.swap(value, order)
    }
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
}

fn word(value: u32) -> Arc<AtomicU32> {
    Arc::new(AtomicU32::new(value))
}

fn bits() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(0))
}

/// Asserts that a broken variant is found out by losing a wake, and not by anything else.
fn must_lose_a_wake(model: fn()) {
    let found = catch_unwind(|| loom::model(model));
    let panic = found.expect_err("the variant without a fence passed: the model proves nothing");
    let text = match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic
            .downcast::<&str>()
            .map_or_else(|_| String::new(), |text| text.to_string()),
    };
    assert!(text.contains("lost wake"), "failed for another reason: {text}");
}

/// A client publishes a tail while a core stops looking at the queue: the core keeps the queue, or the client
/// kicks.
fn queue<const CLIENT: bool, const CORE: bool>() {
    let (tail, need_kick) = (word(0), word(0));
    let client = thread::spawn({
        let (tail, need_kick) = (Word::<CLIENT>(tail.clone()), Word::<CLIENT>(need_kick.clone()));
        move || protocol::publish_tail(&tail, 1, &need_kick)
    });
    let (tail, need_kick) = (Word::<CORE>(tail), Word::<CORE>(need_kick));
    let dropped = protocol::drop_queue(&tail, 0, &need_kick);
    if !dropped {
        protocol::keep_queue(&need_kick);
    }
    let kicked = client.join().unwrap();
    assert!(
        !dropped || kicked,
        "lost wake: the queue was dropped and the client did not kick"
    );
}

#[test]
fn a_dropped_queue_is_kicked() {
    loom::model(queue::<true, true>);
}

#[test]
fn without_the_clients_fence_a_dropped_queue_is_forgotten() {
    must_lose_a_wake(queue::<false, true>);
}

#[test]
fn without_the_cores_fence_a_dropped_queue_is_forgotten() {
    must_lose_a_wake(queue::<true, false>);
}

/// The slot that rings: not in the first word of level 0.
const SLOT: u32 = 70;

/// What a core finds when it looks at every doorbell.
fn look(level0: &Bits, level1: &Bits) -> bool {
    let words = protocol::take_doorbells(level1);
    if words == 0 {
        return false;
    }
    assert_eq!(words, 1 << (SLOT / 64));
    let slots = protocol::take_doorbells(level0);
    assert_eq!(
        slots,
        1 << (SLOT % 64),
        "lost wake: level 1 was set and level 0 was not"
    );
    true
}

/// A client rings while a core goes to sleep: the core sees the bit, or the client sees it sleep.
fn doorbell<const CLIENT: bool, const CORE: bool>() {
    let (level0, level1, sleeping) = (bits(), bits(), word(0));
    let client = thread::spawn({
        let (level0, level1) = (Bits(level0.clone()), Bits(level1.clone()));
        let sleeping = Word::<CLIENT>(sleeping.clone());
        move || protocol::ring_doorbell(&level0, &level1, SLOT, &sleeping)
    });
    protocol::announce_sleep(&Word::<CORE>(sleeping));
    let rung = look(&Bits(level0), &Bits(level1));
    let woken = client.join().unwrap();
    assert!(
        rung || woken,
        "lost wake: the core sleeps and the client did not wake it"
    );
}

#[test]
fn a_sleeping_core_is_woken() {
    loom::model(doorbell::<true, true>);
}

#[test]
fn without_the_clients_fence_a_sleeping_core_is_not_woken() {
    must_lose_a_wake(doorbell::<false, true>);
}

#[test]
fn without_the_cores_fence_a_sleeping_core_is_not_woken() {
    must_lose_a_wake(doorbell::<true, false>);
}

/// The whole way: a client posts while the core drops the queue and then goes to sleep. Whichever way the core
/// is told, it finds the entry.
#[test]
fn a_post_reaches_a_core_that_drops_the_queue_and_sleeps() {
    loom::model(|| {
        let (tail, need_kick, sleeping) = (word(0), word(0), word(0));
        let (level0, level1) = (bits(), bits());
        let client = thread::spawn({
            let words = [&tail, &need_kick, &sleeping].map(|word| Word::<true>(word.clone()));
            let (level0, level1) = (Bits(level0.clone()), Bits(level1.clone()));
            move || {
                let [tail, need_kick, sleeping] = words;
                protocol::publish_tail(&tail, 1, &need_kick)
                    && protocol::ring_doorbell(&level0, &level1, SLOT, &sleeping)
            }
        });
        let words = [tail.clone(), need_kick, sleeping].map(Word::<true>);
        let [tail_word, need_kick, sleeping] = &words;
        if protocol::drop_queue(tail_word, 0, need_kick) {
            protocol::announce_sleep(sleeping);
            if !look(&Bits(level0), &Bits(level1)) {
                assert!(
                    client.join().unwrap(),
                    "lost wake: the core sleeps beside a full queue"
                );
                return;
            }
        }
        assert_eq!(
            tail.load(Ordering::Acquire),
            1,
            "lost wake: told of an entry that is not there"
        );
        client.join().unwrap();
    });
}

/// A client arms a CQ and looks once more while the daemon completes: the client finds the completion, or the
/// daemon wakes it.
fn arming<const CLIENT: bool, const DAEMON: bool>() {
    let (tail, arm_word) = (word(0), word(arm::NONE));
    let daemon = thread::spawn({
        let (tail, arm_word) = (tail.clone(), Word::<DAEMON>(arm_word.clone()));
        move || {
            tail.store(1, Ordering::Release);
            protocol::take_arm(&arm_word, false)
        }
    });
    protocol::arm_cq(&Word::<CLIENT>(arm_word), arm::ANY);
    let found = tail.load(Ordering::Acquire) == 1;
    let woken = daemon.join().unwrap();
    assert!(found || woken, "lost wake: the client sleeps beside a completion");
}

#[test]
fn an_armed_queue_wakes() {
    loom::model(arming::<true, true>);
}

#[test]
fn without_the_clients_fence_an_armed_queue_does_not_wake() {
    must_lose_a_wake(arming::<false, true>);
}

#[test]
fn without_the_daemons_fence_an_armed_queue_does_not_wake() {
    must_lose_a_wake(arming::<true, false>);
}

#[test]
fn two_cores_that_complete_wake_once_for_one_arming() {
    loom::model(|| {
        let (tails, arm_word) = ([word(0), word(0)], word(arm::NONE));
        let cores = [0, 1].map(|core: usize| {
            let (tail, arm_word) = (tails[core].clone(), Word::<true>(arm_word.clone()));
            thread::spawn(move || {
                tail.store(1, Ordering::Release);
                protocol::take_arm(&arm_word, false)
            })
        });
        protocol::arm_cq(&Word::<true>(arm_word), arm::ANY);
        let found = tails
            .iter()
            .filter(|tail| tail.load(Ordering::Acquire) == 1)
            .count();
        let wakes = cores
            .into_iter()
            .map(|core| core.join().unwrap())
            .filter(|woke| *woke)
            .count();
        assert!(wakes <= 1, "{wakes} wakes for one arming");
        assert!(
            found == 2 || wakes == 1,
            "lost wake: the client sleeps beside a completion"
        );
    });
}

#[test]
fn a_queue_armed_for_solicited_completions_stays_armed_through_others() {
    loom::model(|| {
        let arm_word = word(arm::NONE);
        let daemon = thread::spawn({
            let arm_word = Word::<true>(arm_word.clone());
            move || [false, true, true].map(|solicited| protocol::take_arm(&arm_word, solicited))
        });
        protocol::arm_cq(&Word::<true>(arm_word.clone()), arm::SOLICITED);
        let [other, first, second] = daemon.join().unwrap();
        assert!(!other, "an ordinary completion woke");
        assert!(!first || !second, "two wakes for one arming");
        let left = arm_word.load(Ordering::Relaxed);
        assert_eq!(left == arm::NONE, first || second, "disarmed exactly by a wake");
    });
}

/// A client arms a CQ while the daemon completes to it, has the CQ resized, and goes to sleep: whatever came since it
/// looked, in the old place or in the new, it finds or is woken for, and once.
fn resizing<const CLIENT: bool, const DAEMON: bool>() {
    let (old_tail, new_tail) = (word(0), word(0));
    let (old_arm, new_arm) = (word(arm::NONE), word(arm::NONE));
    let complete = |tail: &Arc<AtomicU32>, arm_word: &Arc<AtomicU32>| {
        let (tail, arm_word) = (tail.clone(), Word::<DAEMON>(arm_word.clone()));
        thread::spawn(move || {
            tail.store(1, Ordering::Release);
            protocol::take_arm(&arm_word, false)
        })
    };
    let before = complete(&old_tail, &old_arm);
    protocol::arm_cq(&Word::<CLIENT>(old_arm.clone()), arm::ANY);
    let found_before = old_tail.load(Ordering::Acquire) == 1;
    // The resize is answered when no core completes to the old place any more.
    let woken_before = before.join().unwrap();
    let after = complete(&new_tail, &new_arm);
    let kind = protocol::move_arm(&Word::<CLIENT>(old_arm), &Word::<CLIENT>(new_arm.clone()));
    let found = kind != arm::NONE && new_tail.load(Ordering::Acquire) == 1;
    let woken_by_itself = found && protocol::take_arm(&Word::<CLIENT>(new_arm), false);
    let woken_after = after.join().unwrap();
    let wakes = [woken_before, woken_by_itself, woken_after];
    let wakes = wakes.into_iter().filter(|woken| *woken).count();
    assert!(wakes <= 1, "{wakes} wakes for one arming");
    assert!(
        found_before && kind == arm::NONE || wakes == 1,
        "lost wake: the client sleeps beside a completion"
    );
}

#[test]
fn an_arming_goes_along_with_a_resized_queue() {
    loom::model(resizing::<true, true>);
}

#[test]
fn without_the_clients_fence_the_arming_of_a_resized_queue_is_lost() {
    must_lose_a_wake(resizing::<false, true>);
}

#[test]
fn without_the_daemons_fence_the_arming_of_a_resized_queue_is_lost() {
    must_lose_a_wake(resizing::<true, false>);
}

/// A moderated CQ: the daemon waits for a second completion if the client has armed when the first is there, else for
/// nothing. The client finds the first, or is woken in the end.
fn moderation<const CLIENT: bool, const DAEMON: bool>() {
    let (tail, arm_word) = (word(0), word(arm::NONE));
    let daemon = thread::spawn({
        let (tail, arm_word) = (tail.clone(), Word::<DAEMON>(arm_word.clone()));
        move || {
            tail.store(1, Ordering::Release);
            // The time is over at once, for want of a second completion.
            protocol::is_armed(&arm_word, false) && protocol::take_arm(&arm_word, false)
        }
    });
    protocol::arm_cq(&Word::<CLIENT>(arm_word), arm::ANY);
    let found = tail.load(Ordering::Acquire) == 1;
    let woken = daemon.join().unwrap();
    assert!(found || woken, "lost wake: the client sleeps beside a completion");
}

#[test]
fn a_moderated_queue_wakes_whoever_has_armed_it() {
    loom::model(moderation::<true, true>);
}

#[test]
fn without_the_clients_fence_a_moderated_queue_does_not_wake() {
    must_lose_a_wake(moderation::<false, true>);
}

#[test]
fn without_the_daemons_fence_a_moderated_queue_does_not_wake() {
    must_lose_a_wake(moderation::<true, false>);
}

/// How the client takes a slot.
#[derive(Copy, Clone, PartialEq)]
enum Taking {
    /// As the library does.
    Exchange,
    /// By a swap, whatever has happened since the slot was read.
    Swap,
}

/// The events of one slot whose object fails, is destroyed and followed by another that fails in the same way,
/// while the client reads: the cause it is told is that of the event, and every event is told or withdrawn,
/// once.
fn events(taking: Taking) {
    let (pending, cause) = (word(0), word(0));
    let (tail, head) = (word(0), word(0));
    let ring = [word(0), word(0)];
    let client = thread::spawn({
        let (pending, cause) = (Word::<true>(pending.clone()), cause.clone());
        let (tail, head) = (tail.clone(), head.clone());
        move || {
            let mut told = Vec::new();
            for index in 0..2u32 {
                if tail.load(Ordering::Acquire) == index {
                    break;
                }
                head.store(index + 1, Ordering::Release);
                let read = || cause.load(Ordering::Relaxed);
                let (kinds, of) = match taking {
                    Taking::Exchange => event::take(&pending, read),
                    Taking::Swap => {
                        let of = read();
                        let kinds = pending.swap(0, Ordering::AcqRel) & event_kind::ALL;
                        (kinds, (kinds != 0).then_some(of))
                    }
                };
                told.extend(
                    (0..32)
                        .filter(|bit| kinds >> bit & 1 != 0)
                        .map(|bit| (1 << bit, of)),
                );
            }
            told
        }
    });
    let pending = Word::<true>(pending);
    let mut pushed = 0;
    let mut raise = |generation, kinds| {
        let raised = event::raise(&pending, generation, kinds, || {
            cause.store(generation, Ordering::Relaxed)
        });
        if raised.push {
            assert!(pushed - head.load(Ordering::Acquire) < 2, "the ring overflows");
            ring[pushed as usize & 1].store(0, Ordering::Relaxed);
            pushed += 1;
            tail.store(pushed, Ordering::Release);
        }
        raised.reported
    };
    let reported = raise(1, event_kind::QP_FATAL);
    let withdrawn = event::withdraw(&pending);
    // From here on the slot is the next object's.
    let reported_of_next = raise(2, event_kind::QP_FATAL);
    let mut told = client.join().unwrap();
    // What the client would find on its next look.
    let (kinds, of) = event::take(&pending, || cause.load(Ordering::Relaxed));
    if kinds != 0 {
        told.push((kinds, of));
    }
    let of = |generation| told.iter().filter(|(_, of)| *of == Some(generation)).count() as u32;
    assert_eq!(
        of(1),
        reported - withdrawn,
        "an event of the wrong object: {told:?}"
    );
    assert_eq!(of(2), reported_of_next, "an event of the wrong object: {told:?}");
}

#[test]
fn no_event_is_lost_doubled_or_told_of_another_object() {
    loom::model(|| events(Taking::Exchange));
}

#[test]
fn a_client_that_swaps_blindly_tells_of_the_wrong_object() {
    let found = catch_unwind(|| loom::model(|| events(Taking::Swap)));
    let panic = found.expect_err("the blind variant passed: the model proves nothing");
    let text = panic.downcast::<String>().map(|text| *text).unwrap_or_default();
    assert!(text.contains("wrong object"), "failed for another reason: {text}");
}

/// Two errors of one object while the client takes the first: each is told with its own cause, or both with that
/// of the first.
#[test]
fn an_event_has_the_cause_of_the_first_it_is_told_with() {
    loom::model(|| {
        let (pending, cause) = (word(0), word(0));
        let raise = {
            let (pending, cause) = (Word::<true>(pending.clone()), cause.clone());
            move |kinds| event::raise(&pending, 1, kinds, || cause.store(kinds, Ordering::Relaxed))
        };
        assert!(raise(event_kind::QP_ACCESS_ERR).push);
        let client = thread::spawn({
            let (pending, cause) = (Word::<true>(pending.clone()), cause.clone());
            move || event::take(&pending, || cause.load(Ordering::Relaxed))
        });
        let second = raise(event_kind::QP_FATAL);
        let both = event_kind::QP_ACCESS_ERR | event_kind::QP_FATAL;
        let first = client.join().unwrap();
        let next = event::take(&Word::<true>(pending), || cause.load(Ordering::Relaxed));
        let (access, fatal) = (event_kind::QP_ACCESS_ERR, event_kind::QP_FATAL);
        if second.push {
            assert_eq!(first, (access, Some(access)));
            assert_eq!(next, (fatal, Some(fatal)), "a cause of the event before");
        } else {
            assert_eq!((first, next), ((both, Some(access)), (0, None)));
        }
    });
}

/// An error of an object while the client takes what is none: it is told once, with its own cause.
#[test]
fn an_error_behind_what_is_no_error_is_told_with_its_own_cause() {
    loom::model(|| {
        let (pending, cause) = (word(0), word(0));
        let raise = {
            let (pending, cause) = (Word::<true>(pending.clone()), cause.clone());
            move |kinds| event::raise(&pending, 1, kinds, || cause.store(kinds, Ordering::Relaxed))
        };
        raise(event_kind::COMM_EST);
        let client = thread::spawn({
            let (pending, cause) = (Word::<true>(pending.clone()), cause.clone());
            move || event::take(&pending, || cause.load(Ordering::Relaxed))
        });
        raise(event_kind::QP_FATAL);
        let first = client.join().unwrap();
        let next = event::take(&Word::<true>(pending), || cause.load(Ordering::Relaxed));
        let errors = [first, next].map(|(kinds, of)| (kinds & event_kind::QP_FATAL != 0).then_some(of));
        let told: Vec<_> = errors.into_iter().flatten().collect();
        assert_eq!(told, [Some(event_kind::QP_FATAL)]);
    });
}

/// One side's view of a ring's index; its Release stores and Acquire loads are real or left out.
struct Index<const ORDERED: bool>(Arc<AtomicU32>);

impl<const ORDERED: bool> Word32 for Index<ORDERED> {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(if ORDERED { order } else { Ordering::Relaxed })
    }
    fn store(&self, value: u32, order: Ordering) {
        self.0
            .store(value, if ORDERED { order } else { Ordering::Relaxed })
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

/// Entries of a work queue or a completion queue: memory that both sides may touch, and never at once.
struct Entries([loom::cell::UnsafeCell<u32>; 2]);

// SAFETY: loom's cells panic on concurrent accesses before they do harm.
unsafe impl Sync for Entries {}
// SAFETY: as above.
unsafe impl Send for Entries {}

/// A producer puts three entries through a ring of two while the consumer takes what it sees: each arrives whole,
/// once and in order. The parameters say which index is ordered.
fn ring<const TAIL: bool, const HEAD: bool>() {
    const DEPTH: u32 = 2;
    // Near the end of the numbers: indices run freely.
    const START: u32 = u32::MAX;
    let (tail, head) = (word(START), word(START));
    let entries = Arc::new(Entries([0, 0].map(loom::cell::UnsafeCell::new)));
    let at = |index: u32| (index & (DEPTH - 1)) as usize;
    let producer = thread::spawn({
        let (tail, head) = (Index::<TAIL>(tail.clone()), Index::<HEAD>(head.clone()));
        let entries = entries.clone();
        move || {
            let mut next = START;
            for value in 1..=3 {
                if next.wrapping_sub(protocol::given_back(&head)) >= DEPTH {
                    break;
                }
                // SAFETY: loom's cell panics if the consumer reads it now; that is what is being tested.
                entries.0[at(next)].with_mut(|entry| unsafe { *entry = value });
                next = next.wrapping_add(1);
                protocol::publish(&tail, next);
            }
            next
        }
    });
    let (tail, head) = (Index::<TAIL>(tail), Index::<HEAD>(head));
    let (mut next, mut expected) = (START, 1);
    let mut take = |next: &mut u32| {
        let available = protocol::available(&tail, *next, DEPTH).expect("nobody forged the tail");
        for _ in 0..available {
            // SAFETY: as above, for the producer writing it.
            let value = entries.0[at(*next)].with(|entry| unsafe { *entry });
            assert_eq!(value, expected, "another entry than the one put in");
            expected += 1;
            *next = next.wrapping_add(1);
            protocol::give_back(&head, *next);
        }
    };
    take(&mut next);
    take(&mut next);
    let put = producer.join().unwrap();
    take(&mut next);
    assert_eq!(next, put, "an entry was lost");
}

fn must_be_caught(model: fn()) {
    let found = catch_unwind(|| loom::model(model));
    let panic = found.expect_err("the variant without an order passed: the model proves nothing");
    let text = match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic
            .downcast::<&str>()
            .map_or_else(|_| String::new(), |text| text.to_string()),
    };
    let known = ["Causality violation", "another entry"];
    assert!(
        known.iter().any(|word| text.contains(word)),
        "failed for another reason: {text}"
    );
}

#[test]
fn entries_of_a_ring_arrive_whole_once_and_in_order() {
    loom::model(ring::<true, true>);
}

#[test]
fn a_tail_published_without_order_shows_entries_that_are_not_written() {
    must_be_caught(ring::<false, true>);
}

#[test]
fn a_head_given_back_without_order_lets_entries_be_overwritten_while_they_are_read() {
    must_be_caught(ring::<true, false>);
}

#[test]
fn a_forged_tail_is_no_number_of_entries() {
    loom::model(|| {
        let forged = Index::<true>(word(3));
        assert_eq!(protocol::available(&forged, 0, 2), None);
        assert_eq!(protocol::available(&forged, 1, 2), Some(2));
        assert_eq!(protocol::available(&forged, 4, 2), None, "behind the consumer");
    });
}
