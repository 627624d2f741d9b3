//! What requests have in common: publications and grace periods.
//!
//! Who makes an object is answered after the publication that makes it findable; a destroy begins with one that makes its
//! object unfindable, and ends with a grace period. Requests that come this far in one pass of the event loop go on
//! together, so that a burst of a thousand costs a handful of publications and grace periods and not a thousand of each.

use std::time::Duration;

use crate::{control::Control, refusal::Verb, session::Reply};

/// Requests after which a batch goes out even if more are waiting.
const FULL: usize = 1024;
/// Longest look at poll cores before the loop sleeps.
const LONGEST: Duration = Duration::from_micros(50);
/// Shortest: enough to notice that cores have become quick again.
const SHORTEST: Duration = Duration::from_micros(2);

/// Requests that have come as far as they can by themselves.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Those whose object is in the next publication, to be answered after it: connection and answer.
    created: Vec<(u32, Verb<Reply>)>,
    /// Destructions whose ids go with the next publication, to be resumed after it.
    unpublished: Vec<u64>,
    /// Those whose cores have let go: they share the next grace period.
    stopped: Vec<u64>,
}

impl Batch {
    /// Whether nobody waits for it.
    pub fn is_empty(&self) -> bool {
        self.created.is_empty() && self.unpublished.is_empty() && self.stopped.is_empty()
    }

    /// Whether it is to go out now.
    pub fn is_full(&self) -> bool {
        self.created.len() + self.unpublished.len() >= FULL
    }

    /// An object is in the next publication; then its client is answered.
    pub fn answer_published(&mut self, conn: u32, answer: Verb<Reply>) {
        self.created.push((conn, answer));
    }

    /// The ids of a destruction's objects are out of the next publication; then it is resumed.
    pub fn resume_unpublished(&mut self, op: u64) {
        self.unpublished.push(op);
    }

    /// A request is resumed when a grace period has passed that begins after this.
    pub fn resume_after_grace(&mut self, op: u64) {
        self.stopped.push(op);
    }
}

/// How long the loop looks for the answers of poll cores before it sleeps: longer as long as that pays, and hardly when
/// the cores sleep, or share the CPU with it.
#[derive(Debug)]
pub(crate) struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Patience(LONGEST)
    }
}

impl Patience {
    /// Now.
    pub fn time(&self) -> Duration {
        self.0
    }

    /// Whether everything was answered in time.
    pub fn learn(&mut self, in_time: bool) {
        self.0 = if in_time {
            (self.0 * 2).min(LONGEST)
        } else {
            (self.0 / 2).max(SHORTEST)
        };
    }
}

impl Control {
    /// Publishes what the batch has changed, at once; then the makers of objects are answered, and destructions go on.
    pub(crate) fn publish_batch(&mut self) {
        // Answering a client serves its next request, or lets it leave: what that unpublishes is not in this publication
        // and waits for the next one.
        let created = std::mem::take(&mut self.batch.created);
        let unpublished = std::mem::take(&mut self.batch.unpublished);
        if self.engine.publisher().is_dirty() {
            self.engine.commit();
        }
        for (conn, answer) in created {
            self.answer(conn, answer);
        }
        for op in unpublished {
            self.resume(op);
        }
    }

    /// Begins one grace period for all whose cores have let go.
    pub(crate) fn begin_grace(&mut self) {
        if !self.batch.stopped.is_empty() {
            let epoch = self.engine.start_grace();
            self.ops.wait_for(epoch, std::mem::take(&mut self.batch.stopped));
        }
    }

    /// Resumes what waited for a grace period that is over, and begins what waited for room.
    pub(crate) fn check_grace(&mut self) {
        crate::lock_order::might_reclaim();
        while let Some(epoch) = self.ops.next_grace()
            && self.has_passed(epoch)
        {
            for number in self.ops.end_grace() {
                self.resume(number);
            }
        }
        if self.grace.in_line() > 0 {
            self.serve_line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_lost_with_slow_cores_and_comes_back_with_quick_ones() {
        let mut patience = Patience::default();
        for _ in 0..10 {
            patience.learn(false);
        }
        assert_eq!(patience.time(), SHORTEST);
        for _ in 0..10 {
            patience.learn(true);
        }
        assert_eq!(patience.time(), LONGEST);
    }
}
