//! Where the cycles of a core go. Only builds with the feature `stages` look at the clock, which takes longer than some of what
//! is measured; in all others nothing of it is left.

/// What a core is about.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Frames from ports.
    Rx,
    /// Headers of frames.
    Classify,
    /// ICRCs, but for those of long payloads, which are summed while they are copied.
    Icrc,
    /// From a frame to its QP, and whether it may come from where it does.
    Lookup,
    /// Requests and responses, work requests and completions.
    StateMachine,
    /// Payload from and to clients' memory, and the headers in front of it.
    Copy,
    /// Frames to ports.
    Tx,
    /// Whole passes with nothing to do.
    Idle,
    /// Everything else: doorbells, timers, commands, and whoever drives the core.
    Other,
}

impl Stage {
    /// All, with the names that reports have for them.
    pub const ALL: [(Stage, &'static str); 9] = [
        (Stage::Rx, "rx"),
        (Stage::Classify, "classify"),
        (Stage::Icrc, "icrc"),
        (Stage::Lookup, "lookup"),
        (Stage::StateMachine, "state_machine"),
        (Stage::Copy, "copy"),
        (Stage::Tx, "tx"),
        (Stage::Idle, "idle"),
        (Stage::Other, "other"),
    ];
}

/// Cycles spent in one stage, and how often it was begun.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time stamp counter.
    pub cycles: u64,
    /// Times.
    pub begun: u64,
}

#[cfg(feature = "stages")]
pub(super) use on::Stages;

#[cfg(not(feature = "stages"))]
pub(super) use off::Stages;

#[cfg(feature = "stages")]
mod on {
    use super::{Spent, Stage};
    use crate::core::run::cycles;

    /// The account of a core.
    pub struct Stages {
        spent: [Spent; Stage::ALL.len()],
        stage: Stage,
        since: u64,
        /// As it was when the pass began.
        before: [Spent; Stage::ALL.len()],
    }

    impl Stages {
        pub fn new() -> Self {
            let none = [Spent::default(); Stage::ALL.len()];
            Stages {
                spent: none,
                stage: Stage::Other,
                since: cycles(),
                before: none,
            }
        }

        /// Begins a stage and tells which one it was before.
        #[inline]
        pub fn enter(&mut self, stage: Stage) -> Stage {
            let now = cycles();
            let spent = &mut self.spent[self.stage as usize];
            spent.cycles += now.wrapping_sub(self.since);
            spent.begun += 1;
            self.since = now;
            std::mem::replace(&mut self.stage, stage)
        }

        /// A pass begins.
        pub fn begin(&mut self) {
            self.enter(Stage::Other);
            self.before = self.spent;
        }

        /// A pass ends in which so much was done.
        pub fn end(&mut self, work: usize) {
            self.enter(Stage::Other);
            if work == 0 {
                let sum = |spent: &[Spent]| {
                    let cycles = spent.iter().map(|spent| spent.cycles).sum::<u64>();
                    (cycles, spent.iter().map(|spent| spent.begun).sum::<u64>())
                };
                let ((now, begun), (then, begun_then)) = (sum(&self.spent), sum(&self.before));
                self.spent = self.before;
                let idle = &mut self.spent[Stage::Idle as usize];
                idle.cycles += now - then;
                idle.begun += begun - begun_then;
            }
        }

        /// What was spent so far, in the order of [`Stage::ALL`].
        pub fn spent(&self) -> Option<[Spent; Stage::ALL.len()]> {
            Some(self.spent)
        }
    }
}

#[cfg(not(feature = "stages"))]
mod off {
    use super::{Spent, Stage};

    /// Nothing.
    pub struct Stages;

    impl Stages {
        pub fn new() -> Self {
            Stages
        }

        #[inline(always)]
        pub fn enter(&mut self, _: Stage) -> Stage {
            Stage::Other
        }

        #[inline(always)]
        pub fn begin(&mut self) {}

        #[inline(always)]
        pub fn end(&mut self, _: usize) {}

        pub fn spent(&self) -> Option<[Spent; Stage::ALL.len()]> {
            None
        }
    }
}
