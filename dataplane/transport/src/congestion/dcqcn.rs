//! The reaction point of DCQCN: the rate at which one flow may send ("Congestion Control for Large-Scale RDMA
//! Deployments", SIGCOMM 2015, section 3.1).
//!
//! A flow that has not heard of congestion is not limited. The first notification limits it to half of the line
//! rate. From then on its rate goes down with every notification, by a part that grows with how often they come
//! (`alpha`), and up with every turn of a timer and of a byte counter: half of the way back to the rate before the last
//! decrease (fast recovery), then beyond it by steps (additive increase, hyper increase). Back at the line rate it is
//! not limited any more.
//!
//! The two timers are looked at when the flow does something, since a rate matters to nobody while nothing is sent. And a
//! flow that is silent, for want of work or of answers, has not shown that there is room for more: the timer of increases
//! stands still meanwhile.

use super::MAX_RATE;
use super::control::{Control, Signal};
use crate::record::{BadField, record};
use crate::types::Time;

/// `alpha` of 1.
const ALPHA_ONE: u32 = 1 << 20;
/// Rate increases taken up in one call; what is left is taken up in the next.
const INCREASES_PER_CALL: u32 = 64;
/// Periods after which the oldest `alpha` is forgotten whatever `g` is: keeps powers small.
const MAX_DECAYS: u64 = 1 << 24;
/// Of the line rate: so close to it, a flow counts as being there. log2.
const NEARLY_LOG2: u32 = 6;

record! {
    /// Settings of DCQCN. Rates are bytes a second, as [`crate::Congestion`] counts them; times are nanoseconds, up to 4.29 s.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct DcqcnSettings {
        /// Rate of a flow that is not limited: that of the link.
        pub line_rate: u64,
        /// Rate below which no notification brings a flow.
        pub min_rate: u64,
        /// Step of additive increase (R_AI).
        pub additive_increase: u64,
        /// Step of hyper increase (R_HAI).
        pub hyper_increase: u64,
        /// Bytes after which the rate is increased (B).
        pub byte_counter: u32,
        /// Time after which the rate is increased (T).
        pub increase_timer: u32,
        /// Time without a notification after which `alpha` is decreased (K).
        pub alpha_timer: u32,
        /// The rate is decreased at most once in this time.
        pub decrease_interval: u32,
        /// Of the notification point: CNPs about one QP are at least so far apart (N).
        pub cnp_interval: u32,
        /// The gain of `alpha`, g: 1 / 2^`gain_log2`. 1 to 16.
        pub gain_log2: u32,
        /// Increases of fast recovery (F), at least 1.
        pub fast_recoveries: u32,
    }
}

impl DcqcnSettings {
    /// The paper's settings, with rates in proportion to the link's: it gives those for 40 Gb/s.
    pub const fn for_line_rate(line_rate: u64) -> Self {
        let line_rate = if line_rate == 0 { 1 } else { line_rate };
        DcqcnSettings {
            line_rate,
            min_rate: at_least_1(line_rate / 1_000),
            additive_increase: at_least_1(line_rate / 1_000),
            hyper_increase: at_least_1(line_rate / 100),
            byte_counter: 10_000_000,
            increase_timer: 55_000,
            alpha_timer: 55_000,
            decrease_interval: 50_000,
            cnp_interval: 50_000,
            gain_log2: 8,
            fast_recoveries: 5,
        }
    }

    /// The first value that is out of range.
    ///
    /// # Errors
    /// The field, and what would be right.
    pub fn check(&self) -> Result<(), BadField> {
        let rate = |field, rate, max| {
            BadField::unless(
                (1..=max).contains(&rate),
                field,
                rate,
                "1 byte a second to the line rate",
            )
        };
        BadField::unless(
            self.line_rate > 0 && self.line_rate < MAX_RATE,
            "line_rate",
            self.line_rate,
            "1 to 2^40 bytes a second",
        )?;
        rate("min_rate", self.min_rate, self.line_rate)?;
        rate("additive_increase", self.additive_increase, self.line_rate)?;
        rate("hyper_increase", self.hyper_increase, self.line_rate)?;
        for (field, value) in [
            ("byte_counter", self.byte_counter),
            ("increase_timer", self.increase_timer),
            ("alpha_timer", self.alpha_timer),
            ("decrease_interval", self.decrease_interval),
            ("cnp_interval", self.cnp_interval),
        ] {
            BadField::unless(value > 0, field, value, "at least 1")?;
        }
        BadField::unless(
            (1..=16).contains(&self.gain_log2),
            "gain_log2",
            self.gain_log2,
            "1 to 16",
        )?;
        let recoveries = (1..=1_000).contains(&self.fast_recoveries);
        BadField::unless(recoveries, "fast_recoveries", self.fast_recoveries, "1 to 1000")
    }
}

const fn at_least_1(rate: u64) -> u64 {
    if rate == 0 { 1 } else { rate }
}

record! {
    /// A flow and its settings.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Dcqcn {
        pub settings: DcqcnSettings,
        /// Current rate (R_C); the line rate while not limited.
        rate: u64,
        /// Target rate (R_T).
        target: u64,
        /// Bytes since the byte counter came round.
        bytes: u64,
        /// The timer comes round next.
        timer_deadline: Time,
        /// `alpha` was brought up to date.
        alpha_at: Time,
        /// No decrease before this.
        hold_until: Time,
        /// Estimate of how congested the way is, of [`ALPHA_ONE`].
        alpha: u32,
        /// Turns of the timer since the last decrease.
        timer_turns: u32,
        /// Turns of the byte counter since then.
        byte_turns: u32,
        limited: bool,
    }
}

impl Dcqcn {
    /// A flow that has not heard of congestion.
    pub const fn new(settings: DcqcnSettings) -> Self {
        Dcqcn {
            settings,
            rate: settings.line_rate,
            target: settings.line_rate,
            bytes: 0,
            timer_deadline: Time(0),
            alpha_at: Time(0),
            hold_until: Time(0),
            alpha: ALPHA_ONE,
            timer_turns: 0,
            byte_turns: 0,
            limited: false,
        }
    }

    pub fn check(&self) -> Result<(), BadField> {
        self.settings.check()?;
        let line = self.settings.line_rate;
        for (field, rate) in [("dcqcn.rate", self.rate), ("dcqcn.target", self.target)] {
            BadField::unless((1..=line).contains(&rate), field, rate, "1 to the line rate")?;
        }
        BadField::unless(self.alpha <= ALPHA_ONE, "dcqcn.alpha", self.alpha, "at most 2^20")?;
        let whole = self.bytes < self.settings.byte_counter.into();
        BadField::unless(whole, "dcqcn.bytes", self.bytes, "less than byte_counter")
    }

    /// Takes up what the timers have brought by `now`.
    fn catch_up(&mut self, now: Time) {
        for _ in 0..INCREASES_PER_CALL {
            if !self.limited || self.timer_deadline > now {
                return;
            }
            self.timer_deadline = self
                .timer_deadline
                .saturating_add(self.settings.increase_timer.into());
            self.timer_turns = self.timer_turns.saturating_add(1);
            self.increase();
        }
    }

    fn increase(&mut self) {
        let DcqcnSettings {
            line_rate,
            additive_increase,
            hyper_increase,
            fast_recoveries,
            ..
        } = self.settings;
        let (more, less) = (
            self.timer_turns.max(self.byte_turns),
            self.timer_turns.min(self.byte_turns),
        );
        let step = if more < fast_recoveries {
            0
        } else if less > fast_recoveries {
            hyper_increase.saturating_mul(u64::from(less - fast_recoveries))
        } else {
            additive_increase
        };
        self.target = self.target.saturating_add(step).min(line_rate);
        self.rate = (self.rate + self.target).div_ceil(2);
        if self.rate >= line_rate - (line_rate >> NEARLY_LOG2) {
            *self = Dcqcn {
                hold_until: self.hold_until,
                ..Dcqcn::new(self.settings)
            };
        }
    }

    /// `alpha` fades with every period without a notification.
    fn fade(&mut self, now: Time) {
        let period = u64::from(self.settings.alpha_timer);
        let periods = now.0.saturating_sub(self.alpha_at.0) / period;
        self.alpha_at = self.alpha_at.saturating_add(periods.saturating_mul(period));
        let (mut left, mut power) = (periods.min(MAX_DECAYS), self.keep());
        while left > 0 {
            if left & 1 == 1 {
                self.alpha = times(self.alpha, power);
            }
            power = times(power, power);
            left >>= 1;
        }
    }

    /// 1 − g.
    fn keep(&self) -> u32 {
        ALPHA_ONE - (ALPHA_ONE >> self.settings.gain_log2)
    }
}

/// The product of two fractions.
fn times(a: u32, b: u32) -> u32 {
    (u64::from(a) * u64::from(b) / u64::from(ALPHA_ONE)) as u32
}

impl Control for Dcqcn {
    fn rate(&self) -> Option<u64> {
        self.limited.then_some(self.rate)
    }

    fn sent(&mut self, bytes: u32, silent: u64, now: Time) {
        self.timer_deadline = self.timer_deadline.saturating_add(silent);
        self.catch_up(now);
        if !self.limited {
            return;
        }
        // A packet is never longer than a few turns of the shortest counter that makes sense.
        self.bytes = self.bytes.saturating_add(u64::from(bytes));
        let turn = u64::from(self.settings.byte_counter);
        if self.bytes >= turn {
            self.bytes %= turn;
            self.byte_turns = self.byte_turns.saturating_add(1);
            self.increase();
        }
    }

    fn congested(&mut self, signal: Signal, now: Time) -> bool {
        if now < self.hold_until {
            return false;
        }
        if self.limited {
            self.fade(now);
        }
        let alpha = match signal {
            Signal::Cnp | Signal::SequenceError => self.alpha,
            // Nothing came through any more: as if congestion were certain.
            Signal::Timeout => ALPHA_ONE,
        };
        self.target = self.rate;
        let cut = (u128::from(self.rate) * u128::from(alpha) / u128::from(2 * ALPHA_ONE)) as u64;
        self.rate = (self.rate - cut).max(self.settings.min_rate);
        self.alpha = times(self.alpha, self.keep()) + (ALPHA_ONE >> self.settings.gain_log2);
        self.alpha = self.alpha.min(ALPHA_ONE);
        (self.bytes, self.timer_turns, self.byte_turns) = (0, 0, 0);
        self.limited = true;
        self.alpha_at = now;
        self.timer_deadline = now.saturating_add(self.settings.increase_timer.into());
        self.hold_until = now.saturating_add(self.settings.decrease_interval.into());
        true
    }
}

#[cfg(test)]
mod tests;
