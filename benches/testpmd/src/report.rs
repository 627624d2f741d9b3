//! What is printed: a line a second, then totals; or one JSON object.
use std::{collections::BTreeMap, fmt};

use core_affinity::CoreId;
use rnic_engine::{
    core::{Spent, Stage},
    port::PortStats,
};
use serde::Serialize;

use crate::{
    args::{Args, Mode},
    forward,
    plan::Plan,
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

/// Where a core stood at some moment.
#[derive(Copy, Clone)]
pub struct Sample {
    pub cycles: u64,
    pub messages: u64,
    pub frames: u64,
    /// What its queues of both ports had counted.
    pub ports: [PortStats; 2],
    /// Where its cycles went; `None` where the build does not look.
    pub spent: Option<Account>,
}

/// What all cores did between two moments.
pub fn total(from: &[Sample], to: &[Sample], what: impl Fn(&Sample) -> u64) -> u64 {
    from.iter().zip(to).map(|(from, to)| what(to) - what(from)).sum()
}

/// Cycles of all cores between two moments.
pub fn cycles_of(from: &[Sample], to: &[Sample]) -> u64 {
    total(from, to, |sample| sample.cycles)
}

/// What all cores did a second, each by the time that passed for it.
pub fn rate(from: &[Sample], to: &[Sample], hz: u64, what: impl Fn(&Sample) -> u64) -> f64 {
    let cores = from.iter().zip(to);
    let rates = cores.map(|(from, to)| {
        let seconds = (to.cycles - from.cycles) as f64 / hz as f64;
        (what(to) - what(from)) as f64 / seconds
    });
    rates.sum()
}

/// Cycles a message by the name of the stage.
pub type Stages = BTreeMap<&'static str, f64>;

/// What was spent in each stage, in the order of [`Stage::ALL`].
pub type Account = [Spent; Stage::ALL.len()];

/// Cycles a message between two moments, less what the clock takes; `None` where the build does not look.
fn stages(from: &[Sample], to: &[Sample]) -> Option<Stages> {
    const LOOKS: u64 = 10_000;
    let begin = cycles();
    for _ in 0..LOOKS {
        std::hint::black_box(cycles());
    }
    let look = (cycles() - begin) as f64 / LOOKS as f64;
    let messages = total(from, to, |sample| sample.messages).max(1) as f64;
    let mut stages = Stages::new();
    for (from, to) in from.iter().zip(to) {
        for ((_, name), (from, to)) in Stage::ALL.iter().zip(from.spent?.iter().zip(&to.spent?)) {
            let (cycles, begun) = ((to.cycles - from.cycles) as f64, (to.begun - from.begun) as f64);
            *stages.entry(*name).or_default() += (cycles - begun * look).max(0.0) / messages;
        }
    }
    stages.values_mut().for_each(|cycles| *cycles = rounded(*cycles));
    Some(stages)
}

/// What one core did.
#[derive(Serialize)]
pub struct CoreReport {
    pub cpu: usize,
    pub msgs_per_s: u64,
    pub cycles_per_msg: f64,
}

/// All of it. The keys are stable.
#[derive(Serialize)]
pub struct Report {
    pub mode: Mode,
    pub port: String,
    pub size: u32,
    pub qps: u32,
    /// Both ends of a connection are on the same one.
    pub cores: u32,
    pub burst: usize,
    /// Of all cores, as are frames and bits.
    pub msgs_per_s: u64,
    pub frames_per_s: u64,
    /// Payload, one way.
    pub gbit_per_s: f64,
    /// Of the core that moves the message; of several the mean.
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
    pub per_core: Vec<CoreReport>,
    /// Cycles that a packet's payload takes in any case; how many times that a frame takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare_cycles_per_frame: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare_ratio: Option<f64>,
    /// Cycles a message, by stage, without what looking at the clock takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
    /// What the ports did, as text.
    #[serde(skip)]
    forwarded: String,
}

impl Report {
    pub fn new(args: &Args, plan: &Plan, cpus: &[CoreId], hz: u64, from: &[Sample], to: &[Sample]) -> Self {
        let messages = total(from, to, |sample| sample.messages);
        let frames = total(from, to, |sample| sample.frames);
        let cycles = cycles_of(from, to) as f64;
        let each_s = rate(from, to, hz, |sample| sample.messages);
        // A READ's data comes back in as many packets as a WRITE's goes out in; its request is the other one.
        let data = messages * plan.packets();
        let cores = cpus.iter().zip(from.chunks(1).zip(to.chunks(1)));
        Report {
            mode: args.mode,
            port: args.port.clone(),
            size: plan.size,
            qps: plan.qps,
            cores: plan.cores,
            burst: plan.burst,
            msgs_per_s: each_s as u64,
            frames_per_s: rate(from, to, hz, |sample| sample.frames) as u64,
            gbit_per_s: rounded(each_s * f64::from(plan.size) * 8.0 / 1e9),
            cycles_per_msg: rounded(cycles / messages.max(1) as f64),
            cycles_per_frame: rounded(cycles / frames.max(1) as f64),
            errors: 0,
            tsc_hz: hz,
            path_mtu: plan.mtu.bytes(),
            outstanding: plan.outstanding,
            signal_every: plan.signal_every,
            acks_per_msg: rounded(frames.saturating_sub(data) as f64 / messages.max(1) as f64),
            icrc: args.mode != Mode::Io,
            verified: true,
            per_core: cores
                .map(|(cpu, (from, to))| CoreReport {
                    cpu: cpu.id,
                    msgs_per_s: rate(from, to, hz, |sample| sample.messages) as u64,
                    cycles_per_msg: rounded(
                        cycles_of(from, to) as f64 / total(from, to, |sample| sample.messages).max(1) as f64,
                    ),
                })
                .collect(),
            bare_cycles_per_frame: None,
            bare_ratio: None,
            stages: stages(from, to).filter(|_| args.stages),
            forwarded: forward::totals(from, to),
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
        write!(f, "{}", self.forwarded)?;
        let cores = if self.cores == 1 { "core" } else { "cores" };
        writeln!(
            f,
            "\n  Both ends of each connection on one of {} {cores}, bursts of {}:",
            self.cores, self.burst
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
        for core in self.per_core.iter().filter(|_| self.cores > 1) {
            writeln!(
                f,
                "  CPU {:<4}{:>12} messages/s {:>10.1} cycles/message",
                core.cpu, core.msgs_per_s, core.cycles_per_msg
            )?;
        }
        for (stage, cycles) in self.stages.iter().flatten() {
            writeln!(f, "  {stage:<14}{cycles:>10.1} cycles/message")?;
        }
        Ok(())
    }
}

fn rounded(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}
