//! A poll core that allocates or blocks aborts with a backtrace. Each case runs in a child process of its own.
mod common;

use std::{
    os::fd::AsFd,
    process::{Command, Output},
    sync::Arc,
};

use common::port;
use rnic_engine::{
    CoreConfig, Engine, EngineConfig, Limits,
    arena::{ArenaId, SlotArena},
    core::Idle,
    frame::{FrameBurst, SharedPool},
    mem::ClientMem,
    nonblocking::{CheckedAllocator, NonBlocking, might_block},
    port::{HeapPool, OpenPort, open_all},
};
use rnic_transport::record;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const CASE: &str = "RNIC_TEST_SECTION";

/// Runs this test binary again, with only the test `name`, which then plays `case`.
fn child(name: &str, case: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap()
}

#[inline(never)]
fn play(case: &str) {
    if case == "core" {
        return run_a_core_on_a_careless_port();
    }
    if let Some((_, call)) = MAY_BLOCK.iter().find(|(name, _)| *name == case) {
        return call();
    }
    let held = vec![1u8; 100];
    let (mem, _) = ClientMem::create("test", 4096, Arc::default()).unwrap();
    let _section = NonBlocking::enter();
    match case {
        "allocate" => drop(std::hint::black_box(Box::new(1u64))),
        "free" => drop(std::hint::black_box(held)),
        "block" => might_block(),
        "panic" => {
            // Dropped by the panic, which may block.
            let _mem = mem;
            panic!("the first word");
        }
        // The section ends before `held` is freed: locals are dropped in reverse order.
        _ => {}
    }
}

fn assert_aborts(name: &str, case: &str, says: &str, culprit: &str) {
    if let Ok(case) = std::env::var(CASE) {
        return play(&case);
    }
    use std::os::unix::process::ExitStatusExt;
    let output = child(name, case);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{case} was not aborted: {text}");
    assert!(text.contains(says), "{text}");
    assert!(
        text.contains(culprit),
        "no backtrace that names the culprit: {text}"
    );
    assert!(
        child(name, "nothing").status.success(),
        "the section itself must be harmless"
    );
}

#[test]
fn a_poll_core_that_allocates_aborts_with_a_backtrace() {
    assert_aborts(
        "a_poll_core_that_allocates_aborts_with_a_backtrace",
        "allocate",
        "memory was allocated",
        "play",
    );
}

#[test]
fn a_poll_core_that_frees_aborts_with_a_backtrace() {
    assert_aborts(
        "a_poll_core_that_frees_aborts_with_a_backtrace",
        "free",
        "memory was freed",
        "play",
    );
}

#[test]
fn a_poll_core_that_may_block_aborts_with_a_backtrace() {
    assert_aborts(
        "a_poll_core_that_may_block_aborts_with_a_backtrace",
        "block",
        "may block",
        "play",
    );
}

#[test]
fn a_panic_on_a_poll_core_is_not_hidden_by_what_it_drops() {
    const NAME: &str = "a_panic_on_a_poll_core_is_not_hidden_by_what_it_drops";
    if let Ok(case) = std::env::var(CASE) {
        return play(&case);
    }
    let output = child(NAME, "panic");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("the first word"), "{text}");
    assert_eq!(
        output.status.code(),
        Some(101),
        "it is a panic and no abort: {text}"
    );
}

#[test]
fn a_port_that_allocates_on_a_poll_core_aborts_the_daemon() {
    assert_aborts(
        "a_port_that_allocates_on_a_poll_core_aborts_the_daemon",
        "core",
        "rnic-poll-0",
        "rx_at_most",
    );
}

record! {
    #[derive(Copy, Clone, Debug)]
    struct Sample {
        number: u64,
    }
}

fn arena() -> SlotArena<Sample> {
    let id = ArenaId {
        kind: "samples",
        owner: 0,
        epoch: 1,
    };
    SlotArena::create(id, 8).unwrap()
}

/// Calls that may block, each inside a section. What they need is made before.
const MAY_BLOCK: [(&str, fn()); 11] = [
    ("create_client_memory", || {
        let fault = Arc::default();
        let _section = NonBlocking::enter();
        let _ = ClientMem::create("test", 4096, fault);
    }),
    ("map_client_memory", || {
        let (_mem, fd) = ClientMem::create("test", 4096, Arc::default()).unwrap();
        let fault = Arc::default();
        let _section = NonBlocking::enter();
        let _ = ClientMem::map(fd.as_fd(), 0, 4096, fault);
    }),
    ("unmap_client_memory", || {
        let (mem, _fd) = ClientMem::create("test", 4096, Arc::default()).unwrap();
        let _section = NonBlocking::enter();
        drop(mem);
    }),
    ("make_an_arena_record", || {
        let arena = arena();
        let _section = NonBlocking::enter();
        let _ = arena.put(Sample { number: 7 });
    }),
    ("free_an_arena_record", || {
        let record = arena().put(Sample { number: 7 }).unwrap();
        let _section = NonBlocking::enter();
        drop(record);
    }),
    ("start_an_engine", || {
        let config = config(vec![]);
        let _section = NonBlocking::enter();
        let _ = Engine::start(config);
    }),
    ("poll_an_engine", || {
        let mut engine = Engine::start(config(vec![])).unwrap();
        let _section = NonBlocking::enter();
        engine.poll(|_, _| {});
    }),
    ("free_what_awaits_grace", || {
        let mut engine = Engine::start(config(vec![])).unwrap();
        let epoch = engine.start_grace();
        let _section = NonBlocking::enter();
        engine.passed(epoch);
    }),
    ("stop_an_engine", || {
        let engine = Engine::start(config(vec![])).unwrap();
        let _section = NonBlocking::enter();
        engine.stop();
    }),
    ("open_ports", || {
        let _section = NonBlocking::enter();
        let _ = open_all(&[], &[]);
    }),
    ("make_a_frame_pool", || {
        let _section = NonBlocking::enter();
        let _ = HeapPool::new(8, 2048);
    }),
];

#[test]
fn every_function_that_may_block_says_so_before_anything_else() {
    const NAME: &str = "every_function_that_may_block_says_so_before_anything_else";
    if let Ok(case) = std::env::var(CASE) {
        return play(&case);
    }
    for (case, _) in MAY_BLOCK {
        let output = child(NAME, case);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("a function that may block was called"),
            "{case} does not say that it may block: {text}"
        );
    }
}

/// A port whose driver allocates for each burst.
fn run_a_core_on_a_careless_port() {
    let pool = port::no_frames();
    let careless = |_: &SharedPool, _: &mut FrameBurst| {
        let play = std::hint::black_box(vec![0u8; 2048]);
        usize::from(play[0])
    };
    let queues = vec![port::queue(&pool, careless)];
    let port = port::open(1500, pool, queues);
    let _engine = Engine::start(config(vec![port]));
    std::thread::sleep(std::time::Duration::from_secs(10));
}

/// One poll core that spins.
fn config(ports: Vec<OpenPort>) -> EngineConfig {
    let limits = Limits {
        clients: 1,
        qps: 4,
        cqs: 4,
        srqs: 4,
        mrs: 4,
        ahs: 4,
    };
    let cores = vec![CoreConfig {
        cpu: None,
        idle: Idle::Spin,
    }];
    EngineConfig { cores, limits, ports }
}
