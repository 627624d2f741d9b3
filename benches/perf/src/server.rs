//! The server's side of every test.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rnic::Completion;
use rnic::exchange::Exchange;

use crate::args::{Metric, Op};
use crate::bandwidth::POLL;
use crate::latency::End;
use crate::link::{Link, untag};
use crate::pattern::Pattern;
use crate::run::{Done, Ready, Run, Verdict};

/// After so long without one, no message of an unreliable connection is to come any more.
const QUIET: Duration = Duration::from_millis(500);
/// How long messages that the client saw completed may take to show here.
const GRACE: Duration = Duration::from_secs(10);

/// Serves one size, until the client says that it is done.
pub fn serve(link: &Link, run: &Run, peer: &mut Exchange) -> Result<()> {
    link.prepare_server(run);
    peer.send(&Ready)?;
    let over = AtomicBool::new(false);
    let (done, worked) = std::thread::scope(|scope| {
        // The client speaks next when it is done; meanwhile this thread does its part.
        let told = scope.spawn(|| {
            let done = peer.receive::<Done>();
            over.store(true, Ordering::Release);
            done
        });
        let worked = match (run.op, run.metric) {
            (Op::Read | Op::Atomic, _) | (Op::Write, Metric::Bw) => Ok(Work::default()),
            (Op::Send, Metric::Bw) => receive(link, run, &over),
            (Op::Send | Op::Write, Metric::Lat) => echo(link, run, &over),
        };
        (told.join(), worked)
    });
    let done = done.map_err(|_| anyhow::anyhow!("the thread that listens to the client panicked"))?;
    let done = done.context("the client left")?;
    let mut verdict = Verdict::default();
    match worked.and_then(|work| finish(link, run, &done, work)) {
        Ok(found) => verdict = found,
        Err(error) => verdict.failure = Some(format!("{error:#}")),
    }
    peer.send(&verdict)?;
    match verdict.failure {
        Some(failure) if !done.failed => bail!(failure),
        _ => Ok(()),
    }
}

/// What a server that works along has done.
#[derive(Default)]
struct Work {
    /// Messages received, by QP.
    received: Vec<u64>,
    corrupt: u64,
    /// What they are compared with, if they are.
    pattern: Option<Pattern>,
}

/// Answers each message of a latency test with one.
fn echo(link: &Link, run: &Run, over: &AtomicBool) -> Result<Work> {
    let mut end = End::new(link, run, over);
    let mut corrupt = 0;
    while end.arrived()? {
        corrupt += u64::from(run.verify && !end.check());
        end.post()?;
    }
    end.completed()?;
    Ok(Work {
        corrupt,
        ..Work::default()
    })
}

/// Receives until the client is done.
fn receive(link: &Link, run: &Run, over: &AtomicBool) -> Result<Work> {
    let mut work = Work {
        received: vec![0; link.qps.len()],
        corrupt: 0,
        pattern: run.verify.then(|| Pattern::new(run.size)),
    };
    while !over.load(Ordering::Acquire) {
        take(link, run, &mut work, Some(Duration::from_millis(10)))?;
    }
    Ok(work)
}

/// Takes completions of receives, verifies what came and posts the receives anew; whether there were some.
fn take(link: &Link, run: &Run, work: &mut Work, timeout: Option<Duration>) -> Result<bool> {
    let mut out = [Completion::default(); POLL];
    let count = link.cq.spin(&mut out, timeout)?;
    let mut first = 0;
    while first < count {
        // A run of completions of one QP is posted anew with one doorbell; shared receives complete in any order.
        let (area, from) = untag(out[first].ok()?.wr_id);
        let mut next = first;
        while next < count && untag(out[next].wr_id).0 == area && (next == first || link.srq.is_none()) {
            let completion = out[next].ok()?;
            let qp = match link.srq {
                Some(_) => link.index_of(completion.qpn)?,
                None => area,
            };
            if let Some(pattern) = &work.pattern {
                let message = work.received[qp];
                let place = run.receive_place(untag(completion.wr_id).1);
                // Those before it may be lost.
                let skips = if run.unreliable { run.slots } else { 1 };
                let right = completion.byte_len as usize == run.grh + run.size
                    && (message..message + skips)
                        .any(|n| pattern.is_at(&link.open_to_peer(area), place + run.grh, n % run.slots));
                work.corrupt += u64::from(!right);
            }
            work.received[qp] += 1;
            next += 1;
        }
        link.receive(run, area, from + run.receives, (next - first) as u64)?;
        first = next;
    }
    Ok(count > 0)
}

/// Waits for messages still to come and looks at what was written.
fn finish(link: &Link, run: &Run, done: &Done, mut work: Work) -> Result<Verdict> {
    if done.failed {
        return Ok(Verdict {
            corrupt: work.corrupt,
            ..Verdict::default()
        });
    }
    match (run.op, run.metric) {
        (Op::Send, Metric::Bw) => {
            let deadline = Instant::now() + GRACE;
            if run.unreliable {
                while take(link, run, &mut work, Some(QUIET))? {}
                let received: u64 = work.received.iter().sum();
                return Ok(Verdict {
                    corrupt: work.corrupt,
                    lost: done.messages.saturating_sub(received),
                    failure: None,
                });
            }
            while work.received.iter().sum::<u64>() < done.messages {
                take(link, run, &mut work, Some(Duration::from_millis(10)))?;
                if Instant::now() > deadline {
                    let received: u64 = work.received.iter().sum();
                    bail!(
                        "{received} messages arrived of {} that the client saw completed",
                        done.messages
                    );
                }
            }
        }
        (Op::Write, Metric::Bw) if run.verify => {
            let pattern = Pattern::new(run.size);
            let each = done.messages / link.qps.len() as u64;
            for qp in 0..link.qps.len() {
                let open = link.open_to_peer(qp);
                let places =
                    (0..run.slots.min(each)).filter(|slot| !pattern.is_at(&open, run.place(*slot), *slot));
                work.corrupt += places.count() as u64;
            }
        }
        (Op::Atomic, _) if run.verify => {
            let counted: u64 = (0..link.qps.len()).map(|qp| link.counted(qp)).sum();
            work.corrupt += counted.abs_diff(done.messages);
        }
        _ => {}
    }
    Ok(Verdict {
        corrupt: work.corrupt,
        ..Verdict::default()
    })
}
