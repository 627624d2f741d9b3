//! The event loop: one pass after another.
//!
//! A pass takes requests, then goes on with them as far as they come. Poll cores that are awake answer within
//! microseconds, far sooner than a sleep and a wake take; so the loop looks for a while before it sleeps. What several
//! requests have in common, publications and grace periods, they share ([`crate::batch`]).

use std::time::{Duration, Instant};

use rnic_engine::command::Message;

use crate::{
    control::Control,
    poller::{Ready, Source},
};

/// Longest sleep while something waits for a grace period.
const GRACE_SLEEP: Duration = Duration::from_millis(1);
/// How long a burst of requests is taken in before what it changes is published.
const BURST: Duration = Duration::from_millis(1);
/// How often the cores' queues are looked at before the clock is.
const LOOKS_A_CLOCK: u32 = 16;

impl Control {
    /// One pass. False when the loop is to end.
    pub(crate) fn pass(&mut self, ready: &mut Vec<Ready>) -> bool {
        if !self.follow_up() {
            // What is due has time until nobody waits for an answer.
            self.upkeep(self.now);
            self.sleep(ready);
            self.now = Instant::now();
            self.take_requests(ready);
        }
        self.attend();
        !self
            .stopping
            .is_some_and(|deadline| self.connections.is_empty() || self.now >= deadline)
    }

    /// Serves the next request of whom was answered last, if it is there already.
    fn follow_up(&mut self) -> bool {
        let Some(conn) = self.follow_up.next() else {
            return false;
        };
        if !self.batch.is_empty() {
            return false;
        }
        self.now = Instant::now();
        let mut came = self.serve(conn);
        if !came && self.follow_up.gives_way() {
            let given = self.now;
            rustix::thread::sched_yield();
            self.now = Instant::now();
            self.follow_up.came_back(self.now - given);
            came = self.serve(conn);
        }
        self.follow_up.learn(came);
        came
    }

    /// Sleeps until something happens.
    fn sleep(&mut self, ready: &mut Vec<Ready>) {
        let reclaiming = crate::lock_order::reclaiming();
        self.engine.tidy();
        drop(reclaiming);
        let mut timeout = self.timeout(self.now);
        if timeout.is_zero() {
            self.poller.wait(Some(timeout), ready);
            return;
        }
        self.engine.arm();
        if self.hear_cores() {
            timeout = Duration::ZERO;
        }
        self.poller.wait(Some(timeout), ready);
        self.engine.disarm();
    }

    /// Serves who is ready. If there are several, more may be on their way: they are waited for, briefly, so that all of
    /// them share one publication.
    fn take_requests(&mut self, ready: &mut Vec<Ready>) {
        let start = self.now;
        loop {
            for &event in &*ready {
                self.happened(event);
            }
            let requests = ready.iter().filter(|r| matches!(r.source, Source::Client(_)));
            if requests.count() < 2 {
                return;
            }
            self.now = Instant::now();
            if self.batch.is_full() || self.now - start >= BURST {
                return;
            }
            self.hear_cores();
            self.poller.wait(Some(Duration::ZERO), ready);
        }
    }

    /// Goes on with everything that waits for poll cores or their quiescent states, until nothing does or patience ends.
    fn attend(&mut self) {
        let (start, mut looks) = (self.now, 0);
        loop {
            self.hear_cores();
            let late = self.now.saturating_duration_since(start) >= self.patience.time();
            // Who has an answer waits for those who will have one in a moment: they share what comes now.
            if late || self.ops.unanswered() == 0 {
                self.publish_batch();
                self.begin_grace();
            }
            self.check_grace();
            let waiting = self.ops.unanswered() > 0 || self.ops.await_grace() || !self.batch.is_empty();
            if !waiting || late {
                self.patience.learn(!waiting);
                return;
            }
            self.await_cores(start, &mut looks);
        }
    }

    /// Looks until the cores have sent something, the next grace period is over, or patience, which began at `start`,
    /// ends. Nothing is touched meanwhile but what tells of that: the cores are about to write there.
    fn await_cores(&mut self, start: Instant, looks: &mut u32) {
        let grace = self.ops.next_grace();
        loop {
            *looks += 1;
            // The clock takes longer than the look.
            if looks.is_multiple_of(LOOKS_A_CLOCK) {
                self.now = Instant::now();
                if self.now.saturating_duration_since(start) >= self.patience.time() {
                    return;
                }
            }
            if self.engine.has_news() || grace.is_some_and(|epoch| self.engine.is_past(epoch)) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Takes the messages of the poll cores. Whether there were any.
    fn hear_cores(&mut self) -> bool {
        let mut inbox = std::mem::take(&mut self.inbox);
        let reclaiming = crate::lock_order::reclaiming();
        self.engine.poll(|core, message| inbox.push((core, message)));
        drop(reclaiming);
        let heard = !inbox.is_empty();
        for (core, message) in inbox.drain(..) {
            match message {
                Message::Event(event) => self.object_event(&event),
                Message::Frame { port, frame } => {
                    let now = Instant::now();
                    let (heard, vlan) = self.slow.receive(port, frame.bytes(), frame.vlan(), now);
                    if let Some(heard) = heard {
                        self.heard(port, vlan, &heard, now);
                    }
                }
                answer => self.answered(core, answer),
            }
        }
        self.inbox = inbox;
        self.send_slow_frames();
        heard
    }

    /// How long the loop may sleep.
    fn timeout(&mut self, now: Instant) -> Duration {
        if !self.batch.is_empty() {
            return Duration::ZERO;
        }
        let mut next = self.next_check;
        for deadline in [
            self.neighbours.deadline(),
            self.slow.deadline(now),
            self.notifier.deadline(),
        ] {
            next = deadline.map_or(next, |d| next.min(d));
        }
        let mut timeout = next.saturating_duration_since(now);
        if self.ops.await_grace() {
            // Only a core that is slow, or shares this CPU, has not passed by now.
            let pause = Duration::from_micros(10 << self.grace_looks.min(10)).min(GRACE_SLEEP);
            timeout = timeout.min(pause);
            self.grace_looks += 1;
        } else {
            self.grace_looks = 0;
        }
        if self.engine.bytes_awaiting_grace() > 0 {
            timeout = timeout.min(Duration::from_millis(10));
        }
        timeout
    }
}
