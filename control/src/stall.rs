//! Poll cores that do not go on: noticed, reported once a stall, and told in `rnicctl status`. Nothing is freed past
//! them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    control::Control,
    destroy::Destroy,
    objects::{Kind, What},
    ops::Work,
};

/// At least this long between two stalls of one core that are written to the log.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// What a core that does not go on holds up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldUp {
    /// How many objects, by kind: `qps`, `cqs`, `mrs`, `channels`, `pds`, `clients` that left, replaced `views`, and
    /// `others`.
    pub objects: BTreeMap<String, u64>,
    /// Bytes of the daemon's memory that await grace with them.
    pub bytes: usize,
    /// Bytes of memory regions that await grace with them.
    pub mapped_bytes: u64,
    /// How long the oldest has waited, in microseconds.
    pub oldest_us: u64,
    /// Commands of any kind that the core has not answered.
    pub commands: u64,
}

/// What is remembered of a core.
#[derive(Clone, Debug, Default)]
pub struct StallRecord {
    /// Its length so far, while it lasts.
    current: Option<Duration>,
    /// The stall's beginning is in the log, so its end will be.
    logged: bool,
    last_logged: Option<Instant>,
    /// Stalls that were not logged since.
    unlogged: u64,
    /// Stalls so far.
    count: u64,
}

impl StallRecord {
    /// Stalls so far, the present one included.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes what was just seen, and tells what is to be logged.
    fn see(&mut self, stalled: Option<Duration>, now: Instant) -> Option<Note> {
        match (self.current, stalled) {
            (None, Some(quiet)) => {
                self.current = Some(quiet);
                self.count += 1;
                self.logged = self
                    .last_logged
                    .is_none_or(|last| now.saturating_duration_since(last) >= LOG_EVERY);
                if !self.logged {
                    self.unlogged += 1;
                    return None;
                }
                self.last_logged = Some(now);
                let unlogged = std::mem::take(&mut self.unlogged);
                Some(Note::Begun { quiet, unlogged })
            }
            (Some(_), Some(quiet)) => {
                self.current = Some(quiet);
                None
            }
            (Some(quiet), None) => {
                self.current = None;
                std::mem::take(&mut self.logged).then_some(Note::Ended { quiet })
            }
            (None, None) => None,
        }
    }
}

/// A line for the log.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Note {
    Begun { quiet: Duration, unlogged: u64 },
    Ended { quiet: Duration },
}

impl Control {
    /// Looks whether the poll cores go on, and reports what has changed.
    pub(crate) fn watch_cores(&mut self, now: Instant) {
        self.engine.watch(now);
        for core in 0..self.stalls.len() {
            let stalled = self.engine.stalled(core, now);
            match self.stalls[core].see(stalled, now) {
                Some(Note::Begun { quiet, unlogged }) => {
                    let held = self.held_up_by(core, now);
                    let stalled_ms = quiet.as_millis() as u64;
                    let HeldUp {
                        objects,
                        bytes,
                        mapped_bytes,
                        oldest_us,
                        commands,
                    } = &held;
                    tracing::warn!(
                        core,
                        stalled_ms,
                        ?objects,
                        bytes,
                        mapped_bytes,
                        oldest_us,
                        commands,
                        unlogged,
                        "poll core {core} does not go on; what it may still look at is not freed before it does"
                    );
                }
                Some(Note::Ended { quiet }) => {
                    let stalled_ms = quiet.as_millis() as u64;
                    tracing::warn!(core, stalled_ms, "poll core {core} goes on");
                }
                None => {}
            }
        }
    }

    /// What awaits grace and waits for this core.
    pub(crate) fn held_up_by(&self, core: usize, now: Instant) -> HeldUp {
        let engine = self.engine.held_up_by(core, now);
        let mut held = HeldUp {
            bytes: engine.bytes,
            commands: self.engine.unanswered(core),
            ..HeldUp::default()
        };
        let mut oldest = engine.oldest;
        let mut count = |kind: &str, n: usize| {
            if n > 0 {
                *held.objects.entry(kind.to_owned()).or_default() += n as u64;
            }
        };
        count("views", engine.views);
        count("others", engine.others);
        for op in self.ops.iter().filter(|op| self.waits_for(&op.work, core)) {
            match &op.work {
                Work::Destroy(destroy) => {
                    for object in destroy.objects.iter().filter_map(|key| self.objects.peek(*key)) {
                        count(name_of(object.kind()), 1);
                    }
                }
                Work::Depart(_) => count("clients", 1),
                _ => {}
            }
            let cost = op.work.cost().unwrap_or_default();
            held.bytes += cost.bytes;
            held.mapped_bytes += cost.mapped;
            oldest = oldest.max(now.saturating_duration_since(op.started));
        }
        held.oldest_us = oldest.as_micros() as u64;
        held
    }

    /// Whether a destruction under way waits for this core.
    fn waits_for(&self, work: &Work, core: usize) -> bool {
        let (stopping, epoch) = match work {
            Work::Destroy(destroy) => (self.stops_on(destroy, core), destroy.epoch()),
            Work::Depart(departure) => (departure.is_stopping(), departure.epoch()),
            _ => return false,
        };
        stopping || epoch.is_some_and(|epoch| self.engine.laggards(epoch).contains(&core))
    }

    fn stops_on(&self, destroy: &Destroy, core: usize) -> bool {
        let of_core = |what: &What| match what {
            What::Qp(qp) => qp.core == core,
            What::Srq(srq) => srq.core == core,
            What::Cq(_) => true,
            _ => false,
        };
        let objects = destroy.objects.iter().filter_map(|key| self.objects.peek(*key));
        destroy.is_stopping() && objects.into_iter().any(|object| of_core(&object.what))
    }
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Pd => "pds",
        Kind::Mr => "mrs",
        Kind::Channel => "channels",
        Kind::Cq => "cqs",
        Kind::Qp => "qps",
        Kind::Ah => "ahs",
        Kind::Srq => "srqs",
        Kind::Xrcd => "xrcds",
        Kind::Target => "targets",
        Kind::Mw => "mws",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_stall_is_logged_once_when_it_begins_and_once_when_it_ends() {
        let mut record = StallRecord::default();
        let start = Instant::now();
        assert_eq!(record.see(None, start), None);
        let begun = record.see(Some(500 * MS), start);
        assert_eq!(
            begun,
            Some(Note::Begun {
                quiet: 500 * MS,
                unlogged: 0
            })
        );
        for i in 1..100 {
            assert_eq!(record.see(Some((500 + i * 100) * MS), start + i * 100 * MS), None);
        }
        let ended = record.see(None, start + 10_000 * MS);
        assert_eq!(ended, Some(Note::Ended { quiet: 10_400 * MS }));
        assert_eq!(record.count(), 1);
    }

    #[test]
    fn a_core_that_stalls_again_and_again_fills_no_log() {
        let mut record = StallRecord::default();
        let start = Instant::now();
        let mut notes = Vec::new();
        for i in 0..60 {
            let now = start + i * 200 * MS;
            notes.extend(record.see(Some(500 * MS), now));
            notes.extend(record.see(None, now + 100 * MS));
        }
        let begun: Vec<_> = notes
            .iter()
            .filter_map(|note| match note {
                Note::Begun { unlogged, .. } => Some(*unlogged),
                Note::Ended { .. } => None,
            })
            .collect();
        assert_eq!(
            begun,
            [0, 24, 24],
            "12 seconds, one in five, and how many were left out"
        );
        assert_eq!(notes.len(), 6, "each with its end");
        assert_eq!(record.count(), 60);
    }
}
