//! What is printed: a line a second, then totals; or one JSON object.
use std::{collections::BTreeMap, fmt};

use rnic_engine::core::{Spent, Stage};
use serde::Serialize;

use crate::{
    args::{Args, Mode},
    plan::Plan,
    rig::Rig,
    tsc_hz,
};

/// Time stamp counter; nanoseconds where there is none.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has RDTSC.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64
    }
}

/// Where a run stood at some moment.
#[derive(Copy, Clone)]
pub struct Second {
    pub cycles: u64,
    pub messages: u64,
    pub frames: u64,
}

impl Second {
    pub fn at(rig: &Rig) -> Self {
        Second {
            cycles: cycles(),
            messages: rig.messages,
            frames: rig.counters().tx_roce,
        }
    }
}

/// One line of forward statistics.
pub fn line(plan: &Plan, from: &Second, to: &Second) -> String {
    let (messages, cycles) = (to.messages - from.messages, to.cycles - from.cycles);
    let frames = to.frames - from.frames;
    format!(
        "  messages: {messages:>12}  frames: {frames:>12}  cycles/message: {:>8.1}  ({} B)",
        cycles as f64 / messages.max(1) as f64,
        plan.size
    )
}

/// Cycles a message by the name of the stage.
pub type Stages = BTreeMap<&'static str, f64>;

/// What was spent in each stage, in the order of [`Stage::ALL`].
pub type Account = [Spent; Stage::ALL.len()];

/// Cycles a message between two accounts, less what the clock takes.
pub fn stages(from: &Account, to: &Account, messages: u64) -> Stages {
    const LOOKS: u64 = 10_000;
    let begin = cycles();
    for _ in 0..LOOKS {
        std::hint::black_box(cycles());
    }
    let look = (cycles() - begin) as f64 / LOOKS as f64;
    let each = Stage::ALL.iter().zip(from.iter().zip(to));
    each.map(|((_, name), (from, to))| {
        let (cycles, begun) = ((to.cycles - from.cycles) as f64, (to.begun - from.begun) as f64);
        (
            *name,
            rounded((cycles - begun * look).max(0.0) / messages.max(1) as f64),
        )
    })
    .collect()
}

/// All of it. The keys are stable.
#[derive(Serialize)]
pub struct Report {
    pub mode: Mode,
    pub port: String,
    pub size: u32,
    pub qps: u32,
    /// Both ends of all connections are on it.
    pub cores: u32,
    pub msgs_per_s: u64,
    pub frames_per_s: u64,
    /// Payload, one way.
    pub gbit_per_s: f64,
    pub cycles_per_msg: f64,
    pub cycles_per_frame: f64,
    pub errors: u64,
    pub tsc_hz: u64,
    pub path_mtu: usize,
    pub outstanding: u32,
    pub signal_every: u32,
    pub acks_per_msg: f64,
    /// Generated and verified.
    pub icrc: bool,
    pub verified: bool,
    /// Cycles that a packet's payload takes in any case; how many times that a frame takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare_cycles_per_frame: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare_ratio: Option<f64>,
    /// Cycles a message, by stage, without what looking at the clock takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
}

impl Report {
    pub fn new(args: &Args, plan: &Plan, from: &Second, to: &Second, errors: u64, verified: bool) -> Self {
        let (messages, frames) = (to.messages - from.messages, to.frames - from.frames);
        let cycles = (to.cycles - from.cycles) as f64;
        let hz = tsc_hz();
        let seconds = cycles / hz as f64;
        // A READ's data comes back in as many packets as a WRITE's goes out in; its request is the other one.
        let data = messages * plan.packets();
        Report {
            mode: args.mode,
            port: args.port.clone(),
            size: plan.size,
            qps: plan.qps,
            cores: 1,
            msgs_per_s: (messages as f64 / seconds) as u64,
            frames_per_s: (frames as f64 / seconds) as u64,
            gbit_per_s: rounded(messages as f64 * f64::from(plan.size) * 8.0 / seconds / 1e9),
            cycles_per_msg: rounded(cycles / messages.max(1) as f64),
            cycles_per_frame: rounded(cycles / frames.max(1) as f64),
            errors,
            tsc_hz: hz,
            path_mtu: plan.mtu.bytes(),
            outstanding: plan.outstanding,
            signal_every: plan.signal_every,
            acks_per_msg: rounded(frames.saturating_sub(data) as f64 / messages.max(1) as f64),
            icrc: args.mode != Mode::Io,
            verified,
            bare_cycles_per_frame: None,
            bare_ratio: None,
            stages: None,
        }
    }

    /// Takes what was measured without an RNIC.
    pub fn compare(&mut self, bare: f64) {
        self.bare_cycles_per_frame = Some(rounded(bare));
        self.bare_ratio = Some(rounded(self.cycles_per_frame / bare));
    }
}

/// Of a run of a fixed number of messages, which knows no rates.
#[derive(Serialize)]
pub struct Fixed {
    pub messages: u64,
    pub frames: u64,
    /// Requests that failed and frames that were sent again.
    pub errors: u64,
    pub verified: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  ---------------------- forward statistics, both ends on {} core ----------------------",
            self.cores
        )?;
        writeln!(
            f,
            "  {} messages/s  {} frames/s  {} Gbit/s  {} cycles/message  {} cycles/frame  {} errors",
            self.msgs_per_s,
            self.frames_per_s,
            self.gbit_per_s,
            self.cycles_per_msg,
            self.cycles_per_frame,
            self.errors
        )?;
        writeln!(
            f,
            "  {} QPs, {} B, path MTU {}, {} in flight, 1 of {} signalled, {} acknowledgements a message, ICRC {}, payload {}",
            self.qps,
            self.size,
            self.path_mtu,
            self.outstanding,
            self.signal_every,
            self.acks_per_msg,
            if self.icrc { "on" } else { "off" },
            if self.verified { "verified" } else { "WRONG" }
        )?;
        match (self.bare_cycles_per_frame, self.bare_ratio) {
            (Some(bare), Some(ratio)) => {
                writeln!(
                    f,
                    "  {bare} cycles/frame for copies and sums alone, ratio {ratio}"
                )
            }
            _ => Ok(()),
        }?;
        for (stage, cycles) in self.stages.iter().flatten() {
            writeln!(f, "  {stage:<14}{cycles:>10.1} cycles/message")?;
        }
        Ok(())
    }
}

fn rounded(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}
