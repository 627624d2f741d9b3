//! Quiescent-state-based reclamation (QSBR), in the manner of DPDK's `rte_rcu_qsbr`.
//!
//! Poll cores (*readers*) look objects up without locks, counts or per-lookup fences. The control thread (the
//! *publisher*) unpublishes an object, asks for the epoch after which nobody can still hold it, and frees it when every
//! reader has reported that epoch.
//!
//! ```text
//! reader                                   publisher
//! loop {                                   view.swap(new)              // unpublish
//!   e = participant.observe()              e = qsbr.advance()
//!   refresh cached views; look up; work    while !qsbr.check(e) { serve others }
//!   participant.quiescent(e)               free(old)
//! }
//! ```
//!
//! A reader reports the epoch it read *first*, before it refreshed its views. Had it reported the epoch current at the
//! end of the iteration, it would vouch for a snapshot which its cache still holds, and whose last reference the next
//! refresh would then drop: a free on a poll core.
//!
//! # Why no freed object is seen
//!
//! Let *U* be the store that unpublishes an object (of any ordering), and *A* the `fetch_add` of the
//! [`Qsbr::advance`] which follows and returns `e`. A later [`Qsbr::check`]`(e)` returned true: after its SeqCst fence
//! *F* it loaded (Acquire) from each reader's word a value `w` that is `0` (offline) or `>= e`.
//! Let *L* be any lookup of that reader which found the object. Claim: *L*, and all use made of what it found before
//! the next quiescent state, happens before the free.
//!
//! 1. *A lookup after reading an epoch `>= e` misses the object.* All changes of the epoch are read-modify-writes, so
//!    the Acquire load that returned `>= e` reads from the release sequence of *A*. Hence *U* happens before the
//!    lookup, which by coherence cannot read a value older than *U*'s.
//! 2. *Case `w >= e`.* The word was stored (Release) by [`Participant::quiescent`] or [`Participant::online`], with an
//!    epoch the reader had read earlier. Every lookup sequenced after that read misses the object by 1. So *L* came
//!    before it, in an iteration which ended before the store (in `quiescent` the read opened the iteration; `online`
//!    reads while nothing is held), and the Release store carries the uses to `check`'s Acquire load.
//! 3. *Case `w = 0`.* The value is the initial one or was stored (Release) by [`Participant::offline`]; uses before it
//!    are carried as in 2. A lookup after it is one after a later [`Participant::online`], which stores an epoch into
//!    the word and executes a SeqCst fence *G* before any lookup. `check` read a value older than that store, and
//!    its load comes after *F*, so *F* precedes *G* in the single order of SeqCst fences. Had *L*, after *G*, read a
//!    value older than *U*, which is before *F*, then *G* would precede *F*: a contradiction. So *L* misses the object.
//!
//! The publisher may be several threads: what 1 to 3 need is that *U* happens before the call of `advance`, and that
//! call before the call of `check`. A store into a key-validity word is as good a *U* as the swap of a pointer.
//! [`Qsbr::passed`] reads the epoch before its fence, so for each epoch up to the one read the same holds.
//!
//! `quiescent` stores only if the epoch has changed. That is sound because a word already `>= e` vouches for later
//! iterations too, by 1; and it keeps an idle publisher and busy readers from sharing a dirty line.
//!
//! Sequential consistency is had from fences alone, since loom models SeqCst fences but not SeqCst accesses.

mod link;
mod primitive;
mod qsbr;
mod reclaimer;
mod retire;
pub mod spsc;

pub use link::{EmbeddedList, Linked};
pub use qsbr::{Epoch, Participant, ParticipantState, Qsbr, RegisterError};
pub use reclaimer::{Oldest, Reclaimer, Waiting};
pub use retire::{NoPage, RetireCache, RetireCollector, RetirePage, Retirer, retire_channel};
