//! The epoch, the readers' words, and the two sides' calls. The argument for the orderings is in the crate's page.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::primitive::{AtomicBool, AtomicU64, Line, Ordering, fence};

/// The word of a reader that holds nothing. No epoch has this value.
const OFFLINE: u64 = 0;

/// A point in the history of publications. Starts at 1, grows by one with each [`Qsbr::advance`], never wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of a fresh [`Qsbr`].
    pub const FIRST: Self = Self(1);

    /// The plain number, for counters and reports.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one participant is seen to be doing. A snapshot: it may have changed by the time it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParticipantState {
    /// Nobody holds this id (or there is no such id).
    Unregistered,
    /// Registered, and promising to hold nothing: grace periods do not wait for it.
    Offline,
    /// Looking things up: grace periods wait for its reports.
    Online {
        /// The last epoch it reported.
        reported: Epoch,
    },
}

/// Why [`Qsbr::register`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// The id is not below the number of participants the [`Qsbr`] was made for.
    NoSuchId {
        /// The id asked for.
        id: usize,
        /// Number of participants; ids are below it.
        participants: usize,
    },
    /// Another live [`Participant`] holds the id.
    Taken {
        /// The id asked for.
        id: usize,
    },
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchId { id, participants } => write!(
                f,
                "QSBR participant {id} does not exist: this domain was made for {participants}; make it with more"
            ),
            Self::Taken { id } => write!(
                f,
                "QSBR participant {id} is already registered: drop the other handle first, or use an id of its own"
            ),
        }
    }
}

impl std::error::Error for RegisterError {}

/// What one reader writes; alone on its line, so that readers never slow each other down.
#[derive(Debug)]
struct Slot {
    /// [`OFFLINE`], or the epoch last reported. Written by the slot's participant only.
    word: AtomicU64,
    taken: AtomicBool,
}

/// A reclamation domain: one epoch and a fixed number of participants. Shared in an [`Arc`].
///
/// All methods may be called from any thread. None blocks; only [`Qsbr::new`] and [`Qsbr::register`] are not meant for
/// poll loops.
#[derive(Debug)]
pub struct Qsbr {
    epoch: Line<AtomicU64>,
    slots: Box<[Line<Slot>]>,
}

impl Qsbr {
    /// A domain at [`Epoch::FIRST`] with ids `0..participants`, all unregistered. Allocates.
    pub fn new(participants: usize) -> Self {
        let slot = |_| {
            Line(Slot {
                word: AtomicU64::new(OFFLINE),
                taken: AtomicBool::new(false),
            })
        };
        Self {
            epoch: Line(AtomicU64::new(Epoch::FIRST.0)),
            slots: (0..participants).map(slot).collect(),
        }
    }

    /// Number of ids.
    pub fn participants(&self) -> usize {
        self.slots.len()
    }

    /// Claims `id` for the caller, offline at first. The handle gives it back when dropped.
    ///
    /// # Errors
    /// The id does not exist, or is held by another handle.
    pub fn register(self: &Arc<Self>, id: usize) -> Result<Participant, RegisterError> {
        let slot = self.slots.get(id).ok_or(RegisterError::NoSuchId {
            id,
            participants: self.slots.len(),
        })?;
        // Acquire: the previous holder's last store to the word comes before ours.
        if slot.taken.swap(true, Ordering::AcqRel) {
            return Err(RegisterError::Taken { id });
        }
        Ok(Participant {
            qsbr: Arc::clone(self),
            id,
            reported: OFFLINE,
            not_sync: PhantomData,
        })
    }

    /// The current epoch (Acquire).
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Opens the next epoch and returns it. Called by the publisher after unpublishing; what was unpublished before
    /// the call may be freed once [`check`](Self::check) of the returned epoch is true (`start` of `rte_rcu_qsbr`).
    pub fn advance(&self) -> Epoch {
        Epoch(self.epoch.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Whether every online participant has reported `epoch` or a later one. Once true for an epoch that
    /// [`advance`](Self::advance) returned, nothing unpublished before that `advance` is still in use.
    pub fn check(&self, epoch: Epoch) -> bool {
        // Against the fence of `online`: we see the reader online, or it sees the unpublishing.
        fence(Ordering::SeqCst);
        self.slots.iter().all(|slot| has_passed(slot, epoch))
    }

    /// The newest epoch for which [`check`](Self::check) is true: one pass over the words serves many objects.
    pub fn passed(&self) -> Epoch {
        // The epoch comes before the fence: what was unpublished before it was opened is then unpublished before the
        // fence, whichever thread opened it.
        let current = self.epoch().0;
        fence(Ordering::SeqCst);
        let words = self.slots.iter().map(|slot| slot.word.load(Ordering::Acquire));
        Epoch(words.filter(|&word| word != OFFLINE).fold(current, u64::min))
    }

    /// Ids of the online participants for which a grace period ending at `epoch` waits: whom to name when it stalls.
    /// For reports only: an empty answer is no leave to free anything, [`check`](Self::check) is.
    pub fn laggards(&self, epoch: Epoch) -> impl Iterator<Item = usize> {
        self.slots
            .iter()
            .enumerate()
            .filter(move |(_, slot)| !has_passed(slot, epoch))
            .map(|(id, _)| id)
    }

    /// What participant `id` is doing; `Unregistered` if there is no such id.
    pub fn state(&self, id: usize) -> ParticipantState {
        let Some(slot) = self.slots.get(id) else {
            return ParticipantState::Unregistered;
        };
        match slot.word.load(Ordering::Acquire) {
            OFFLINE if slot.taken.load(Ordering::Acquire) => ParticipantState::Offline,
            OFFLINE => ParticipantState::Unregistered,
            reported => ParticipantState::Online {
                reported: Epoch(reported),
            },
        }
    }
}

fn has_passed(slot: &Slot, epoch: Epoch) -> bool {
    let word = slot.word.load(Ordering::Acquire);
    word == OFFLINE || word >= epoch.0
}

/// One reader's handle: owned by its thread, may be moved to another, never shared.
///
/// Dropping it takes the reader offline and frees the id, so whatever the reader holds must be gone before: let it be
/// declared *after* the views among the fields of the owner (fields are dropped in order of declaration).
#[derive(Debug)]
pub struct Participant {
    qsbr: Arc<Qsbr>,
    id: usize,
    /// Our copy of the slot's word.
    reported: u64,
    not_sync: PhantomData<Cell<()>>,
}

impl Participant {
    /// The id it was registered with.
    pub fn id(&self) -> usize {
        self.id
    }

    /// The domain it belongs to.
    pub fn qsbr(&self) -> &Arc<Qsbr> {
        &self.qsbr
    }

    /// Whether grace periods wait for this reader.
    pub fn is_online(&self) -> bool {
        self.reported != OFFLINE
    }

    /// Opens an iteration: reads the global epoch (Acquire). Comes before the views are refreshed.
    pub fn observe(&self) -> Epoch {
        self.qsbr.epoch()
    }

    /// Closes an iteration: nothing found in it is held any longer, except through views refreshed after `observed`
    /// was read. `observed` is what [`observe`](Self::observe) returned *at the start* of the iteration.
    ///
    /// Without effect on an offline reader, which has to come [`online`](Self::online) first.
    pub fn quiescent(&mut self, observed: Epoch) {
        debug_assert!(
            self.is_online(),
            "QSBR participant {} reported while offline",
            self.id
        );
        if self.is_online() && self.reported != observed.0 {
            self.store(observed.0);
        }
    }

    /// Promises to hold nothing and to look nothing up until the next [`online`](Self::online): before the thread
    /// sleeps or enters anything that may. Cached views must have been given up. Idempotent.
    pub fn offline(&mut self) {
        self.store(OFFLINE);
    }

    /// Comes back, and returns the epoch read, good for this iteration's [`quiescent`](Self::quiescent). Views must be
    /// refreshed before the first lookup. Idempotent, but holding anything across a second call is an error.
    pub fn online(&mut self) -> Epoch {
        let epoch = self.observe();
        self.store(epoch.0);
        // Against the fence of `check`: it sees our word, or we see the unpublishing.
        fence(Ordering::SeqCst);
        epoch
    }

    /// [`online`](Self::online) without its fence, for the model which proves that loom would notice.
    #[cfg(loom)]
    #[doc(hidden)]
    pub fn online_without_fence(&mut self) -> Epoch {
        let epoch = self.observe();
        self.store(epoch.0);
        epoch
    }

    fn store(&mut self, word: u64) {
        self.reported = word;
        self.qsbr.slots[self.id].word.store(word, Ordering::Release);
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.offline();
        self.qsbr.slots[self.id].taken.store(false, Ordering::Release);
    }
}
