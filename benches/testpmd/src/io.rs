//! Frames from one port to the other without an RNIC in between.
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rnic_engine::{
    frame::{BURST, FrameBurst},
    port::{OpenPort, Port},
};

use crate::{
    TURNS, WARM_UP,
    args::Args,
    plan::Plan,
    report::{Report, Second, cycles, line},
};

/// Sends bursts on the first port and takes them from the second.
pub fn run(args: &Args, plan: Plan, mut ports: Vec<OpenPort>) -> Result<Report> {
    let (mut to, mut from) = (ports.remove(1), ports.remove(0));
    let mut lane = Lane {
        to: to.queues.remove(0),
        from: from.queues.remove(0),
        out: FrameBurst::new(),
        size: args.size as usize,
        frames: 0,
    };
    lane.forward(WARM_UP)?;
    let begin = lane.now();
    let mut last = begin;
    for _ in 0..args.seconds {
        lane.forward(Duration::from_secs(1))?;
        let now = lane.now();
        if !args.json {
            println!("{}", line(&plan, &last, &now));
        }
        last = now;
    }
    let report = Report::new(args, &plan, &begin, &last, 0, true);
    drop(lane);
    for port in [&mut to, &mut from] {
        port.link.close();
    }
    Ok(report)
}

struct Lane {
    to: Box<dyn Port>,
    from: Box<dyn Port>,
    out: FrameBurst,
    size: usize,
    frames: u64,
}

impl Lane {
    fn forward(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            for _ in 0..TURNS {
                self.turn()?;
            }
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        while self.out.len() < BURST {
            let Some(mut frame) = self.from.pool().alloc() else {
                break;
            };
            let room = frame.buffer_mut().len();
            ensure!(self.size <= room, "a frame of this port has {room} bytes at most");
            frame.set_len(self.size);
            self.out.push(frame);
        }
        self.from.tx_burst(&mut self.out);
        let mut came = FrameBurst::new();
        self.frames += self.to.rx_burst(&mut came) as u64;
        Ok(())
    }

    fn now(&self) -> Second {
        Second {
            cycles: cycles(),
            messages: self.frames,
            frames: self.frames,
        }
    }
}
