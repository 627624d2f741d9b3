//! Completion queues.
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rnic_abi::{
    Cqe, CreateCq, CreateCqReply, Empty, HandleArg, ModifyCq, Op, QueryCqReply, RING_ENTRIES, ResizeCq,
    ResizeCqDone, ResizeCqReply, RingIndices, completion_queue_size, cq_subring_offset, cqe_flags, protocol,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::context::Context;
use crate::queue::{QpQueues, Receives};
use crate::session::Session;
use crate::srq::Slots;
use crate::wake::deadline;
use crate::{CompChannel, Completion, Error, Result};

/// Polls of an empty CQ after which a busy wait lets others run: on a machine with fewer cores than spinning
/// threads, the one that has the answer may be waiting for this very core.
const SPINS_BEFORE_YIELD: u32 = 64;

/// A completion queue. Cheap to clone; any thread, and it is polled under a lock. Destroyed with its last clone
/// and QP.
#[derive(Clone, Debug)]
pub struct Cq(pub(crate) Arc<CqInner>);

/// What a CQ is armed for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Arm {
    /// The next completion.
    Any = rnic_abi::arm::ANY as isize,
    /// The next completion whose sender asked for a solicited event, or that is an error.
    Solicited = rnic_abi::arm::SOLICITED as isize,
}

/// Attributes of a CQ.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CqAttr {
    /// Completions it has room for, of each poll core that feeds it.
    pub depth: u32,
    /// Completions that wait to be polled, but for those carried over by [`Cq::resize`].
    pub waiting: u32,
    /// Completions of one poll core that wake an armed CQ's waiters before the period is over; 0 when only the period
    /// does.
    pub moderation_count: u16,
    /// How long after the first completion an armed CQ's waiters are woken at the latest; zero is at once.
    pub moderation_period: Duration,
    /// It has overflowed (CQ_ERR): nothing is completed to it any more.
    pub failed: bool,
}

#[derive(Debug)]
pub(crate) struct CqInner {
    session: Arc<Session>,
    channel: CompChannel,
    handle: u32,
    state: Mutex<State>,
    /// The arm word was set and its firing not yet reported by the channel.
    armed: AtomicBool,
    /// A sub-ring's indices made no sense; nothing is taken from it any more.
    corrupt: AtomicBool,
}

/// Where a CQ stands in the region: the arm word, then the sub-rings.
#[derive(Copy, Clone, Debug)]
struct Place {
    offset: usize,
    depth: u32,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// What was left in the place it had before it was resized: older than anything in this one.
    carried: VecDeque<Cqe>,
    /// Head of each sub-ring.
    heads: Box<[u32]>,
    /// Sub-ring at which the next poll begins.
    next: usize,
    /// The QPs and XRC SRQs that complete here, by handle, sorted.
    sources: Vec<(u32, Source)>,
}

/// What completions are of.
#[derive(Debug)]
pub(crate) enum Source {
    Qp(Arc<QpQueues>),
    /// An XRC SRQ: whatever QP it has received by.
    Srq(Arc<Slots>),
}

impl Source {
    /// What a completion retires, as the application knows it; `None` when there is no such thing.
    fn retire(&self, cqe: &Cqe) -> Option<Completion> {
        match self {
            Source::Qp(queues) => Some(Completion::new(cqe, queues.retire(cqe)?)),
            Source::Srq(slots) => Some(Completion {
                srqn: Some(slots.number),
                ..Completion::new(cqe, slots.retire(cqe.wr_id)?)
            }),
        }
    }

    fn settle(&self) {
        match self {
            Source::Qp(queues) => queues.settle(),
            Source::Srq(slots) => slots.settle(),
        }
    }
}

impl Cq {
    pub(crate) fn create(context: &Context, channel: &CompChannel, depth: u32) -> Result<Cq> {
        let session = &context.session;
        channel.check_session(session)?;
        let body = CreateCq {
            device: context.device,
            depth,
            channel: channel.0.handle,
            reserved: 0,
        };
        let reply: CreateCqReply = session.control.request(Op::CreateCq, &body)?;
        let place = Place::check(session, reply.offset, reply.depth, reply.subrings)?;
        let cq = Arc::new(CqInner {
            session: session.clone(),
            channel: channel.clone(),
            handle: reply.handle,
            state: Mutex::new(State {
                place,
                carried: VecDeque::new(),
                heads: place.heads(session, reply.subrings),
                next: 0,
                sources: Vec::new(),
            }),
            armed: AtomicBool::new(false),
            corrupt: AtomicBool::new(false),
        });
        channel.register(&cq);
        Ok(Cq(cq))
    }

    /// Completions it has room for, of each poll core that feeds it.
    pub fn depth(&self) -> u32 {
        self.0.lock().place.depth
    }

    /// Makes room for at least `depth` completions, or for fewer than before (IBTA 11.2.8.2). What waits is carried over,
    /// in its order; an arming too. Other threads wait to poll meanwhile. Refused when more completions wait than there
    /// would be room for.
    pub fn resize(&self, depth: u32) -> Result<()> {
        self.0.resize(depth)
    }

    /// Moderates it: when it is armed, its waiters are woken by `count` completions of one poll core, or `period` after
    /// the first of them, whichever comes first. Completions can be polled meanwhile. The period has microseconds, up to
    /// 65535; with a period of zero each completion wakes, as in the beginning.
    pub fn moderate(&self, count: u16, period: Duration) -> Result<()> {
        let period = u16::try_from(period.as_micros())
            .map_err(|_| Error::InvalidArgument(format!("a period of {period:?}; 65535 µs at most")))?;
        let handle = self.0.handle;
        let body = ModifyCq {
            handle,
            count,
            period,
        };
        self.0.session.control.request::<Empty>(Op::ModifyCq, &body)?;
        Ok(())
    }

    /// Its attributes, as the daemon has them.
    pub fn query(&self) -> Result<CqAttr> {
        let arg = HandleArg {
            handle: self.0.handle,
            reserved: 0,
        };
        let reply: QueryCqReply = self.0.session.control.request(Op::QueryCq, &arg)?;
        Ok(CqAttr {
            depth: reply.depth,
            waiting: reply.waiting,
            moderation_count: reply.count,
            moderation_period: Duration::from_micros(reply.period.into()),
            failed: reply.failed != 0,
        })
    }

    /// Its number in asynchronous events: the slot of its handle.
    pub fn number(&self) -> u32 {
        rnic_abi::Handle(self.0.handle).slot()
    }

    /// The channel that wakes its waiters.
    pub fn channel(&self) -> &CompChannel {
        &self.0.channel
    }

    /// Takes up to `out.len()` completions, without waiting, and returns how many. Those of one QP come in
    /// order. Memory whose last use was a completed operation is deregistered here when nothing else holds it.
    pub fn poll(&self, out: &mut [Completion]) -> usize {
        self.0.poll(out)
    }

    /// Polls, letting other threads run between polls, until there are completions or the time is over (zero is
    /// returned); no timeout is for ever. For short waits: it uses a whole processor.
    pub fn spin(&self, out: &mut [Completion], timeout: Option<Duration>) -> Result<usize> {
        let deadline = deadline(timeout);
        let mut polls = 0u32;
        loop {
            let count = self.0.poll(out);
            if count > 0 || out.is_empty() {
                return Ok(count);
            }
            polls += 1;
            if polls.is_multiple_of(SPINS_BEFORE_YIELD) {
                self.0.check()?;
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Ok(0);
                }
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Sleeps until there are completions or the time is over (zero is returned); no timeout is for ever.
    pub fn wait(&self, out: &mut [Completion], timeout: Option<Duration>) -> Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let found = self
            .0
            .channel
            .0
            .wake
            .wait_for(deadline(timeout), "waiting for completions", || {
                let mut count = self.0.poll(out);
                if count == 0 {
                    self.0.check()?;
                    self.arm(Arm::Any);
                    count = self.0.poll(out);
                }
                Ok((count > 0).then_some(count))
            })?;
        Ok(found.unwrap_or(0))
    }

    /// As [`Cq::wait`], into a new vector of at most `max` completions.
    pub fn wait_vec(&self, max: usize, timeout: Option<Duration>) -> Result<Vec<Completion>> {
        let mut out = vec![Completion::default(); max];
        let count = self.wait(&mut out, timeout)?;
        out.truncate(count);
        Ok(out)
    }

    /// Asks for one wake through the channel at the next completion. Poll afterwards: completions that came
    /// before do not wake.
    pub fn arm(&self, kind: Arm) {
        let state = self.0.lock();
        self.0.armed.store(true, Ordering::Relaxed);
        protocol::arm_cq(self.0.arm_word(state.place), kind as u32);
    }
}

impl AsFd for Cq {
    /// The channel's descriptor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.channel.0.wake.as_fd()
    }
}

impl Place {
    /// Makes sure that a place told by the daemon is one.
    fn check(session: &Session, offset: u64, depth: u32, subrings: u32) -> Result<Place> {
        let depth = session.check_depth(depth)?;
        if subrings == 0 || subrings > session.cores() {
            return Err(Error::Protocol(format!("a CQ with {subrings} sub-rings")));
        }
        let offset = session.check_queue(offset, completion_queue_size(depth, subrings))?;
        Ok(Place { offset, depth })
    }

    /// Where a sub-ring stands.
    fn ring(self, subring: u32) -> usize {
        self.offset + cq_subring_offset(self.depth, subring)
    }

    /// Where the consumer of each sub-ring begins.
    fn heads(self, session: &Session, subrings: u32) -> Box<[u32]> {
        let head = |i| session.region.u32(self.ring(i) + RingIndices::HEAD);
        (0..subrings).map(|i| head(i).load(Ordering::Relaxed)).collect()
    }
}

impl CqInner {
    fn poll(&self, out: &mut [Completion]) -> usize {
        let mut state = self.lock();
        let State {
            place,
            carried,
            heads,
            next,
            sources,
        } = &mut *state;
        let mut count = 0;
        let mut touched: Option<(u32, Touched<'_>)> = None;
        let mut take = |cqe: Cqe, out: &mut [Completion], count: &mut usize| {
            if touched.as_ref().is_none_or(|(handle, _)| *handle != cqe.handle) {
                // Completions of QPs and SRQs that were destroyed find nothing and are dropped.
                touched = find(sources, cqe.handle).map(|source| (cqe.handle, Touched(source)));
            }
            if let Some((_, Touched(source))) = &touched
                && let Some(completion) = source.retire(&cqe)
            {
                out[*count] = completion;
                *count += 1;
            }
        };
        while count < out.len()
            && let Some(cqe) = carried.pop_front()
        {
            take(cqe, out, &mut count);
        }
        for _ in 0..heads.len() {
            if count == out.len() {
                break;
            }
            let ring = place.ring(*next as u32);
            let word = |offset| self.session.region.u32(ring + offset);
            let head = &mut heads[*next];
            let available = protocol::available(word(RingIndices::TAIL), *head, place.depth);
            let tail = head.wrapping_add(available.unwrap_or(0));
            if available.is_none() {
                self.corrupt.store(true, Ordering::Relaxed);
            } else if tail != *head {
                while tail != *head && count < out.len() {
                    let cqe = self.entry(*place, ring, *head);
                    *head = head.wrapping_add(1);
                    take(cqe, out, &mut count);
                }
                protocol::give_back(word(RingIndices::HEAD), *head);
            }
            if count == out.len() {
                break;
            }
            *next = (*next + 1) % heads.len();
        }
        count
    }

    fn resize(&self, depth: u32) -> Result<()> {
        let mut state = self.lock();
        let control = &self.session.control;
        let handle = self.handle;
        let reply: ResizeCqReply = control.request(Op::ResizeCq, &ResizeCq { handle, depth })?;
        let (old, subrings) = (state.place, state.heads.len() as u32);
        let new = Place::check(&self.session, reply.offset, reply.depth, reply.subrings)?;
        if reply.subrings != subrings {
            return Err(Error::Protocol(format!(
                "a CQ of {subrings} sub-rings that has {} after it was resized",
                reply.subrings
            )));
        }
        // No core writes to the old place any more.
        let State {
            heads,
            carried,
            sources,
            ..
        } = &mut *state;
        self.each_in(old, heads, |cqe| {
            // Those of destroyed QPs would be dropped later.
            if find(sources, cqe.handle).is_some() {
                carried.push_back(*cqe);
            }
        });
        state.heads = new.heads(&self.session, subrings);
        state.place = new;
        let wake = self.arm_as_before(old, &state);
        drop(state);
        let wake = wake.into();
        control.request::<Empty>(Op::ResizeCqDone, &ResizeCqDone { handle, wake })?;
        Ok(())
    }

    /// Arms the CQ in its new place as it was in the old one; whether its waiters are to be woken, by completions that
    /// came before it could be.
    fn arm_as_before(&self, old: Place, state: &State) -> bool {
        let word = self.arm_word(state.place);
        let kind = protocol::move_arm(self.arm_word(old), word);
        if kind == rnic_abi::arm::NONE {
            return false;
        }
        let (mut came, mut solicited) = (false, false);
        self.each_in(state.place, &state.heads, |cqe| {
            came = true;
            solicited |= cqe.flags & cqe_flags::SOLICITED != 0 || cqe.status != 0;
        });
        came && protocol::take_arm(word, solicited)
    }

    fn arm_word(&self, place: Place) -> &AtomicU32 {
        self.session.region.u32(place.offset)
    }

    /// Whether polling makes sense.
    fn check(&self) -> Result<()> {
        if self.corrupt.load(Ordering::Relaxed) {
            return Err(Error::Protocol(format!(
                "CQ {}: more completions than entries",
                self.handle
            )));
        }
        Ok(())
    }

    /// Completions of this QP or XRC SRQ are delivered from now on.
    pub fn attach(&self, handle: u32, source: Source) {
        let mut state = self.lock();
        if let Err(at) = state.sources.binary_search_by_key(&handle, |(handle, _)| *handle) {
            state.sources.insert(at, (handle, source));
        }
    }

    /// Completions of this QP or XRC SRQ are dropped from now on. The daemon makes no more.
    pub fn detach(&self, handle: u32) {
        let mut state = self.lock();
        if let Some(Source::Qp(queues)) = find(&state.sources, handle)
            && let Receives::Shared(srq) = &queues.recv
        {
            // What it has received and nobody has polled: the SRQ lives on, and needs the room.
            self.each_waiting(&state, |cqe| {
                if cqe.handle == handle && cqe.flags & cqe_flags::RECV != 0 {
                    queues.retire(cqe);
                }
            });
            srq.0.slots.settle();
        }
        if let Ok(at) = state.sources.binary_search_by_key(&handle, |(handle, _)| *handle) {
            state.sources.remove(at);
        }
    }

    /// Looks at every completion that waits.
    fn each_waiting(&self, state: &State, mut look: impl FnMut(&Cqe)) {
        state.carried.iter().for_each(&mut look);
        self.each_in(state.place, &state.heads, look);
    }

    /// The same for those in a place.
    fn each_in(&self, place: Place, heads: &[u32], mut look: impl FnMut(&Cqe)) {
        for (i, head) in (0..).zip(heads) {
            let ring = place.ring(i);
            let tail = self.session.region.u32(ring + RingIndices::TAIL);
            for at in 0..protocol::available(tail, *head, place.depth).unwrap_or(0) {
                look(&self.entry(place, ring, head.wrapping_add(at)));
            }
        }
    }

    /// The completion at an index of a sub-ring.
    fn entry(&self, place: Place, ring: usize, index: u32) -> Cqe {
        let mut cqe = Cqe::new_zeroed();
        let entry = (index & (place.depth - 1)) as usize * size_of::<Cqe>();
        self.session
            .region
            .read(ring + RING_ENTRIES + entry, cqe.as_mut_bytes());
        cqe
    }

    /// Runs `f` while nothing is polled.
    pub fn paused<T>(&self, f: impl FnOnce() -> T) -> T {
        let _state = self.lock();
        f()
    }

    /// Whether the CQ was armed and the daemon took the arming, told once.
    pub fn take_fired(&self) -> bool {
        let state = self.lock();
        let word = self.arm_word(state.place);
        self.armed.load(Ordering::Relaxed)
            && word.load(Ordering::Acquire) == rnic_abi::arm::NONE
            && self.armed.swap(false, Ordering::Relaxed)
    }

    pub fn is_of(&self, session: &Arc<Session>) -> bool {
        Arc::ptr_eq(&self.session, session)
    }

    pub fn handle(&self) -> u32 {
        self.handle
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CqInner {
    fn drop(&mut self) {
        // Nothing to tell anyone: a daemon that is gone has destroyed it.
        let _ = self.session.destroy(Op::DestroyCq, self.handle);
    }
}

fn find(sources: &[(u32, Source)], handle: u32) -> Option<&Source> {
    let at = sources
        .binary_search_by_key(&handle, |(handle, _)| *handle)
        .ok()?;
    Some(&sources[at].1)
}

/// A QP or SRQ of which completions were taken. What they retired is released when the poll turns to another.
struct Touched<'q>(&'q Source);

impl Drop for Touched<'_> {
    fn drop(&mut self) {
        self.0.settle();
    }
}
