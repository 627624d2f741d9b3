//! One neighbour, and what it does by the clock (RFC 4861, 7.3; ARP the same).
//!
//! ```text
//!            answer                 lifetime over, in use
//! INCOMPLETE ──────► REACHABLE ─────────────────────────► PROBE ──► FAILED
//!     │                  ▲ │ lifetime over, unused          │ ▲       │
//!     │                  │ ▼                    answer      │ │       │ heard of
//!     └──► FAILED        │ STALE ──────────► in use: PROBE  │ └───────┘
//!        no answer       └───────────────────────────────── ┘
//! ```

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::users::List;
use crate::slowpath::Heard;

/// Broadcast or multicast questions: the pause after each.
pub(super) const SEARCH: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];
/// Unicast questions to the address that is believed (MAX_UNICAST_SOLICIT), before everyone is asked: the pause
/// after each (RETRANS_TIMER, but for the last, so that who moved is found before retry counters run out).
const UNICAST: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_millis(200),
];
const UNICASTS: u8 = UNICAST.len() as u8;
/// The step of a probe that begins with the last unicast question: something is suspicious already.
const SUSPICION: u8 = UNICASTS - 1;
/// How long an unused neighbour is remembered after its lifetime.
pub(super) const STALE_FOR: Duration = Duration::from_secs(60);
/// How long an unused neighbour that did not answer is known to be silent.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(3);
/// Pause between questions for a silent neighbour that is in use.
pub(super) const SILENT_RETRY: Duration = Duration::from_secs(5);
/// Shortest time between two changes of a MAC address. Each is a command for every QP that uses it, and anyone on
/// the link can claim an address.
pub(super) const SETTLE: Duration = Duration::from_millis(100);

/// What is known of a neighbour.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Configured.
    Static,
    /// Being searched for; so many questions were asked.
    Incomplete(u8),
    /// Heard of within its lifetime.
    Reachable,
    /// Not heard of for its lifetime, or only by hearsay; believed, and asked as soon as it is used.
    Stale,
    /// Believed, and being asked; so many steps are done.
    Probe(u8),
    /// Does not answer.
    Failed,
}

/// A question to be put on the link.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// To everyone.
    All,
    /// To this MAC address.
    One([u8; 6]),
}

/// What a due neighbour does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Asks.
    Ask(Question),
    /// Nothing that anyone sees.
    Nothing,
    /// It has just been given up.
    GiveUp,
    /// It is forgotten.
    Forget,
}

/// Where a station is.
pub(super) type Whereabouts = (u16, Option<u16>, IpAddr);

/// A neighbour.
#[derive(Debug)]
pub(super) struct Entry {
    pub whereabouts: Whereabouts,
    /// The local address that asks; none for one that was never of interest.
    pub from: Option<IpAddr>,
    /// The last MAC address known.
    pub mac: Option<[u8; 6]>,
    pub state: State,
    /// When it was last heard of.
    pub heard: Instant,
    /// When its MAC address last changed.
    pub changed: Option<Instant>,
    /// When something is due.
    pub due: Option<Instant>,
    /// Requests that wait for the MAC address.
    pub waiting: Vec<u64>,
    /// QPs and address handles with a path over it.
    pub users: List,
}

impl Entry {
    pub fn new(whereabouts: Whereabouts, state: State, now: Instant) -> Self {
        Entry {
            whereabouts,
            from: None,
            mac: None,
            state,
            heard: now,
            changed: None,
            due: None,
            waiting: Vec::new(),
            users: List::default(),
        }
    }

    /// Its MAC address, if it is believed.
    pub fn believed(&self) -> Option<[u8; 6]> {
        match self.state {
            State::Incomplete(_) | State::Failed => None,
            _ => self.mac,
        }
    }

    /// Whether nobody misses it.
    pub fn is_unused(&self) -> bool {
        self.users.is_empty() && self.waiting.is_empty() && self.state != State::Static
    }

    /// It has told its MAC address, or another station has that claims to be it. Whether that changes what was
    /// known.
    pub fn hear(&mut self, heard: &Heard, lifetime: Duration, now: Instant) -> bool {
        let Heard {
            mac,
            to_us,
            overrides,
            ..
        } = *heard;
        let before = self.mac;
        if before == Some(mac) {
            if to_us {
                self.confirm(lifetime, now);
            } else if self.believed().is_none() {
                // It lives, by hearsay.
                self.suspect(now);
            }
            return false;
        }
        if self.believed().is_some() {
            // Once the one known has not answered, who does is believed, as in the first search.
            let searched = matches!(self.state, State::Probe(step) if step > UNICASTS);
            if !overrides && !searched {
                // RFC 4861, 7.2.5: who does not insist changes nothing, but makes suspicious.
                if self.state == State::Reachable {
                    self.suspect(now);
                }
                return false;
            }
            let until = self.changed.map(|at| at + SETTLE).filter(|until| now < *until);
            if let Some(until) = until {
                // Too soon after the last change: who is right will answer then.
                (self.state, self.due) = (State::Probe(SUSPICION), Some(until));
                return false;
            }
        }
        let answer = to_us && matches!(self.state, State::Incomplete(_) | State::Probe(_) | State::Failed);
        self.mac = Some(mac);
        self.changed = before.map(|_| now);
        if answer {
            self.confirm(lifetime, now);
        } else {
            self.suspect(now);
        }
        before.is_some()
    }

    fn confirm(&mut self, lifetime: Duration, now: Instant) {
        self.heard = now;
        self.enter(State::Reachable, now + lifetime);
    }

    /// It is believed without proof: asked if it is used, remembered for a while if not.
    pub fn suspect(&mut self, now: Instant) {
        self.heard = now;
        if self.users.is_empty() {
            self.enter(State::Stale, now + STALE_FOR);
        } else {
            self.enter(State::Probe(SUSPICION), now);
        }
    }

    /// Asks everyone for it, from the first question on.
    pub fn search(&mut self, now: Instant) {
        self.enter(State::Incomplete(0), now);
    }

    /// Asks it whether it is still where it was.
    pub fn probe(&mut self, now: Instant) {
        self.enter(State::Probe(0), now);
    }

    fn enter(&mut self, state: State, due: Instant) {
        (self.state, self.due) = (state, Some(due));
    }

    /// Its time has come.
    pub fn step(&mut self, now: Instant) -> Step {
        let used = !self.is_unused();
        match self.state {
            State::Static => {
                self.due = None;
                Step::Nothing
            }
            State::Incomplete(asked) => match SEARCH.get(usize::from(asked)) {
                Some(pause) => {
                    self.enter(State::Incomplete(asked + 1), now + *pause);
                    Step::Ask(Question::All)
                }
                None => self.give_up(now),
            },
            State::Reachable if used => self.probe_step(0, now),
            State::Reachable => {
                self.enter(State::Stale, now + STALE_FOR);
                Step::Nothing
            }
            State::Stale if used => self.probe_step(0, now),
            State::Probe(step) => self.probe_step(step, now),
            State::Failed if used => {
                self.due = Some(now + SILENT_RETRY);
                Step::Ask(Question::All)
            }
            State::Stale | State::Failed => Step::Forget,
        }
    }

    fn probe_step(&mut self, step: u8, now: Instant) -> Step {
        let search = SEARCH.get(usize::from(step.saturating_sub(UNICASTS)));
        match (self.mac, UNICAST.get(usize::from(step)), search) {
            (Some(mac), Some(pause), _) => {
                self.enter(State::Probe(step + 1), now + *pause);
                Step::Ask(Question::One(mac))
            }
            (_, _, Some(pause)) => {
                self.enter(State::Probe(step.max(UNICASTS) + 1), now + *pause);
                Step::Ask(Question::All)
            }
            (_, _, None) => self.give_up(now),
        }
    }

    fn give_up(&mut self, now: Instant) -> Step {
        let pause = if self.users.is_empty() {
            SILENT_FOR
        } else {
            SILENT_RETRY
        };
        self.enter(State::Failed, now + pause);
        Step::GiveUp
    }
}
