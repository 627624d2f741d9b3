//! Listening first to whom was answered last.
//!
//! A client that makes one object after another, while nobody else asks for anything, sends its next request the moment
//! it has an answer. Often it is there before the control thread would sleep, and then asking for that one socket saves
//! asking for all: a third of the system calls of a request. A client that shares the CPU with the control thread needs the
//! CPU first. Mostly the scheduler gives it the moment it is woken by its answer. When it has not, and nothing is there, the
//! control thread gives way, which costs less than a sleep and a wake, and is preempted the more readily by the next one it
//! wakes. Whoever gets the CPU may keep it for milliseconds, though, while others ask in vain; so the control thread gives
//! way only as long as it is soon back.

use std::time::Duration;

/// In a row, before all sockets are looked at.
const IN_A_ROW: u32 = 32;
/// Trust after a follow-up that came.
const TRUST: i8 = 8;
/// Distrust after one that did not, when there was no trust left: so many are not looked for.
const DISTRUST: i8 = -32;

/// Who was away no longer was soon back.
const SOON: Duration = Duration::from_micros(200);
/// After a time away that was longer, so many looks do not give way; twice as many each time, until one is soon back again.
const OWN_WAY: u32 = 64;
/// At most so many.
const OWN_WAY_AT_MOST: u32 = 1 << 14;

/// Whose next request is looked for, and whether that has paid lately.
#[derive(Debug, Default)]
pub(crate) struct FollowUp {
    /// The connection answered in this pass, if it was one only.
    answered: Option<u32>,
    several: bool,
    in_a_row: u32,
    trust: i8,
    /// Looks that are still to come without giving way, and how many they were in all.
    own_way: u32,
    last_own_way: u32,
}

impl FollowUp {
    /// A connection was answered.
    pub fn answered(&mut self, conn: u32) {
        self.several |= self.answered.is_some_and(|other| other != conn);
        self.answered = Some(conn);
    }

    /// Before the loop looks at all sockets: the connection to look at instead.
    pub fn next(&mut self) -> Option<u32> {
        let conn = self.answered.take();
        if std::mem::take(&mut self.several) || conn.is_none() || self.in_a_row >= IN_A_ROW {
            self.in_a_row = 0;
            return None;
        }
        if self.trust < 0 {
            self.trust += 1;
            return None;
        }
        conn
    }

    /// When there was nothing: whether to give the CPU to whoever waits for it, and look again.
    pub fn gives_way(&mut self) -> bool {
        if self.own_way > 0 {
            self.own_way -= 1;
            return false;
        }
        true
    }

    /// It was given, and came back after this time.
    pub fn came_back(&mut self, after: Duration) {
        self.last_own_way = match after <= SOON {
            true => 0,
            false => (self.last_own_way * 2).clamp(OWN_WAY, OWN_WAY_AT_MOST),
        };
        self.own_way = self.last_own_way;
    }

    /// Whether there was a request.
    pub fn learn(&mut self, came: bool) {
        if came {
            self.in_a_row += 1;
            self.trust = TRUST;
        } else {
            self.in_a_row = 0;
            self.trust = if self.trust > 0 { self.trust - 1 } else { DISTRUST };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_was_answered_alone_is_listened_to_first() {
        let mut follow_up = FollowUp::default();
        assert_eq!(follow_up.next(), None);
        follow_up.answered(3);
        follow_up.answered(3);
        assert_eq!(follow_up.next(), Some(3));
        assert_eq!(follow_up.next(), None, "once for each answer");
        follow_up.answered(3);
        follow_up.answered(4);
        assert_eq!(follow_up.next(), None);
        follow_up.answered(4);
        assert_eq!(follow_up.next(), Some(4));
    }

    #[test]
    fn a_cpu_that_comes_back_late_is_given_away_ever_less_often() {
        let mut follow_up = FollowUp::default();
        let mut given = 0;
        for _ in 0..100_000 {
            if follow_up.gives_way() {
                given += 1;
                follow_up.came_back(SOON * 10);
            }
        }
        assert!((10..=20).contains(&given), "{given}");
        while !follow_up.gives_way() {}
        follow_up.came_back(SOON);
        assert!((0..1000).all(|_| follow_up.gives_way()));
    }

    #[test]
    fn however_quick_a_client_is_the_others_are_looked_at() {
        let mut follow_up = FollowUp::default();
        let mut in_a_row = 0;
        loop {
            follow_up.answered(1);
            let Some(_) = follow_up.next() else { break };
            follow_up.learn(true);
            in_a_row += 1;
        }
        assert_eq!(in_a_row, IN_A_ROW);
    }

    #[test]
    fn clients_that_take_their_time_are_not_looked_for_most_of_the_time() {
        let mut follow_up = FollowUp::default();
        let mut looked = 0;
        for _ in 0..1000 {
            follow_up.answered(1);
            if follow_up.next().is_some() {
                follow_up.learn(false);
                looked += 1;
            }
        }
        assert!((10..=50).contains(&looked), "{looked}");
    }
}
