//! The client's side of bandwidth tests.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rnic::Completion;

use crate::args::Op;
use crate::link::{Link, tag, untag};
use crate::pattern::Pattern;
use crate::run::{Outcome, Run};

/// How long nothing may complete.
pub const STALL: Duration = Duration::from_secs(30);
/// Completions taken at a time.
pub const POLL: usize = 32;

/// Keeps every QP's send queue filled and counts what completes.
pub fn run(link: &Link, run: &Run) -> Outcome {
    let mut outcome = Outcome::default();
    let begin = Instant::now();
    if let Err(error) = flow(link, run, begin, &mut outcome) {
        outcome.fail(format_args!("{error:#}"));
    }
    outcome.elapsed = begin.elapsed();
    outcome
}

/// Progress of a QP.
#[derive(Default)]
struct Flow {
    posted: u64,
    done: u64,
    /// When the batches in flight were posted, each with the number after its last message.
    batches: VecDeque<(u64, Instant)>,
}

fn flow(link: &Link, run: &Run, begin: Instant, outcome: &mut Outcome) -> Result<()> {
    let pattern = Pattern::new(run.size);
    let end = run.duration.map(|duration| begin + duration);
    let batch = if run.verify {
        1
    } else {
        (run.depth / 4).clamp(1, 32)
    };
    let mut flows: Vec<Flow> = link.qps.iter().map(|_| Flow::default()).collect();
    let mut out = [Completion::default(); POLL];
    let mut stretch = (begin, 0);
    loop {
        let more = end.is_none_or(|end| Instant::now() < end);
        let mut in_flight = false;
        for (qp, flow) in flows.iter_mut().enumerate() {
            let left = if run.duration.is_some() {
                u64::MAX
            } else {
                run.iters
            } - flow.posted;
            let room = run.depth - (flow.posted - flow.done);
            let count = batch.min(left);
            if more && count > 0 && room >= count {
                post(link, run, qp, flow.posted, count)?;
                flow.posted += count;
                flow.batches.push_back((flow.posted, Instant::now()));
            }
            in_flight |= flow.done < flow.posted;
        }
        if !in_flight {
            return Ok(());
        }
        let mut count = link.cq.poll(&mut out);
        if count == 0 && !can_post(run, &flows, batch, more) {
            count = link.cq.spin(&mut out, Some(STALL))?;
            if count == 0 {
                bail!("nothing completed for {} s", STALL.as_secs());
            }
        }
        let now = Instant::now();
        for completion in &out[..count] {
            let (qp, n) = untag(completion.ok()?.wr_id);
            if run.verify {
                let right = match run.op {
                    Op::Read => pattern.is_at(&link.own(qp), run.place(n), n % run.slots),
                    Op::Atomic => link.found(run, qp, n) == n,
                    Op::Send | Op::Write => true,
                };
                outcome.errors += u64::from(!right);
            }
            let flow = &mut flows[qp];
            outcome.messages += n + 1 - flow.done;
            flow.done = n + 1;
            while let Some((_, posted)) = flow.batches.front().filter(|(end, _)| *end <= flow.done) {
                outcome.samples.push((now - *posted).as_nanos() as u64);
                flow.batches.pop_front();
            }
        }
        let (since, from) = stretch;
        if outcome.messages - from >= run.depth && now > since {
            let rate = (outcome.messages - from) as f64 / (now - since).as_secs_f64();
            outcome.peak = outcome.peak.max(rate);
            stretch = (now, outcome.messages);
        }
    }
}

/// Whether a QP has room for a batch, so that there is something better to do than to wait.
fn can_post(run: &Run, flows: &[Flow], batch: u64, more: bool) -> bool {
    let wants = |flow: &Flow| {
        let left = if run.duration.is_some() {
            u64::MAX
        } else {
            run.iters
        } - flow.posted;
        let count = batch.min(left);
        count > 0 && run.depth - (flow.posted - flow.done) >= count
    };
    more && flows.iter().any(wants)
}

/// Posts messages `from..from + count`; the last completes for all.
fn post(link: &Link, run: &Run, qp: usize, from: u64, count: u64) -> rnic::Result<()> {
    let own = link.own(qp);
    let mut batch = link.qps[qp].batch();
    for n in from..from + count {
        let local = own.slice(run.place(n)..run.place(n) + run.size);
        let last = n + 1 == from + count;
        macro_rules! finish {
            ($request:expr) => {{
                let request = $request.wr_id(tag(qp, n));
                if last {
                    request.signaled();
                }
            }};
        }
        match run.op {
            Op::Send => finish!(link.send(&mut batch, qp, local)),
            Op::Write => finish!(batch.write(local, link.remote(run, qp, n))),
            Op::Read => finish!(batch.read(local, link.remote(run, qp, n))),
            Op::Atomic => finish!(link.atomic(run, &mut batch, qp, n)),
        }
    }
    batch.post()?;
    Ok(())
}
