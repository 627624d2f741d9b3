//! Debug builds: a number may be published again only when the grace period of its last owner is over (DESIGN I3, step
//! 6 after step 4). In release builds nothing of this is left.
use rnic_qsbr::{Epoch, Qsbr};

use super::Kind;

/// Numbers that were unpublished, with the epoch that must pass before they are published again.
#[derive(Debug, Default)]
pub(super) struct ReuseCheck {
    /// `None` until the publication that takes it away.
    #[cfg(debug_assertions)]
    gone: std::collections::HashMap<(Kind, u32), Option<Epoch>>,
    #[cfg(debug_assertions)]
    uncommitted: Vec<(Kind, u32)>,
}

#[cfg(debug_assertions)]
impl ReuseCheck {
    /// A number goes with the next publication.
    pub fn removed(&mut self, kind: Kind, slot: u32) {
        self.gone.insert((kind, slot), None);
        self.uncommitted.push((kind, slot));
    }

    /// A publication was made.
    pub fn committed(&mut self, epoch: Epoch) {
        for number in self.uncommitted.drain(..) {
            self.gone.insert(number, Some(epoch));
        }
    }

    /// A number is used again.
    pub fn added(&mut self, kind: Kind, slot: u32, qsbr: &Qsbr) {
        let before = self.gone.remove(&(kind, slot));
        assert!(
            before.is_none_or(|epoch| epoch.is_some_and(|epoch| qsbr.check(epoch))),
            "{kind:?} slot {slot} is published again before the grace period of its last owner is over"
        );
    }
}

#[cfg(not(debug_assertions))]
impl ReuseCheck {
    pub fn removed(&mut self, _: Kind, _: u32) {}
    pub fn committed(&mut self, _: Epoch) {}
    pub fn added(&mut self, _: Kind, _: u32, _: &Qsbr) {}
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_number_comes_back_after_the_grace_period() {
        let qsbr = Arc::new(Qsbr::new(1));
        let mut reader = qsbr.register(0).unwrap();
        reader.online();
        let mut check = ReuseCheck::default();
        check.removed(Kind::Qp, 7);
        check.committed(qsbr.advance());
        let observed = reader.observe();
        reader.quiescent(observed);
        check.added(Kind::Qp, 7, &qsbr);
    }

    #[test]
    #[should_panic(expected = "Qp slot 7 is published again before the grace period")]
    fn a_number_that_comes_back_too_early_is_found_out() {
        let qsbr = Arc::new(Qsbr::new(1));
        let mut reader = qsbr.register(0).unwrap();
        reader.online();
        let mut check = ReuseCheck::default();
        check.removed(Kind::Qp, 7);
        check.committed(qsbr.advance());
        check.added(Kind::Qp, 7, &qsbr);
    }
}
