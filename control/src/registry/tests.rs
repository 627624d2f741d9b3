use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use super::*;

/// What happened, in order.
type Log = Vec<String>;

fn id(slot: u16) -> DeviceId {
    DeviceId { slot, generation: 0 }
}

fn device(id: DeviceId, name: &str, if_index: Option<u32>) -> Arc<Entry> {
    Arc::new(Entry::new(id, name, if_index))
}

/// Writes down what it is told.
struct Scribe(&'static str);

impl Client<Log> for Scribe {
    fn name(&self) -> &'static str {
        self.0
    }

    fn add(&self, log: &mut Log, on: &Arc<Attachment>) {
        log.push(format!("{} + {}", self.0, on.device.name));
    }

    fn remove(&self, log: &mut Log, on: &Arc<Attachment>) {
        log.push(format!("{} - {} {:?}", self.0, on.device.name, on.device.state()));
    }
}

/// Hands its attachments to the test.
struct Working {
    worker: Worker,
    attached: Mutex<Vec<Arc<Attachment>>>,
    flush: bool,
}

impl Working {
    fn new(flush: bool) -> Arc<Self> {
        Arc::new(Working {
            worker: Worker::start("rnic-test-work").unwrap(),
            attached: Mutex::default(),
            flush,
        })
    }

    fn on(&self, index: usize) -> Arc<Attachment> {
        self.attached.lock().unwrap()[index].clone()
    }

    fn submit(&self, index: usize, task: impl FnOnce() + Send + 'static) -> Result<(), Detached> {
        self.on(index).work.as_ref().unwrap().submit(task)
    }
}

impl Client<Log> for Working {
    fn name(&self) -> &'static str {
        "working"
    }

    fn queue(&self) -> Option<&WorkQueue> {
        Some(self.worker.queue())
    }

    fn add(&self, _: &mut Log, on: &Arc<Attachment>) {
        self.attached.lock().unwrap().push(on.clone());
    }

    fn remove(&self, _: &mut Log, on: &Arc<Attachment>) {
        if self.flush {
            on.work.as_ref().unwrap().flush();
        }
    }
}

/// A task that says that it has begun and waits to be let go.
fn held() -> (impl FnOnce() + Send + 'static, Receiver<()>, Sender<()>) {
    let (begun, begins) = channel();
    let (release, released) = channel::<()>();
    let task = move || {
        begun.send(()).unwrap();
        let _ = released.recv();
    };
    (task, begins, release)
}

#[test]
fn clients_and_devices_learn_of_each_other_whoever_comes_first() {
    let registry = Registry::default();
    let mut log = Log::new();
    registry.add_client(&mut log, Arc::new(Scribe("a")));
    registry.announce(&mut log, device(id(0), "rnic0", None));
    let b = registry.add_client(&mut log, Arc::new(Scribe("b")));
    registry.announce(&mut log, device(id(1), "rnic1", None));
    assert_eq!(log, ["a + rnic0", "b + rnic0", "a + rnic1", "b + rnic1"]);
    log.clear();
    let device = registry.remove_device(&mut log, id(0)).unwrap();
    assert_eq!(
        log,
        ["b - rnic0 Removing", "a - rnic0 Removing"],
        "the latest first"
    );
    registry.gone(&device);
    assert_eq!(device.state(), DeviceState::Gone);
    log.clear();
    assert!(registry.remove_client(&mut log, b));
    assert!(!registry.remove_client(&mut log, b));
    assert_eq!(log, ["b - rnic1 Present"]);
    let names: Vec<_> = registry.devices().iter().map(|d| d.name.clone()).collect();
    assert_eq!(names, ["rnic1"]);
}

#[test]
fn an_unknown_or_removed_device_is_not_removed_again() {
    let registry = Registry::default();
    let mut log = Log::new();
    assert_eq!(
        registry.remove_device(&mut log, id(3)).err(),
        Some(RemoveError::Unknown)
    );
    registry.announce(&mut log, device(id(3), "rnic3", None));
    registry.remove_device(&mut log, id(3)).unwrap();
    assert_eq!(
        registry.remove_device(&mut log, id(3)).err(),
        Some(RemoveError::Unknown)
    );
    let newer = DeviceId {
        slot: 3,
        generation: 1,
    };
    registry.announce(&mut log, device(newer, "rnic3", None));
    assert_eq!(
        registry.remove_device(&mut log, id(3)).err(),
        Some(RemoveError::Unknown),
        "the older one"
    );
    assert!(registry.remove_device(&mut log, newer).is_ok());
}

#[test]
fn a_device_being_removed_is_in_no_scan_and_cannot_be_removed_by_a_second() {
    struct Looks(Arc<Registry<Log>>);
    impl Client<Log> for Looks {
        fn name(&self) -> &'static str {
            "looks"
        }
        fn add(&self, _: &mut Log, _: &Arc<Attachment>) {}
        fn remove(&self, log: &mut Log, on: &Arc<Attachment>) {
            // A scan under the client list's lock: the device list has its own.
            log.push(format!("{} present", self.0.devices().len()));
            assert!(!on.device.is_present());
        }
    }
    let registry = Arc::new(Registry::default());
    let mut log = Log::new();
    registry.add_client(&mut log, Arc::new(Looks(registry.clone())));
    registry.announce(&mut log, device(id(0), "rnic0", None));
    registry.announce(&mut log, device(id(1), "rnic1", None));
    registry.remove_device(&mut log, id(0)).unwrap();
    assert_eq!(log, ["1 present"]);
}

#[test]
fn memory_outlives_use_and_says_nothing_about_it() {
    let registry = Registry::default();
    let mut log = Log::new();
    let kept = device(id(0), "rnic0", Some(7));
    registry.announce(&mut log, kept.clone());
    registry.remove_device(&mut log, id(0)).unwrap();
    // However many references there are: it may not be used, and its memory is there.
    assert_eq!((kept.state(), kept.if_index), (DeviceState::Removing, Some(7)));
    assert!(registry.devices().is_empty());
}

#[test]
fn when_a_removal_returns_what_ran_has_ended_and_what_was_queued_never_begins() {
    let registry = Arc::new(Registry::default());
    let client = Working::new(false);
    registry.add_client(&mut Log::new(), client.clone());
    registry.announce(&mut Log::new(), device(id(0), "rnic0", None));
    registry.announce(&mut Log::new(), device(id(1), "rnic1", None));
    let (task, begins, release) = held();
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    client
        .submit(0, move || {
            task();
            flag.store(true, Ordering::SeqCst);
        })
        .unwrap();
    client.submit(0, || panic!("cancelled work has run")).unwrap();
    let (other, seen) = channel();
    client.submit(1, move || other.send(()).unwrap()).unwrap();
    begins.recv().unwrap();
    let remover = {
        let registry = registry.clone();
        std::thread::spawn(move || registry.remove_device(&mut Log::new(), id(0)).map(drop))
    };
    // From the outside only this tells that the removal has begun.
    while client.submit(0, || ()).is_ok() {
        assert!(!remover.is_finished(), "work is taken on a device that is gone");
        std::thread::yield_now();
    }
    assert!(!remover.is_finished(), "it waits for what runs");
    release.send(()).unwrap();
    remover.join().unwrap().unwrap();
    assert!(ended.load(Ordering::SeqCst), "what ran has ended");
    assert_eq!(client.submit(0, || ()), Err(Detached));
    seen.recv().expect("the work on other devices goes on");
}

#[test]
fn a_client_may_have_its_work_finished_instead() {
    let registry = Registry::default();
    let client = Working::new(true);
    registry.add_client(&mut Log::new(), client.clone());
    registry.announce(&mut Log::new(), device(id(0), "rnic0", None));
    let count = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let count = count.clone();
        client
            .submit(0, move || {
                count.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
    }
    registry.remove_device(&mut Log::new(), id(0)).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 100);
}

#[test]
fn a_scan_of_devices_runs_while_a_client_is_being_removed() {
    // Seed 001: the removal waits for work that scans the devices.
    let registry = Arc::new(Registry::default());
    let client = Working::new(true);
    let registered = registry.add_client(&mut Log::new(), client.clone());
    registry.announce(&mut Log::new(), device(id(0), "rnic0", None));
    registry.announce(&mut Log::new(), device(id(1), "rnic1", None));
    let (task, begins, release) = held();
    let (result, scanned) = channel();
    let scanner = registry.clone();
    client
        .submit(0, move || {
            task();
            result.send(scanner.devices().len()).unwrap();
        })
        .unwrap();
    begins.recv().unwrap();
    let remover = {
        let registry = registry.clone();
        std::thread::spawn(move || registry.remove_client(&mut Log::new(), registered))
    };
    while client.submit(1, || ()).is_ok() {
        std::thread::yield_now();
    }
    release.send(()).unwrap();
    assert!(remover.join().unwrap());
    assert_eq!(scanned.recv().unwrap(), 2);
}

#[test]
fn work_that_wants_the_client_list_is_reported_though_nothing_deadlocks() {
    let registry: Arc<Registry<Log>> = Arc::new(Registry::default());
    let client = Working::new(false);
    registry.add_client(&mut Log::new(), client.clone());
    registry.announce(&mut Log::new(), device(id(0), "rnic0", None));
    registry.announce(&mut Log::new(), device(id(1), "rnic1", None));
    // The right order once: a removal cancels work under the client list's lock.
    registry.remove_device(&mut Log::new(), id(0)).unwrap();
    let (result, reported) = channel();
    let wrong = registry.clone();
    client
        .submit(1, move || {
            let register = || wrong.add_client(&mut Log::new(), Arc::new(Scribe("late")));
            let panic = catch_unwind(AssertUnwindSafe(register)).expect_err("a report");
            result.send(*panic.downcast::<String>().unwrap()).unwrap();
        })
        .unwrap();
    let text = reported.recv().unwrap();
    assert!(text.contains("client list is taken at"), "{text}");
    assert!(text.contains("registry work was taken at"), "{text}");
}

#[test]
fn a_callback_that_registers_clients_is_reported_instead_of_deadlocking() {
    struct Meddles(Arc<Registry<Log>>);
    impl Client<Log> for Meddles {
        fn name(&self) -> &'static str {
            "meddles"
        }
        fn add(&self, log: &mut Log, _: &Arc<Attachment>) {
            self.0.add_client(log, Arc::new(Scribe("nested")));
        }
        fn remove(&self, _: &mut Log, _: &Arc<Attachment>) {}
    }
    let registry = Arc::new(Registry::default());
    registry.add_client(&mut Log::new(), Arc::new(Meddles(registry.clone())));
    let add = || registry.announce(&mut Log::new(), device(id(0), "rnic0", None));
    let panic = catch_unwind(AssertUnwindSafe(add)).expect_err("a report");
    assert!(
        panic
            .downcast::<String>()
            .unwrap()
            .contains("client list is taken")
    );
}

#[test]
fn a_task_that_panics_holds_up_nobody() {
    let worker = Worker::start("rnic-test-panic").unwrap();
    let work = worker.queue().attach();
    work.submit(|| panic!("on purpose")).unwrap();
    work.cancel();
    assert_eq!(work.submit(|| ()), Err(Detached));
}

#[test]
fn what_is_queued_when_a_worker_ends_is_dropped_not_run() {
    let worker = Worker::start("rnic-test-end").unwrap();
    let work = worker.queue().attach();
    let (task, begins, release) = held();
    work.submit(task).unwrap();
    begins.recv().unwrap();
    let token = Arc::new(());
    let kept = token.clone();
    work.submit(move || panic!("{kept:?} has run")).unwrap();
    release.send(()).unwrap();
    drop(worker);
    work.cancel();
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn the_last_reference_to_everything_may_die_in_a_task() {
    let registry: Arc<Registry<Log>> = Arc::new(Registry::default());
    let client = Working::new(false);
    registry.add_client(&mut Log::new(), client.clone());
    registry.announce(&mut Log::new(), device(id(0), "rnic0", None));
    let (task, begins, release) = held();
    let (done, is_done) = channel();
    let kept = (registry.clone(), client.clone());
    let whole = move || {
        task();
        drop(kept);
        done.send(()).unwrap();
    };
    client.submit(0, whole).unwrap();
    begins.recv().unwrap();
    drop((registry, client));
    release.send(()).unwrap();
    is_done.recv().expect("the task went on to its end");
}
