//! Frames from one port to the other without an RNIC in between: a queue of each port a core.
use anyhow::{Result, ensure};
use core_affinity::CoreId;
use rnic_engine::{
    frame::FrameBurst,
    port::{OpenPort, Port},
};

use crate::{
    args::Args,
    drive::{self, Work},
    forward,
    plan::Plan,
    report::{Report, Sample, cycles},
};

/// Sends bursts on the first port and takes them from the second.
pub fn run(args: &Args, plan: &Plan, mut ports: Vec<OpenPort>, cpus: &[CoreId], hz: u64) -> Result<Report> {
    for port in &ports {
        let queues = port.queues.len();
        ensure!(
            queues == cpus.len(),
            "--cores {}: {} has queues for {queues}",
            cpus.len(),
            port.name
        );
        let (size, room) = (args.size as usize, port.pool.room());
        ensure!(size <= room, "a frame of this port has {room} bytes at most");
    }
    let [from, to] = [0, 1].map(|port: usize| std::mem::take(&mut ports[port].queues));
    let mut lanes: Vec<Lane> = from
        .into_iter()
        .zip(to)
        .map(|(from, to)| Lane {
            to,
            pool: from.pool().id(),
            from,
            out: FrameBurst::new(),
            burst: plan.burst,
            size: args.size as usize,
            frames: 0,
        })
        .collect();
    let (begin, end) = drive::measure(&mut lanes, cpus, args.seconds, |from, to| {
        if !args.json {
            print!("{}", forward::second(from, to, hz));
        }
    })?;
    // The queues go before their ports.
    drop(lanes);
    for port in &mut ports {
        port.link.close();
    }
    Ok(Report::new(args, plan, cpus, hz, &begin, &end))
}

/// What one core has. It shares no cache line, and no pair of them, with another core's.
#[repr(align(128))]
struct Lane {
    to: Box<dyn Port>,
    from: Box<dyn Port>,
    /// What tells the frames of `from`.
    pool: usize,
    out: FrameBurst,
    burst: usize,
    size: usize,
    frames: u64,
}

impl Work for Lane {
    fn begin(&mut self) {}

    fn turn(&mut self) {
        while self.out.len() < self.burst {
            let Some(mut frame) = self.from.pool().alloc() else {
                break;
            };
            frame.set_len(self.size);
            self.out.push(frame);
        }
        self.from.tx_burst(&mut self.out);
        let mut came = FrameBurst::new();
        self.frames += self.to.rx_at_most(&mut came, self.burst) as u64;
        // Filled again without going back to the pool, as poll cores do.
        let again = came
            .drain(..)
            .filter(|frame| frame.pool() == self.pool && self.pool != 0);
        self.out.extend(again.take(self.burst - self.out.len()));
    }

    /// Frames in the rings go with the ports.
    fn wind_down(&mut self) -> bool {
        true
    }

    fn sample(&self) -> Sample {
        Sample {
            cycles: cycles(),
            messages: self.frames,
            frames: self.frames,
            ports: [self.from.stats(), self.to.stats()],
            spent: None,
        }
    }
}
