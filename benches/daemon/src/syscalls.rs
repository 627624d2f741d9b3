//! Counting the system calls of one thread, of any process, without its help.
//!
//! The kernel counts them itself (the tracepoint `raw_syscalls:sys_enter`), which changes nothing for the thread. Where
//! that cannot be had, strace does: a thread that makes no call never stops for it either.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use perf_event::{Builder, events::Tracepoint};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

/// Where the kernel's tracing files usually are.
const TRACING: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Calls that are told apart; of the others only the sum is known.
const NAMED: [&str; 14] = [
    "clock_gettime",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "futex",
    "madvise",
    "mmap",
    "munmap",
    "poll",
    "read",
    "recvfrom",
    "sched_yield",
    "sendto",
    "write",
];
/// Calls of a thread that counts itself before it is believed.
const PROOF: u64 = 1000;

/// How calls are counted.
#[derive(Clone, Debug)]
pub enum Method {
    /// By the kernel.
    Kernel(Tracepoints),
    /// By strace.
    Strace,
}

/// Numbers of tracepoints.
#[derive(Clone, Debug)]
pub struct Tracepoints {
    all: u64,
    named: Vec<(&'static str, u64)>,
}

/// What was counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Calls {
    /// All of them.
    pub total: u64,
    /// Some, by name.
    pub by_name: BTreeMap<String, u64>,
}

impl Method {
    /// The best that works here and has proved it on a thread whose calls are known; else why none does.
    pub fn find() -> Result<Self, String> {
        let kernel = tracepoints().map(Method::Kernel).and_then(Self::proved);
        let kernel = match kernel {
            Ok(method) => return Ok(method),
            Err(error) => error,
        };
        Self::proved(Method::Strace).map_err(|strace| format!("kernel: {kernel:#}; strace: {strace:#}"))
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Kernel(_) => "tracepoint",
            Method::Strace => "strace",
        }
    }

    /// Counts the calls that thread `tid` makes while `during` runs.
    pub fn count<T>(&self, tid: u32, during: impl FnOnce() -> T) -> anyhow::Result<(Calls, T)> {
        match self {
            Method::Kernel(ids) => by_kernel(ids, tid, during),
            Method::Strace => by_strace(tid, during),
        }
    }

    fn proved(self) -> anyhow::Result<Self> {
        let (told, tid) = std::sync::mpsc::channel();
        let (go, going) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = told.send(rustix::thread::gettid());
            let _ = going.recv();
            for _ in 0..PROOF {
                rustix::thread::sched_yield();
            }
        });
        let tid = tid.recv()?.as_raw_nonzero().get().unsigned_abs();
        let (calls, _) = self.count(tid, || {
            let _ = go.send(());
            thread.join()
        })?;
        let seen = calls.by_name.get("sched_yield").copied().unwrap_or(0);
        ensure!(
            seen == PROOF && calls.total >= PROOF,
            "of {PROOF} calls {seen} were seen"
        );
        Ok(self)
    }
}

/// From where the tracing files are, or from where they are put for a moment.
fn tracepoints() -> anyhow::Result<Tracepoints> {
    for place in TRACING {
        if let Ok(found) = tracepoints_in(Path::new(place)) {
            return Ok(found);
        }
    }
    let dir = tempfile::tempdir()?;
    mount("rnic", dir.path(), "tracefs", MountFlags::empty(), None).context("mounting tracefs")?;
    let found = tracepoints_in(dir.path());
    unmount(dir.path(), UnmountFlags::empty()).context("unmounting tracefs")?;
    found
}

fn tracepoints_in(tracing: &Path) -> anyhow::Result<Tracepoints> {
    let id = |event: &str| -> anyhow::Result<u64> {
        let path = tracing.join("events").join(event).join("id");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.trim().parse()?)
    };
    let named = |name| Some((name, id(&format!("syscalls/sys_enter_{name}")).ok()?));
    Ok(Tracepoints {
        all: id("raw_syscalls/sys_enter")?,
        named: NAMED.into_iter().filter_map(named).collect(),
    })
}

fn by_kernel<T>(ids: &Tracepoints, tid: u32, during: impl FnOnce() -> T) -> anyhow::Result<(Calls, T)> {
    let tid = tid.try_into()?;
    let counter = |id| {
        let mut builder = Builder::new(Tracepoint::with_id(id));
        let counter = builder.observe_pid(tid).include_kernel().build();
        counter.context("perf_event_open")
    };
    let mut counters = vec![("", counter(ids.all)?)];
    for (name, id) in &ids.named {
        counters.push((name, counter(*id)?));
    }
    for (_, counter) in &mut counters {
        counter.enable()?;
    }
    let result = during();
    for (_, counter) in &mut counters {
        counter.disable()?;
    }
    let mut calls = Calls::default();
    for (name, counter) in &mut counters {
        match (*name, counter.read()?) {
            ("", count) => calls.total = count,
            (_, 0) => {}
            (name, count) => {
                calls.by_name.insert(name.to_owned(), count);
            }
        }
    }
    Ok((calls, result))
}

fn by_strace<T>(tid: u32, during: impl FnOnce() -> T) -> anyhow::Result<(Calls, T)> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("calls");
    let mut strace = Command::new("strace")
        .args(["-qq", "-p", &tid.to_string(), "-o"])
        .arg(&out)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting strace")?;
    let traced = PathBuf::from(format!("/proc/{tid}/status"));
    let start = Instant::now();
    while !is_traced(&traced) {
        if strace.try_wait()?.is_some() || start.elapsed() > Duration::from_secs(5) {
            let _ = strace.kill();
            let _ = strace.wait();
            bail!("strace could not attach");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let result = during();
    let _ = kill_process(Pid::from_child(&strace), Signal::INT);
    strace.wait()?;
    let mut calls = Calls::default();
    for line in fs::read_to_string(&out)?.lines() {
        // `name(arguments) = result`; what else there is begins otherwise (`+++ exited`, `--- SIGCHLD`, `<... resumed`).
        if let Some((name, _)) = line.split_once('(')
            && !name.is_empty()
            && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
        {
            calls.total += 1;
            *calls.by_name.entry(name.to_owned()).or_default() += 1;
        }
    }
    Ok((calls, result))
}

fn is_traced(status: &Path) -> bool {
    let text = fs::read_to_string(status).unwrap_or_default();
    text.lines().any(|line| {
        line.strip_prefix("TracerPid:")
            .is_some_and(|pid| pid.trim() != "0")
    })
}
