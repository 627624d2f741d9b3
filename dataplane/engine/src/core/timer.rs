//! Timers of the QPs of one core: a hashed wheel of slots, intrusive and preallocated.
//!
//! One entry a QP, and lazily: an entry that comes up early (its QP has moved its deadline, or the deadline is
//! beyond the wheel) is looked at and put back. Entries are slot numbers, never addresses.
use rnic_transport::Time;

/// 2^14 ns = 16.4 µs a bucket.
const GRANULARITY: u32 = 14;
/// 4,096 buckets: 67 ms a turn.
const BUCKETS: usize = 4096;
const NONE: u32 = u32::MAX;

#[derive(Copy, Clone)]
struct Node {
    next: u32,
    prev: u32,
    /// Tick at which the entry comes up; meaningful while `bucket != NONE`.
    tick: u64,
    bucket: u32,
}

/// The wheel.
pub struct TimerWheel {
    heads: Box<[u32]>,
    nodes: Box<[Node]>,
    /// First tick that was not expired yet.
    now: u64,
    armed: usize,
}

impl TimerWheel {
    /// A wheel for slots below `slots`.
    pub fn new(slots: usize, now: Time) -> Self {
        TimerWheel {
            heads: vec![NONE; BUCKETS].into(),
            nodes: vec![
                Node {
                    next: NONE,
                    prev: NONE,
                    tick: 0,
                    bucket: NONE
                };
                slots
            ]
            .into(),
            now: now.0 >> GRANULARITY,
            armed: 0,
        }
    }

    /// Makes sure that `slot` comes up by `deadline` at the latest, or one turn of the wheel from now.
    #[inline]
    pub fn arm(&mut self, slot: u32, deadline: Time) {
        let tick = (deadline.0 >> GRANULARITY).max(self.now) + 1;
        let tick = tick.min(self.now + BUCKETS as u64 - 1);
        let node = self.nodes[slot as usize];
        if node.bucket != NONE {
            if node.tick <= tick {
                return;
            }
            self.unlink(slot);
        }
        let bucket = (tick % BUCKETS as u64) as u32;
        let head = self.heads[bucket as usize];
        self.nodes[slot as usize] = Node {
            next: head,
            prev: NONE,
            tick,
            bucket,
        };
        if head != NONE {
            self.nodes[head as usize].prev = slot;
        }
        self.heads[bucket as usize] = slot;
        self.armed += 1;
    }

    /// Forgets `slot`.
    pub fn cancel(&mut self, slot: u32) {
        if self.nodes[slot as usize].bucket != NONE {
            self.unlink(slot);
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Node {
            next, prev, bucket, ..
        } = self.nodes[slot as usize];
        match prev {
            NONE => self.heads[bucket as usize] = next,
            _ => self.nodes[prev as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
        self.nodes[slot as usize].bucket = NONE;
        self.armed -= 1;
    }

    /// Takes one slot that has come up by `now`; call until `None`. Looks at no more than one turn of buckets.
    #[inline]
    pub fn expire(&mut self, now: Time) -> Option<u32> {
        let target = now.0 >> GRANULARITY;
        if self.armed == 0 {
            self.now = self.now.max(target);
            return None;
        }
        // Everything older than a turn has been seen in that turn.
        self.now = self.now.max((target + 1).saturating_sub(BUCKETS as u64));
        while self.now <= target {
            let slot = self.heads[(self.now % BUCKETS as u64) as usize];
            if slot != NONE {
                self.unlink(slot);
                return Some(slot);
            }
            self.now += 1;
        }
        None
    }

    /// A time by which [`TimerWheel::expire`] should be called, at most a turn ahead; `None` when no timer is
    /// armed.
    pub fn next(&self) -> Option<Time> {
        if self.armed == 0 {
            return None;
        }
        let from = self.now;
        let ahead = (0..BUCKETS as u64).find(|i| self.heads[((from + i) % BUCKETS as u64) as usize] != NONE);
        Some(Time((from + ahead.unwrap_or(0)) << GRANULARITY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn run(wheel: &mut TimerWheel, until: u64) -> Vec<u32> {
        std::iter::from_fn(|| wheel.expire(Time(until))).collect()
    }

    #[test]
    fn a_timer_comes_up_after_its_deadline_and_not_before() {
        let mut wheel = TimerWheel::new(8, Time(0));
        wheel.arm(3, Time(5 * MS));
        assert_eq!(run(&mut wheel, 5 * MS - 1), []);
        assert_eq!(run(&mut wheel, 5 * MS + 40_000), [3]);
        assert_eq!(run(&mut wheel, 500 * MS), []);
    }

    #[test]
    fn an_earlier_deadline_replaces_a_later_one_and_a_later_one_waits_for_the_look() {
        let mut wheel = TimerWheel::new(8, Time(0));
        wheel.arm(1, Time(50 * MS));
        wheel.arm(1, Time(MS));
        wheel.arm(1, Time(60 * MS));
        assert_eq!(run(&mut wheel, 2 * MS), [1]);
        assert_eq!(run(&mut wheel, 100 * MS), []);
    }

    #[test]
    fn a_deadline_beyond_the_wheel_comes_up_within_a_turn() {
        let mut wheel = TimerWheel::new(8, Time(0));
        wheel.arm(2, Time(10_000 * MS));
        assert!(wheel.next().unwrap().0 <= 68 * MS);
        assert_eq!(run(&mut wheel, 68 * MS), [2]);
    }

    #[test]
    fn a_cancelled_timer_is_gone_and_its_neighbours_stay() {
        let mut wheel = TimerWheel::new(8, Time(0));
        for slot in 0..5 {
            wheel.arm(slot, Time(MS));
        }
        wheel.cancel(2);
        wheel.cancel(4);
        let mut left = run(&mut wheel, 2 * MS);
        left.sort();
        assert_eq!(left, [0, 1, 3]);
        assert_eq!(wheel.next(), None);
    }
}
