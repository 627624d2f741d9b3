//! Watching whether poll cores go on: one that does not holds up every grace period, and nothing is freed past it.
use std::time::{Duration, Instant};

use rnic_qsbr::{Epoch, ParticipantState, Qsbr};

/// How long a core may be without progress before it counts as stalled. A pass takes microseconds; a core that
/// shares its CPU with others is away for some tens of milliseconds.
pub const STALLED_AFTER: Duration = Duration::from_millis(500);

/// One core, as far as it was seen.
#[derive(Copy, Clone, Debug)]
struct Seen {
    /// When it last had done what there was to do.
    progress: Instant,
    /// Commands it had answered then.
    answered: u64,
}

/// Commands of a core that want an answer.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Traffic {
    /// Given to it so far.
    pub asked: u64,
    /// Answered so far.
    pub answered: u64,
}

/// The cores, looked at now and then.
#[derive(Debug)]
pub(crate) struct Watch {
    cores: Vec<Seen>,
    /// When the cores were last looked at.
    looked: Instant,
    /// An epoch begun at the last look: an online core that is well has reported it by the next.
    probe: Epoch,
}

impl Watch {
    pub fn new(cores: usize, now: Instant) -> Self {
        let seen = Seen {
            progress: now,
            answered: 0,
        };
        Watch {
            cores: vec![seen; cores],
            looked: now,
            probe: Epoch::FIRST,
        }
    }

    /// A core makes progress when it reports the epoch of the last look, or sleeps, and answers what it was asked.
    pub fn look(&mut self, qsbr: &Qsbr, traffic: impl Iterator<Item = Traffic>, now: Instant) {
        for (id, (seen, traffic)) in self.cores.iter_mut().zip(traffic).enumerate() {
            let passes = match qsbr.state(id) {
                ParticipantState::Online { reported } => reported >= self.probe,
                ParticipantState::Offline | ParticipantState::Unregistered => true,
            };
            let answers = traffic.asked == traffic.answered || traffic.answered != seen.answered;
            if passes && answers {
                seen.progress = now;
            }
            seen.answered = traffic.answered;
        }
        (self.looked, self.probe) = (now, qsbr.advance());
    }

    /// For how long a core has been without progress, once that is long enough to be called a stall. The time since
    /// the last look does not make one: it is the looking thread that may have been away.
    pub fn stalled(&self, core: usize, now: Instant) -> Option<Duration> {
        let progress = self.cores.get(core)?.progress;
        let quiet = self.looked.saturating_duration_since(progress) >= STALLED_AFTER;
        quiet.then(|| now.saturating_duration_since(progress))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LOOK: Duration = Duration::from_millis(100);

    fn none() -> std::iter::Once<Traffic> {
        std::iter::once(Traffic::default())
    }

    #[test]
    fn an_online_core_that_reports_nothing_is_stalled_until_it_does() {
        let qsbr = Arc::new(Qsbr::new(1));
        let mut core = qsbr.register(0).unwrap();
        core.online();
        let start = Instant::now();
        let mut watch = Watch::new(1, start);
        let mut now = start;
        for _ in 0..100 {
            now += LOOK;
            let observed = core.observe();
            core.quiescent(observed);
            watch.look(&qsbr, none(), now);
            assert_eq!(watch.stalled(0, now), None);
        }
        let last = now;
        while now < last + STALLED_AFTER {
            assert_eq!(watch.stalled(0, now), None, "after {:?}", now - last);
            now += LOOK;
            watch.look(&qsbr, none(), now);
        }
        assert_eq!(watch.stalled(0, now), Some(STALLED_AFTER));
        let observed = core.observe();
        core.quiescent(observed);
        watch.look(&qsbr, none(), now + LOOK);
        assert_eq!(watch.stalled(0, now + LOOK), None);
    }

    #[test]
    fn a_sleeping_core_is_not_stalled_unless_it_leaves_a_command_unanswered() {
        let qsbr = Arc::new(Qsbr::new(1));
        let start = Instant::now();
        let mut watch = Watch::new(1, start);
        let mut now = start + 10 * STALLED_AFTER;
        watch.look(&qsbr, none(), now);
        assert_eq!(watch.stalled(0, now), None);
        let mut traffic = Traffic {
            asked: 2,
            answered: 0,
        };
        now += STALLED_AFTER;
        watch.look(&qsbr, std::iter::once(traffic), now);
        assert_eq!(watch.stalled(0, now), Some(STALLED_AFTER));
        traffic.answered = 1;
        watch.look(&qsbr, std::iter::once(traffic), now);
        assert_eq!(watch.stalled(0, now), None, "it answers, one at a time");
    }

    #[test]
    fn a_control_thread_that_was_away_blames_no_core() {
        let qsbr = Arc::new(Qsbr::new(1));
        let mut core = qsbr.register(0).unwrap();
        core.online();
        let start = Instant::now();
        let mut watch = Watch::new(1, start);
        watch.look(&qsbr, none(), start);
        let observed = core.observe();
        core.quiescent(observed);
        let later = start + Duration::from_secs(60);
        assert_eq!(watch.stalled(0, later), None, "nobody has looked since");
        watch.look(&qsbr, none(), later);
        assert_eq!(watch.stalled(0, later), None);
    }
}
