//! Start and stop of EAL, and what they must not do to the process. One test: EAL runs once.

use std::fs;
use std::mem::MaybeUninit;

use dpdk_sys::{Eal, EalError, Error, LogLevel, Mempool, PoolConfig, set_log_level, unprivileged_args};

#[test]
fn eal_starts_once_leaves_the_process_as_it_was_and_stops_when_unused() {
    set_log_level(LogLevel::Error);
    for bad in ["--help", "-h", "nul\0byte"] {
        assert!(matches!(Eal::init(&[bad]), Err(EalError::Argument(arg)) if arg == bad));
    }

    assert!(Eal::running().is_none());
    let before = (affinity(), signal_mask(), handlers());
    let eal = Eal::init(&unprivileged_args()).expect("EAL starts without privilege");
    assert_eq!(before, (affinity(), signal_mask(), handlers()));
    assert_helper_threads_take_no_signals();

    assert!(matches!(
        Eal::init(&unprivileged_args()),
        Err(EalError::AlreadyStarted)
    ));
    assert!(matches!(eal.register_thread(), Err(Error::ThreadRegistered(0))));

    // Whatever still uses EAL keeps it up, and the token comes back for another try.
    drop(Eal::running().expect("it runs"));
    let pool = small_pool(&eal, "held");
    let Err(EalError::InUse { users: 1, eal }) = eal.cleanup() else {
        panic!("stopped under a pool")
    };
    drop(pool);
    eal.cleanup().expect("nothing uses EAL any more");
    assert!(Eal::running().is_none());
}

fn small_pool(eal: &Eal, name: &str) -> Mempool {
    let config = PoolConfig {
        name: name.to_owned(),
        buffers: 15,
        cache: 0,
        data_room: 512,
        socket: None,
    };
    Mempool::create(eal, &config).expect("there is memory for a small pool")
}

/// CPUs this thread may use, as the kernel prints them.
fn affinity() -> String {
    status_field("/proc/thread-self/status", "Cpus_allowed:")
}

fn signal_mask() -> String {
    status_field("/proc/thread-self/status", "SigBlk:")
}

fn status_field(path: &str, field: &str) -> String {
    let status = fs::read_to_string(path).expect("procfs is mounted");
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .expect("the field exists");
    line[field.len()..].trim().to_owned()
}

/// Handler and flags of every signal.
fn handlers() -> Vec<(usize, i32)> {
    (1..=64)
        .map(|signal| {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: a null new action only reads; all zeroes is valid where reading fails.
            let action = unsafe {
                libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
                action.assume_init()
            };
            (action.sa_sigaction, action.sa_flags)
        })
        .collect()
}

fn assert_helper_threads_take_no_signals() {
    let sigterm = 1_u64 << (libc::SIGTERM - 1);
    let mut helpers = 0;
    for task in fs::read_dir("/proc/self/task").expect("procfs is mounted") {
        let path = task.expect("tasks can be listed").path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with("eal-") {
            helpers += 1;
            let status = path.join("status");
            let blocked = status_field(status.to_str().expect("ASCII path"), "SigBlk:");
            let blocked = u64::from_str_radix(&blocked, 16).expect("a hexadecimal mask");
            assert_ne!(blocked & sigterm, 0, "{name} takes SIGTERM");
        }
    }
    assert!(helpers > 0, "EAL has an interrupt thread");
}
