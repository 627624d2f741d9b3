//! Latency tests: the client's side, and the loops of a ping-pong that both sides share.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rnic::{Completion, MrSlice};

use crate::args::Op;
use crate::bandwidth::{POLL, STALL};
use crate::link::{Link, untag};
use crate::pattern::Pattern;
use crate::run::{Outcome, Run};

/// Looks at a memory word between two looks at the CQ.
const SPINS: u32 = 64;

/// Sends messages to and fro, or READs and atomics, one at a time.
pub fn run(link: &Link, run: &Run) -> Outcome {
    let mut outcome = Outcome {
        samples: Vec::with_capacity(run.iters as usize),
        ..Outcome::default()
    };
    let begin = Instant::now();
    if let Err(error) = measure(link, run, begin, &mut outcome) {
        outcome.fail(format_args!("{error:#}"));
    }
    outcome.elapsed = begin.elapsed();
    outcome
}

fn measure(link: &Link, run: &Run, begin: Instant, outcome: &mut Outcome) -> Result<()> {
    let never = AtomicBool::new(false);
    let mut end = End::new(link, run, &never);
    let halves = match run.op {
        Op::Read | Op::Atomic => 1,
        Op::Send | Op::Write => 2,
    };
    loop {
        let over = match run.duration {
            Some(duration) => begin.elapsed() >= duration,
            None => outcome.messages == run.iters,
        };
        if over {
            return Ok(());
        }
        let start = Instant::now();
        end.post()?;
        match run.op {
            Op::Read | Op::Atomic => end.completed()?,
            Op::Send | Op::Write => ensure!(end.arrived()?, "the peer stopped"),
        }
        outcome.samples.push(start.elapsed().as_nanos() as u64 / halves);
        outcome.messages += 1;
        outcome.errors += u64::from(run.verify && !end.check());
    }
}

/// One end of a ping-pong, on the first QP.
pub struct End<'a> {
    link: &'a Link,
    run: &'a Run,
    /// Set when the other side has ended the game.
    over: &'a AtomicBool,
    own: MrSlice,
    open: MrSlice,
    pattern: Pattern,
    /// Messages posted, completed, and arrived.
    posted: u64,
    completed: u64,
    arrived: u64,
    /// The receive that took the last message; receives are counted through all sizes of a plan.
    receive: u64,
    out: [Completion; POLL],
}

impl<'a> End<'a> {
    pub fn new(link: &'a Link, run: &'a Run, over: &'a AtomicBool) -> Self {
        End {
            link,
            run,
            over,
            own: link.own(0),
            open: link.open_to_peer(0),
            pattern: Pattern::new(run.size),
            posted: 0,
            completed: 0,
            arrived: 0,
            receive: 0,
            out: [Completion::default(); POLL],
        }
    }

    /// Posts the next message.
    pub fn post(&mut self) -> Result<()> {
        while self.posted - self.completed >= self.run.depth {
            self.progress(Some(STALL))?;
        }
        let local = self.own.slice(..self.run.size);
        let remote = self.link.remote(self.run, 0, 0);
        if self.run.op == Op::Write {
            self.own.write_at(self.run.size - 1, &[flag(self.posted)]);
        }
        self.link.qps[0].post(|batch| match self.run.op {
            Op::Send => drop(self.link.send(batch, 0, local).signaled()),
            Op::Write => drop(batch.write(local, remote).signaled()),
            Op::Read => drop(batch.read(local, remote).signaled()),
            Op::Atomic => drop(self.link.atomic(self.run, batch, 0, self.posted).signaled()),
        })?;
        self.posted += 1;
        Ok(())
    }

    /// Waits until everything posted has completed.
    pub fn completed(&mut self) -> Result<()> {
        while self.completed < self.posted {
            self.progress(Some(STALL))?;
        }
        Ok(())
    }

    /// Waits for the peer's next message; false when the game is over instead.
    pub fn arrived(&mut self) -> Result<bool> {
        let before = self.arrived;
        let mut since = Instant::now();
        while self.arrived == before {
            if self.run.op == Op::Write {
                if (0..SPINS).any(|_| self.flag() == flag(before)) {
                    self.arrived += 1;
                    break;
                }
                std::thread::yield_now();
            }
            let found = match self.run.op {
                Op::Write => self.poll()?,
                Op::Send | Op::Read | Op::Atomic => self.wait(Some(Duration::from_millis(10)))?,
            };
            if found {
                since = Instant::now();
            } else if self.over.load(Ordering::Acquire) {
                return Ok(false);
            } else if since.elapsed() > STALL {
                bail!("nothing arrived for {} s", STALL.as_secs());
            }
        }
        Ok(true)
    }

    /// Whether what came last, or was READ last, is as it should be.
    pub fn check(&self) -> bool {
        match self.run.op {
            Op::Read => self.pattern.is_at(&self.own, 0, 0),
            Op::Atomic => {
                let last = self.completed - 1;
                self.link.found(self.run, 0, last) == last
            }
            Op::Send => {
                self.pattern
                    .is_at(&self.open, self.run.receive_place(self.receive) + self.run.grh, 0)
            }
            // The last byte is the flag.
            Op::Write => {
                let body = self.run.size - 1;
                self.open.read_vec(0, body) == self.pattern.of(0)[..body]
            }
        }
    }

    fn flag(&self) -> u8 {
        self.open.load_u8(self.run.size - 1, Ordering::Acquire)
    }

    fn progress(&mut self, timeout: Option<Duration>) -> Result<()> {
        ensure!(self.wait(timeout)?, "nothing completed for {} s", STALL.as_secs());
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let count = self.link.cq.spin(&mut self.out, timeout)?;
        self.take(count)
    }

    fn poll(&mut self) -> Result<bool> {
        let count = self.link.cq.poll(&mut self.out);
        self.take(count)
    }

    fn take(&mut self, count: usize) -> Result<bool> {
        for completion in &self.out[..count] {
            if completion.ok()?.is_recv {
                self.arrived += 1;
                self.receive = untag(completion.wr_id).1;
                // The place is not used again before its check: the peer waits for our answer.
                self.link
                    .receive(self.run, 0, self.receive + self.run.receives, 1)?;
            } else {
                self.completed += 1;
            }
        }
        Ok(count > 0)
    }
}

/// What the last byte of WRITE number `n` is: never zero, and another than the one before.
fn flag(n: u64) -> u8 {
    (n % 255) as u8 + 1
}
