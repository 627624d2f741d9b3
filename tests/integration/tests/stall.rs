//! A poll core that does not go on, as in a debugger, while clients make and destroy: what it may still look at is not
//! freed, what waits for it is bounded, everybody is told, and afterwards nothing is left.
//!
//! `RNIC_STALL_SECONDS` sets for how long it is stopped; 2 without it.
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rnic_abi::{CreateQp, CreateQpReply, DestroyReply, DeviceArg, Empty, HandleArg, Hello, Op};
use rnic_tests::raw::{Line, Reply, Verbs, ipv4_gid, memfd, rts};
use rnic_tests::{Appliance, Setup, Stopped, Turn, poll_until};
use rustix::fs::SealFlags;
use rustix::io::Errno;

/// The core that is stopped.
const CORE: usize = 1;
const CHURNERS: usize = 16;
const SOON: Duration = Duration::from_secs(30);
/// The memory of a region that is deregistered meanwhile.
const REGION: u64 = 1 << 20;

/// The configuration: bounds so small that the churn reaches them.
fn setup() -> Setup {
    Setup::back_to_back().cores(2).with(
        "limits: { bytes_awaiting_grace: 1MiB, per_client: { bytes_awaiting_grace: 512KiB, queue_memory: 8MiB, \
         wr_depth: 2048, cq_depth: 1024 } }",
    )
}

/// What a request came to, and when.
struct Outcome {
    began: Instant,
    ended: Instant,
    op: Op,
    errno: i32,
    text: String,
}

/// A client that makes, connects and destroys QPs until it is told to end.
fn churn(socket: &Path, ready: &Barrier, end: &AtomicBool) -> Vec<Outcome> {
    let mut verbs = Verbs::open(socket, 0, 16);
    ready.wait();
    let mut outcomes = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let body = CreateQp {
            pd: verbs.pd(),
            send_cq: verbs.cq_handle(),
            recv_cq: verbs.cq_handle(),
            qp_type: 2,
            sq_units: 2048,
            rq_units: 2048,
            ..CreateQp::default()
        };
        let made = request(&mut outcomes, Op::CreateQp, |op| {
            verbs.line.request(op, &body, &[])
        });
        if made.errno() != 0 {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let CreateQpReply { handle, qpn, .. } = made.body();
        let connected = rts(handle, qpn, ipv4_gid("10.0.0.1")).iter().all(|body| {
            let reply = request(&mut outcomes, Op::ModifyQp, |op| {
                verbs.line.request(op, body, &[])
            });
            reply.errno() == 0
        });
        let body = HandleArg { handle, reserved: 0 };
        if !connected {
            // No core has got to know it, so it waits for none.
            let _: DestroyReply = verbs.line.request(Op::DestroyQp, &body, &[]).body();
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let gone = request(&mut outcomes, Op::DestroyQp, |op| {
            verbs.line.request(op, &body, &[])
        });
        let _: DestroyReply = gone.body();
    }
    outcomes
}

/// A client that makes PDs, which need no core.
fn make_pds(socket: &Path, ready: &Barrier, end: &AtomicBool) -> Vec<Outcome> {
    let (mut line, ..) = Line::greet(socket);
    ready.wait();
    let mut outcomes = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let body = DeviceArg::default();
        let made = request(&mut outcomes, Op::AllocPd, |op| line.request(op, &body, &[]));
        if made.errno() == 0 {
            let handle = made.body::<rnic_abi::HandleReply>().handle;
            let body = HandleArg { handle, reserved: 0 };
            let _: Empty = line.request(Op::DeallocPd, &body, &[]).body();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    outcomes
}

fn request(outcomes: &mut Vec<Outcome>, op: Op, ask: impl FnOnce(Op) -> Reply) -> Reply {
    let began = Instant::now();
    let reply = ask(op);
    outcomes.push(Outcome {
        began,
        ended: Instant::now(),
        op,
        errno: reply.errno(),
        text: if reply.errno() == 0 {
            String::new()
        } else {
            reply.text()
        },
    });
    reply
}

/// Stops the core while it is online: one that sleeps holds up no grace period.
fn stop_core(appliance: &Appliance) -> (Stopped, Instant) {
    poll_until(SOON, || {
        let stopped = Stopped::thread(appliance.pid(), &format!("rnic-poll-{CORE}"));
        let at = Instant::now();
        (appliance.status().cores[CORE].state == "running").then_some((stopped, at))
    })
    .expect("the core is online at times")
}

fn mappings(appliance: &Appliance, of: &str) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", appliance.pid())).unwrap();
    maps.lines().filter(|line| line.contains(of)).count()
}

/// What the status said while the core was stopped.
#[derive(Debug, Default)]
struct Seen {
    looks: usize,
    slowest: Duration,
    most_bytes: u64,
    most_mapped: u64,
    most_in_line: u64,
    longest_stall_ms: u64,
    oldest_us: u64,
    kinds: BTreeSet<String>,
}

/// Looks again and again until `until`; every look must be answered and within the bounds it prints.
fn observe(appliance: &Appliance, until: Instant) -> Seen {
    let mut seen = Seen::default();
    while Instant::now() < until {
        let asked = Instant::now();
        let status = appliance.ctl_json(&["status"]);
        seen.slowest = seen.slowest.max(asked.elapsed());
        seen.looks += 1;
        let number = |key: &str| status[key].as_u64().unwrap_or_else(|| panic!("{key}: {status}"));
        for (key, bound, most) in [
            (
                "bytes_awaiting_grace",
                "bytes_awaiting_grace_bound",
                &mut seen.most_bytes,
            ),
            (
                "mapped_bytes_awaiting_grace",
                "mapped_bytes_awaiting_grace_bound",
                &mut seen.most_mapped,
            ),
        ] {
            assert!(number(key) <= number(bound), "{key}: {status}");
            *most = (*most).max(number(key));
        }
        seen.most_in_line = seen.most_in_line.max(number("destructions_in_line"));
        seen.oldest_us = seen.oldest_us.max(number("oldest_grace_us"));
        let core = &status["cores"][CORE];
        let stalled = core["stalled_ms"].as_u64().unwrap();
        assert!(
            stalled >= seen.longest_stall_ms || stalled == 0,
            "the stall became shorter: {core}"
        );
        if stalled > 0 {
            seen.longest_stall_ms = stalled;
            let held = &core["held_up"];
            let objects = held["objects"].as_object().unwrap_or_else(|| panic!("{core}"));
            seen.kinds.extend(objects.keys().cloned());
        }
        assert_eq!(status["cores"][0]["stalled_ms"], 0, "the other core goes on");
    }
    seen
}

#[test]
fn a_core_in_a_debugger_is_reported_bounds_what_waits_for_it_and_loses_nothing() {
    let _turn = Turn::take();
    let seconds = std::env::var("RNIC_STALL_SECONDS").map_or(2.0, |text| {
        text.parse().expect("RNIC_STALL_SECONDS is a number of seconds")
    });
    let mut appliance = Appliance::start(&setup());
    if appliance.status().cores.len() <= CORE {
        println!("one processor, one poll core: nothing to compare it with");
        return appliance.stop();
    }
    let socket = appliance.socket();
    let (baseline, descriptors) = (appliance.counts(), appliance.descriptors());
    let arenas = mappings(&appliance, "memfd:");
    let (end, ready) = (AtomicBool::new(false), Barrier::new(CHURNERS + 2));
    let file = memfd(REGION, SealFlags::SHRINK, false).unwrap();
    let mut registrar = Verbs::open(&socket, 1, 16);
    let mr = registrar.mr(&file, REGION, 0);
    let regions = mappings(&appliance, "memfd:");
    let dying = Verbs::open(&socket, 1, 16);

    let (outcomes, pds, seen, frozen, thawed) = std::thread::scope(|scope| {
        let churners: Vec<_> = (0..CHURNERS)
            .map(|_| scope.spawn(|| churn(&socket, &ready, &end)))
            .collect();
        let maker = scope.spawn(|| make_pds(&socket, &ready, &end));
        ready.wait();

        let (stopped, frozen) = stop_core(&appliance);
        // A region deregistered and a client gone while the core may look at both.
        let deregistered = scope.spawn(|| {
            let body = HandleArg {
                handle: mr.handle,
                reserved: 0,
            };
            let reply = registrar.line.request(Op::DeregMr, &body, &[]);
            (reply.errno(), Instant::now())
        });
        drop(dying);
        let until = frozen + Duration::from_secs_f64(seconds);
        let seen = observe(&appliance, until);

        // Everybody is told, nobody hangs.
        let text = String::from_utf8_lossy(&appliance.ctl(&["status"]).stdout).into_owned();
        assert!(
            text.contains(&format!("poll core {CORE} has not gone on for")) && text.contains("STALLED"),
            "{text}"
        );
        println!("{}", text.lines().take(4).collect::<Vec<_>>().join("\n"));
        let listing = appliance.ctl(&["qp"]);
        assert!(!listing.status.success());
        let refusal = String::from_utf8_lossy(&listing.stderr).into_owned();
        assert!(refusal.contains(&format!("poll core {CORE}")), "{refusal}");
        let mut stranger = Line::connect(&socket);
        let hello = stranger.request(Op::Hello, &Hello::default(), &[]);
        assert_eq!(hello.errno(), Errno::AGAIN.raw_os_error());
        assert!(
            hello.text().contains(&format!("poll core {CORE}")),
            "{}",
            hello.text()
        );
        assert!(
            !deregistered.is_finished(),
            "a region was deregistered past the core"
        );
        assert!(
            mappings(&appliance, "memfd:") >= regions,
            "a region was unmapped, or a client's memory, while the core may look at it"
        );

        let thawed = Instant::now();
        drop(stopped);
        let (errno, answered) = deregistered.join().unwrap();
        assert!(errno == 0 && answered >= thawed);
        let goes_on = poll_until(SOON, || {
            (appliance.ctl_json(&["status"])["cores"][CORE]["stalled_ms"] == 0).then_some(())
        });
        assert!(goes_on.is_some(), "the core goes on, the report does not end");
        end.store(true, Ordering::Relaxed);
        let outcomes: Vec<Outcome> = churners
            .into_iter()
            .flat_map(|churner| churner.join().unwrap())
            .collect();
        (outcomes, maker.join().unwrap(), seen, frozen, thawed)
    });
    println!("while the core was stopped: {seen:?}");

    // Nothing was freed early: a destruction is answered when everything of it is freed.
    let meanwhile = |o: &&Outcome| o.began >= frozen && o.ended < thawed;
    let early = outcomes
        .iter()
        .filter(meanwhile)
        .filter(|o| o.op == Op::DestroyQp)
        .count();
    assert_eq!(early, 0, "QPs were destroyed past a core that may look at them");
    let waited = outcomes
        .iter()
        .filter(|o| o.op == Op::DestroyQp && o.began < thawed && o.ended >= thawed)
        .count();
    assert!(waited > 0, "no destruction waited for the core");

    // Every refusal is EAGAIN and names the core, once the stall was noticed.
    let refused: Vec<_> = outcomes.iter().chain(&pds).filter(|o| o.errno != 0).collect();
    for refusal in &refused {
        assert_eq!(refusal.errno, Errno::AGAIN.raw_os_error(), "{}", refusal.text);
    }
    let naming = |op: Op| {
        let named = format!("poll core {CORE}");
        refused
            .iter()
            .filter(|o| o.op == op && o.text.contains(&named))
            .count()
    };
    println!(
        "{waited} destructions waited; refused naming the core: {} changes of QPs, {} PDs",
        naming(Op::ModifyQp),
        naming(Op::AllocPd)
    );
    assert!(naming(Op::AllocPd) > 0, "nobody was refused at the bound");

    assert!(
        seen.longest_stall_ms >= 500 && seen.kinds.contains("qps") && seen.most_in_line > 0,
        "{seen:?}"
    );
    assert!(seen.kinds.contains("mrs"), "{seen:?}");
    assert_eq!(seen.most_mapped, REGION, "{seen:?}");
    let log = appliance.log();
    for (text, times) in [("does not go on", 1), ("goes on", 1)] {
        let said = log
            .lines()
            .filter(|line| line.contains(&format!("poll core {CORE} {text}")))
            .count();
        assert_eq!(said, times, "{text}");
    }

    drop(registrar);
    let clean = poll_until(SOON, || {
        (appliance.counts() == baseline && appliance.descriptors() == descriptors).then_some(())
    });
    assert!(
        clean.is_some(),
        "{:?} instead of {baseline:?}",
        appliance.counts()
    );
    assert_eq!(
        mappings(&appliance, "memfd:"),
        arenas,
        "nothing of any client is mapped"
    );
    appliance.assert_alive();
    appliance.stop();
}
