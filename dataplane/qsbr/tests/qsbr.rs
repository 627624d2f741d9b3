//! Participants and epochs, one thread at a time, and a stress run.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread;

use rnic_qsbr::{Epoch, ParticipantState, Qsbr, Reclaimer, RegisterError};

#[test]
fn epochs_start_at_one_and_grow_by_one() {
    let qsbr = Qsbr::new(1);
    assert_eq!(qsbr.epoch(), Epoch::FIRST);
    assert_eq!(Epoch::FIRST.get(), 1);
    assert_eq!(qsbr.advance().get(), 2);
    assert_eq!(qsbr.epoch().get(), 2);
}

#[test]
fn an_id_is_held_by_one_handle_at_a_time() {
    let qsbr = Arc::new(Qsbr::new(2));
    let first = qsbr.register(1).unwrap();
    assert_eq!(first.id(), 1);
    assert_eq!(qsbr.register(1).unwrap_err(), RegisterError::Taken { id: 1 });
    drop(first);
    assert!(qsbr.register(1).is_ok());
}

#[test]
fn an_id_out_of_range_is_refused() {
    let qsbr = Arc::new(Qsbr::new(2));
    let error = qsbr.register(2).unwrap_err();
    assert_eq!(
        error,
        RegisterError::NoSuchId {
            id: 2,
            participants: 2
        }
    );
    assert!(error.to_string().contains("made for 2"), "{error}");
    assert_eq!(qsbr.state(2), ParticipantState::Unregistered);
}

#[test]
fn state_follows_the_participant() {
    let qsbr = Arc::new(Qsbr::new(1));
    assert_eq!(qsbr.state(0), ParticipantState::Unregistered);
    let mut participant = qsbr.register(0).unwrap();
    assert_eq!(qsbr.state(0), ParticipantState::Offline);
    assert!(!participant.is_online());
    let epoch = participant.online();
    assert!(participant.is_online());
    assert_eq!(qsbr.state(0), ParticipantState::Online { reported: epoch });
    participant.offline();
    assert_eq!(qsbr.state(0), ParticipantState::Offline);
    participant.online();
    drop(participant);
    assert_eq!(qsbr.state(0), ParticipantState::Unregistered);
}

#[test]
fn a_grace_period_ends_when_every_online_participant_has_reported_it() {
    let qsbr = Arc::new(Qsbr::new(4));
    let mut online: Vec<_> = (0..3).map(|id| qsbr.register(id).unwrap()).collect();
    let _offline = qsbr.register(3).unwrap();
    for participant in &mut online {
        participant.online();
    }
    let epoch = qsbr.advance();
    for (id, participant) in online.iter_mut().enumerate() {
        assert!(!qsbr.check(epoch));
        assert_eq!(qsbr.passed(), Epoch::FIRST);
        assert!(qsbr.laggards(epoch).eq(id..3));
        let observed = participant.observe();
        participant.quiescent(observed);
    }
    assert!(qsbr.check(epoch));
    assert_eq!(qsbr.passed(), epoch);
    assert_eq!(qsbr.laggards(epoch).count(), 0);
}

#[test]
fn an_iteration_begun_before_the_publication_does_not_end_its_grace_period() {
    let qsbr = Arc::new(Qsbr::new(1));
    let mut participant = qsbr.register(0).unwrap();
    participant.online();
    let observed = participant.observe();
    let epoch = qsbr.advance();
    participant.quiescent(observed);
    assert!(!qsbr.check(epoch));
    let observed = participant.observe();
    participant.quiescent(observed);
    assert!(qsbr.check(epoch));
}

#[test]
fn nobody_online_means_no_waiting() {
    let qsbr = Arc::new(Qsbr::new(2));
    let mut participant = qsbr.register(0).unwrap();
    participant.online();
    let epoch = qsbr.advance();
    assert!(!qsbr.check(epoch));
    participant.offline();
    assert!(qsbr.check(epoch));
    assert_eq!(qsbr.passed(), epoch);
}

#[test]
fn dropping_the_handle_ends_the_waiting_for_it() {
    let qsbr = Arc::new(Qsbr::new(1));
    let mut participant = qsbr.register(0).unwrap();
    participant.online();
    let epoch = qsbr.advance();
    drop(participant);
    assert!(qsbr.check(epoch));
}

/// Freed objects are kept and marked, so that a use after free is seen rather than undefined.
#[test]
fn readers_under_load_see_no_freed_object() {
    const READERS: usize = 3;
    const ROUNDS: u64 = if cfg!(miri) { 20 } else { 20_000 };
    const FREED: u64 = u64::MAX;

    let objects: Vec<AtomicU64> = (0..=ROUNDS).map(AtomicU64::new).collect();
    let current = AtomicPtr::new((&raw const objects[0]).cast_mut());
    let qsbr = Arc::new(Qsbr::new(READERS));
    let stop = AtomicBool::new(false);

    thread::scope(|scope| {
        for id in 0..READERS {
            let mut participant = qsbr.register(id).unwrap();
            let (current, stop) = (&current, &stop);
            scope.spawn(move || {
                let mut iterations = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    let observed = if participant.is_online() {
                        participant.observe()
                    } else {
                        participant.online()
                    };
                    // SAFETY: all objects outlive the scope.
                    let object = unsafe { &*current.load(Ordering::Relaxed) };
                    let first = object.load(Ordering::Relaxed);
                    std::hint::spin_loop();
                    assert_ne!(first, FREED);
                    assert_eq!(object.load(Ordering::Relaxed), first);
                    participant.quiescent(observed);
                    iterations += 1;
                    if iterations.is_multiple_of(7) {
                        participant.offline();
                        thread::yield_now();
                    }
                }
            });
        }
        let mut reclaimer = Reclaimer::new();
        let mut freed = 0;
        for next in &objects[1..] {
            let old = current.swap((&raw const *next).cast_mut(), Ordering::AcqRel);
            reclaimer.retire(old, qsbr.advance(), size_of::<u64>());
            while reclaimer.len() > 16 {
                freed += reclaimer.poll(&qsbr, |object| {
                    // SAFETY: as above.
                    unsafe { &*object }.store(FREED, Ordering::Relaxed);
                    Ok(())
                });
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(freed > 0);
    });
}
