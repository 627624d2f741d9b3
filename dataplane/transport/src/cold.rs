//! What of a QP is seldom needed, beside its record.

use crate::attr::MAX_RD_ATOMIC;
use crate::record::record;
use crate::replay::ResponseJob;
use crate::selective::Placed;
use rnic_wire::{Psn, PsnSet};

/// READs and atomics to be answered.
pub(crate) type Jobs = [ResponseJob; MAX_RD_ATOMIC as usize];

record! {
    /// READs and atomics to be answered, and results of atomics (9.7.5.1.3, 9.7.5.1.4); what selective retransmission knows of
    /// packets beyond one that is missing. Longer than all else of a QP, and not looked at while its peer asks for nothing but
    /// what can be answered at once, and nothing is lost.
    ///
    /// Which of it is in use the QP's record says. Zeros are a value, and so is what another QP has left: nothing has to be
    /// written before it is used.
    #[derive(Clone, Debug)]
    pub struct Cold {
        pub(crate) jobs: Jobs,
        /// What atomics have found, and at which PSNs they were.
        pub(crate) originals: [u64; MAX_RD_ATOMIC as usize],
        pub(crate) psns: [Psn; MAX_RD_ATOMIC as usize],
        pub(crate) early: Placed,
        /// How far from the oldest PSN not acknowledged those are that have arrived at the peer.
        pub(crate) arrived: PsnSet,
    }
}

impl Cold {
    /// Of a QP that was never asked for anything.
    pub const EMPTY: Cold = Cold {
        jobs: [ResponseJob::EMPTY; MAX_RD_ATOMIC as usize],
        originals: [0; MAX_RD_ATOMIC as usize],
        psns: [Psn::ZERO; MAX_RD_ATOMIC as usize],
        early: Placed::NOTHING,
        arrived: PsnSet::EMPTY,
    };
}
