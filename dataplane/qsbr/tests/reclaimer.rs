//! The control thread's queue of what waits for a grace period.
#![cfg(not(loom))]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rnic_qsbr::{Participant, Qsbr, Reclaimer};

fn one_reader() -> (Arc<Qsbr>, Participant) {
    let qsbr = Arc::new(Qsbr::new(1));
    let mut participant = qsbr.register(0).unwrap();
    participant.online();
    (qsbr, participant)
}

fn pass(participant: &mut Participant) {
    let observed = participant.observe();
    participant.quiescent(observed);
}

fn take_into<T>(freed: &mut Vec<T>) -> impl FnMut(T) -> Result<(), T> {
    |item| {
        freed.push(item);
        Ok(())
    }
}

#[test]
fn items_are_freed_in_order_once_their_epoch_has_passed() {
    let (qsbr, mut participant) = one_reader();
    let mut reclaimer = Reclaimer::new();
    let mut freed = Vec::new();
    reclaimer.retire("a", qsbr.advance(), 10);
    reclaimer.retire("b", qsbr.advance(), 20);
    assert_eq!(reclaimer.poll(&qsbr, take_into(&mut freed)), 0);
    assert_eq!((reclaimer.len(), reclaimer.bytes_waiting()), (2, 30));
    pass(&mut participant);
    reclaimer.retire("c", qsbr.advance(), 40);
    assert_eq!(reclaimer.poll(&qsbr, take_into(&mut freed)), 2);
    assert_eq!(freed, ["a", "b"]);
    assert_eq!((reclaimer.len(), reclaimer.bytes_waiting()), (1, 40));
    pass(&mut participant);
    assert_eq!(reclaimer.poll(&qsbr, take_into(&mut freed)), 1);
    assert!(reclaimer.is_empty());
    assert_eq!(reclaimer.bytes_waiting(), 0);
}

#[test]
fn refused_items_are_offered_again_before_later_ones() {
    let (qsbr, mut participant) = one_reader();
    let mut reclaimer = Reclaimer::new();
    for item in 0..4 {
        reclaimer.retire(item, qsbr.advance(), 1);
    }
    pass(&mut participant);
    assert_eq!(
        reclaimer.poll(&qsbr, |item| if item % 2 == 0 { Err(item) } else { Ok(()) }),
        2
    );
    assert_eq!((reclaimer.len(), reclaimer.bytes_waiting()), (2, 2));
    reclaimer.retire(4, qsbr.advance(), 1);
    pass(&mut participant);
    let mut freed = Vec::new();
    assert_eq!(reclaimer.poll(&qsbr, take_into(&mut freed)), 3);
    assert_eq!(freed, [0, 2, 4]);
}

#[test]
fn a_snapshot_with_another_owner_is_kept_until_it_is_the_last() {
    let (qsbr, mut participant) = one_reader();
    let mut reclaimer = Reclaimer::new();
    let snapshot = Arc::new(());
    let other = Arc::clone(&snapshot);
    reclaimer.retire(snapshot, qsbr.advance(), 1);
    pass(&mut participant);
    let free = |mut snapshot: Arc<()>| {
        if Arc::get_mut(&mut snapshot).is_some() {
            Ok(())
        } else {
            Err(snapshot)
        }
    };
    assert_eq!(reclaimer.poll(&qsbr, free), 0);
    drop(other);
    assert_eq!(reclaimer.poll(&qsbr, free), 1);
}

#[test]
fn an_item_retired_late_for_an_early_epoch_is_not_held_up_by_later_epochs() {
    let (qsbr, mut participant) = one_reader();
    let mut reclaimer = Reclaimer::new();
    let early = qsbr.advance();
    pass(&mut participant);
    let late = qsbr.advance();
    reclaimer.retire("late", late, 1);
    reclaimer.retire("early", early, 1);
    let mut freed = Vec::new();
    assert_eq!(reclaimer.poll(&qsbr, take_into(&mut freed)), 1);
    assert_eq!(freed, ["early"]);
    assert_eq!(reclaimer.oldest(Instant::now()).unwrap().epoch, late);
}

#[test]
fn oldest_tells_for_how_long_and_for_which_epoch() {
    let (qsbr, _participant) = one_reader();
    let mut reclaimer = Reclaimer::new();
    assert_eq!(reclaimer.oldest(Instant::now()), None);
    let epoch = qsbr.advance();
    reclaimer.retire((), epoch, 1);
    reclaimer.retire((), qsbr.advance(), 1);
    let oldest = reclaimer.oldest(Instant::now() + Duration::from_secs(5)).unwrap();
    assert_eq!(oldest.epoch, epoch);
    assert!(oldest.age >= Duration::from_secs(5));
    assert!(qsbr.laggards(oldest.epoch).eq([0]));
}

#[test]
fn many_items_pass_in_one_poll() {
    let (qsbr, mut participant) = one_reader();
    let mut reclaimer = Reclaimer::new();
    let epoch = qsbr.advance();
    for item in 0..1000 {
        reclaimer.retire(item, epoch, 64);
    }
    assert_eq!(reclaimer.bytes_waiting(), 64_000);
    pass(&mut participant);
    assert_eq!(reclaimer.poll(&qsbr, |_| Ok(())), 1000);
}
