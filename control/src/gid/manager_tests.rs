//! The manager in a registry, with an eye the tests hold shut.
use std::{
    sync::{
        Barrier, Mutex,
        atomic::AtomicUsize,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use super::*;
use crate::registry::Registry;

const PATIENCE: Duration = Duration::from_secs(20);

fn netdev(index: u32) -> Netdev {
    Netdev {
        index,
        name: format!("d{index}"),
        up: true,
        mtu: 1500,
        mac: None,
        addresses: Vec::new(),
    }
}

fn id(slot: u16) -> DeviceId {
    DeviceId { slot, generation: 0 }
}

fn all() -> Hints {
    Hints {
        all: true,
        ..Hints::default()
    }
}

/// A manager and its registry; each look says which interface it is at, and goes on when it is told what it sees.
struct Held {
    registry: Arc<Registry<()>>,
    manager: Arc<GidManager>,
    began: Receiver<u32>,
    see: Sender<Result<Option<Netdev>, ScanError>>,
}

fn held() -> Held {
    let (begins, began) = channel();
    let (see, seen) = channel();
    let manager = GidManager::start_with(Box::new(move |if_index| {
        begins.send(if_index).unwrap();
        seen.recv().unwrap()
    }));
    let (manager, registry) = (manager.unwrap(), Arc::new(Registry::default()));
    registry.add_client(&mut (), manager.clone());
    Held {
        registry,
        manager,
        began,
        see,
    }
}

impl Held {
    fn begins(&self) -> u32 {
        self.began.recv_timeout(PATIENCE).unwrap()
    }

    /// What is found next.
    fn found(&self) -> Vec<Found> {
        let start = Instant::now();
        loop {
            let found = self.manager.take_found();
            if !found.is_empty() {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "nothing is found");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_device_with_an_interface_is_looked_at_when_it_comes_and_when_the_kernel_hints() {
    let held = held();
    held.registry.add_device(&mut (), id(0), "rnic0", None);
    assert!(!held.manager.is_waiting(), "no interface, no look");
    held.registry.add_device(&mut (), id(1), "rnic1", Some(7));
    assert_eq!(held.begins(), 7);
    assert!(held.manager.is_waiting());
    held.see.send(Ok(Some(netdev(7)))).unwrap();
    let found = held.found();
    assert_eq!((found.len(), found[0].device), (1, id(1)));
    assert_eq!(found[0].netdev.as_ref().unwrap(), &Some(netdev(7)));
    assert!(!held.manager.is_waiting());
    held.manager.rescan(&Hints {
        interfaces: [8].into(),
        ..Hints::default()
    });
    held.manager.rescan(&Hints {
        interfaces: [7].into(),
        ..Hints::default()
    });
    assert_eq!(held.begins(), 7);
    held.see.send(Ok(None)).unwrap();
    assert!(matches!(held.found()[..], [Found { netdev: Ok(None), .. }]));
    assert!(
        held.began.try_recv().is_err(),
        "the hint about 8 was none about 7"
    );
}

#[test]
fn hints_before_a_look_begins_make_one_look_and_hints_during_it_make_another() {
    let held = held();
    held.registry.add_device(&mut (), id(0), "rnic0", Some(7));
    held.begins();
    for _ in 0..100 {
        held.manager.rescan(&all());
    }
    held.see.send(Ok(Some(netdev(7)))).unwrap();
    held.begins();
    held.see.send(Ok(Some(netdev(7)))).unwrap();
    // The queue is empty once a look at another device has begun.
    held.registry.add_device(&mut (), id(1), "rnic1", Some(9));
    assert_eq!(held.begins(), 9);
    held.see.send(Ok(None)).unwrap();
}

#[test]
fn a_look_that_failed_is_repeated_on_retry_alone() {
    let held = held();
    held.registry.add_device(&mut (), id(0), "rnic0", Some(7));
    held.begins();
    let error = std::io::Error::from(rustix::io::Errno::NOBUFS);
    held.see.send(Err(error.into())).unwrap();
    assert!(held.found()[0].netdev.is_err());
    held.manager.retry();
    held.begins();
    held.see.send(Ok(Some(netdev(7)))).unwrap();
    held.found();
    held.manager.retry();
    assert!(held.began.try_recv().is_err());
}

#[test]
fn what_was_found_about_a_removed_device_is_not_told() {
    let held = held();
    held.registry.add_device(&mut (), id(0), "rnic0", Some(7));
    held.begins();
    held.see.send(Ok(Some(netdev(7)))).unwrap();
    // Taken by nobody before the removal. A device that comes into the same slot is another.
    held.registry.remove_device(&mut (), id(0)).unwrap();
    let next = DeviceId {
        slot: 0,
        generation: 1,
    };
    held.registry.add_device(&mut (), next, "rnic0", Some(8));
    assert_eq!(held.begins(), 8);
    held.see.send(Ok(Some(netdev(8)))).unwrap();
    let found = held.found();
    assert!(found.iter().all(|found| found.device == next), "{found:?}");
}

#[test]
fn a_removal_cancels_what_is_queued_and_waits_for_the_look_that_runs() {
    let held = held();
    held.registry.add_device(&mut (), id(0), "rnic0", Some(7));
    held.registry.add_device(&mut (), id(1), "rnic1", Some(8));
    assert_eq!(held.begins(), 7);
    // 8 is queued behind 7, and goes unseen.
    held.registry.remove_device(&mut (), id(1)).unwrap();
    held.manager.rescan(&all());
    let removed = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (registry, flag) = (held.registry.clone(), removed.clone());
        scope.spawn(move || {
            registry.remove_device(&mut (), id(0)).unwrap();
            flag.store(true, Ordering::Release);
        });
        // While it waits the devices can be listed: a look may want to.
        while !held.registry.devices().is_empty() {
            std::thread::yield_now();
        }
        assert!(!removed.load(Ordering::Acquire), "the look still runs");
        held.see.send(Ok(Some(netdev(7)))).unwrap();
    });
    assert!(removed.load(Ordering::Acquire));
    assert!(held.manager.take_found().is_empty());
    held.manager.rescan(&all());
    assert!(held.began.try_recv().is_err(), "nothing runs on removed devices");
}

#[test]
fn devices_that_come_and_go_under_a_storm_of_hints_are_never_looked_at_after_their_removal() {
    let present = Arc::new(Mutex::new(std::collections::BTreeSet::new()));
    let wrong = Arc::new(AtomicUsize::new(0));
    let (seen, bad) = (present.clone(), wrong.clone());
    let manager = GidManager::start_with(Box::new(move |if_index| {
        if !seen.lock().unwrap().contains(&if_index) {
            bad.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Some(netdev(if_index)))
    }))
    .unwrap();
    let registry = Arc::new(Registry::<()>::default());
    registry.add_client(&mut (), manager.clone());
    let (start, done) = (Barrier::new(2), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            while !done.load(Ordering::Acquire) {
                manager.rescan(&all());
            }
        });
        start.wait();
        for generation in 0..300u16 {
            let (id, if_index) = (DeviceId { slot: 0, generation }, u32::from(generation) + 1);
            present.lock().unwrap().insert(if_index);
            registry.add_device(&mut (), id, "rnic0", Some(if_index));
            for found in manager.take_found() {
                assert_eq!(found.device, id);
            }
            registry.remove_device(&mut (), id).unwrap();
            present.lock().unwrap().remove(&if_index);
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
}
