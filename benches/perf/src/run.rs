//! One run: one size of message, and what client and server tell each other about it.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::args::{AtomicType, Connection, Metric, Op, Plan};

/// Memory of a QP for messages in flight when each must keep its own place to be verified.
const VERIFY_BYTES: u64 = 16 << 20;
/// Otherwise messages cycle through a page, as in perftest.
const CYCLE_BYTES: u64 = 4096;
/// Bytes in front of a received datagram.
const GRH_AREA: usize = 40;
/// Receives kept posted, at least.
const RX_DEPTH: u64 = 512;

/// What is measured, for one size. Both sides derive the same from the plan.
#[derive(Clone, Debug)]
pub struct Run {
    pub op: Op,
    pub atomic_type: AtomicType,
    pub metric: Metric,
    pub size: usize,
    pub iters: u64,
    pub duration: Option<Duration>,
    pub verify: bool,
    /// Messages in flight on a QP.
    pub depth: u64,
    /// Places that messages cycle through, on either side.
    pub slots: u64,
    /// Receives kept posted on a QP, each with its place.
    pub receives: u64,
    /// Bytes in front of what is received: the GRH area of datagrams.
    pub grh: usize,
    /// Messages may be lost.
    pub unreliable: bool,
    /// Room for messages at the places of receives: the largest size of the plan, so that receives left from one size
    /// serve the next.
    room: usize,
}

impl Run {
    pub fn new(plan: &Plan, size: u64) -> Run {
        let depth = u64::from(plan.tx_depth);
        let bytes = if plan.verify { VERIFY_BYTES } else { CYCLE_BYTES };
        let places = |size: u64| (bytes / size).max(1);
        let slots = places(size).min(depth);
        let verified_in_place = plan.verify && matches!(plan.op, Op::Read | Op::Atomic);
        let receives = match (plan.op, plan.verify) {
            (Op::Send, true) => places(plan.max_size()).min(RX_DEPTH),
            (Op::Send, false) => RX_DEPTH.max(2 * depth),
            _ => 0,
        };
        Run {
            op: plan.op,
            atomic_type: plan.atomic_type,
            metric: plan.metric,
            size: size as usize,
            iters: plan.iters,
            duration: plan.duration.map(Duration::from_secs),
            verify: plan.verify,
            // What a READ or atomic brought must not be overwritten by the next before it was looked at.
            depth: if verified_in_place { slots } else { depth },
            slots,
            receives,
            grh: if plan.connection == Connection::Ud {
                GRH_AREA
            } else {
                0
            },
            unreliable: plan.connection != Connection::Rc,
            room: plan.max_size() as usize,
        }
    }

    /// Distance of the places of receives.
    pub fn stride(&self) -> usize {
        self.grh + self.room
    }

    /// Where message number `n` stands.
    pub fn place(&self, n: u64) -> usize {
        (n % self.slots) as usize * self.size
    }

    /// Where the `n`-th receive stands.
    pub fn receive_place(&self, n: u64) -> usize {
        if self.verify {
            (n % self.receives) as usize * self.stride()
        } else {
            0
        }
    }

    /// Memory it needs for a QP.
    pub fn bytes(&self) -> usize {
        let places = self.slots as usize * self.size;
        let receives = if self.verify {
            self.receives as usize * self.stride()
        } else {
            self.stride()
        };
        places.max(receives)
    }
}

/// From the server: it is ready for the next size.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready;

/// From the client: it is done with this size.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    pub messages: u64,
    pub failed: bool,
}

/// From the server: what it found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Messages whose bytes were wrong.
    pub corrupt: u64,
    /// Messages that never came, of an unreliable connection.
    pub lost: u64,
    /// What went wrong otherwise.
    pub failure: Option<String>,
}

/// What the client found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Messages done, on all QPs.
    pub messages: u64,
    pub elapsed: Duration,
    /// Best messages a second over a stretch of a queue's depth.
    pub peak: f64,
    /// Nanoseconds from post to completion (bw), or of half a round trip (lat; READ, atomics: a whole one).
    pub samples: Vec<u64>,
    /// Failed messages, on either side.
    pub errors: u64,
    /// Messages that never came, of an unreliable connection.
    pub lost: u64,
    /// Why the run ended early.
    pub failure: Option<String>,
}

impl Outcome {
    /// Ends the run with an error.
    pub fn fail(&mut self, error: impl std::fmt::Display) {
        self.errors += 1;
        self.failure.get_or_insert_with(|| error.to_string());
    }

    /// Adds what the server found.
    pub fn judge(&mut self, verdict: &Verdict) {
        self.errors += verdict.corrupt;
        self.lost += verdict.lost;
        if let Some(failure) = &verdict.failure {
            self.errors += 1;
            self.failure
                .get_or_insert_with(|| format!("the server: {failure}"));
        }
    }

    pub fn messages_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.messages as f64 / seconds
        } else {
            0.0
        }
    }
}
