//! What awaits a grace period (DESIGN I7): how much of it there is, what it may be at most, and which poll core holds
//! it up.
//!
//! An object counts from the moment it is unpublished until it is freed, with all the daemon keeps for it: its queues,
//! what its core keeps, a departed client's region. Replaced views count as well; the engine keeps their account.
//! Both the total and each client's share are bounded. Creating is refused (EAGAIN) near the bound, so that views and
//! the creations under way find room; a destruction that would go beyond it waits in line, its object still whole, and
//! nobody else with it. Only an object larger than the bound may exceed it, alone.
//!
//! The pages of memory regions are their clients'. They have an account of their own, which cannot exceed what clients
//! may register: a region leaves that quota when it is unmapped. Deregistering takes no room and never waits in line.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rnic_abi::{LINE, completion_queue_size, work_queue_size};
use rnic_engine::{
    core::{CompletionQueue, Srq as EngineSrq},
    view::RetiredView,
};
use rnic_qsbr::Epoch;

use crate::{
    control::Control,
    leave::Departure,
    lock_order::reclaiming,
    objects::{Key, Object, What},
    ops::Work,
    refusal::{Refusal, Verb},
};

/// What the control thread and a core keep for an object, roughly.
const BOOKKEEPING: usize = 512;
/// Room kept for the views of a creation, for each client (it has one request at a time) and a few more.
const ROOM_EACH: usize = 4 << 10;
/// That room is at most this part of the bound.
const ROOM_AT_MOST: usize = 4;

/// What destroying something sets waiting.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Memory of the daemon, in bytes.
    pub bytes: usize,
    /// Mapped memory of the client, in bytes.
    pub mapped: u64,
}

impl Cost {
    /// Of an object, on `cores` poll cores.
    pub fn of(object: &Object, cores: usize) -> Self {
        let queues = |bytes| Cost {
            bytes: BOOKKEEPING + bytes,
            mapped: 0,
        };
        match &object.what {
            // No core knows of it: it awaits nothing.
            What::Qp(qp) if qp.here.is_some() => Cost::default(),
            What::Qp(qp) => {
                let slices = [qp.sq, qp.rq].into_iter().flatten();
                queues(slices.map(|slice| slice.len).sum::<usize>() + qp.core_bytes)
            }
            What::Srq(srq) => queues(srq.slice.len + EngineSrq::bytes()),
            What::Cq(cq) => {
                let places = cq.slice.len + cq.left.map_or(0, |left| left.len);
                queues(places + cores * size_of::<CompletionQueue>())
            }
            What::Ah(_) => queues(0),
            // An invalidation waits for no memory (DESIGN I9), so not in line either.
            What::Mr(mr) => Cost {
                bytes: 0,
                mapped: mr.length,
            },
            // No core knows of them: they await nothing.
            What::Pd(_) | What::Mw(_) | What::Channel(_) | What::Xrcd(_) | What::Target(_) => Cost::default(),
        }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |a, b| Cost {
            bytes: a.bytes.saturating_add(b.bytes),
            mapped: a.mapped.saturating_add(b.mapped),
        })
    }
}

/// The account of the daemon.
#[derive(Debug, Default)]
pub struct GraceAccount {
    /// What was begun to be destroyed and is not freed yet.
    pub now: Cost,
    /// Requests that wait for room, in the order in which they came.
    line: VecDeque<u64>,
    /// The first of them waits because all clients together have too much waiting.
    full: bool,
}

impl GraceAccount {
    /// Destructions that wait for room.
    pub fn in_line(&self) -> usize {
        self.line.len()
    }

    /// Whether what awaits grace has reached its bound.
    pub fn is_full(&self) -> bool {
        self.full
    }
}

/// Whether something may be begun to be destroyed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    /// Its client has too much waiting.
    ClientFull,
    /// All together have.
    Full,
}

/// What `own`, `total` (of which `views` are the engine's) and the limits leave for `bytes` more.
fn room(bytes: usize, own: usize, own_limit: usize, total: usize, views: usize, gate: usize) -> Room {
    let alone = own == 0;
    if own.saturating_add(bytes) > own_limit && !alone {
        return Room::ClientFull;
    }
    let bytes = bytes.saturating_add(RetiredView::BYTES);
    let alone = total == views && views <= gate / ROOM_AT_MOST;
    if total.saturating_add(bytes) > gate && !alone {
        return Room::Full;
    }
    Room::Enough
}

impl Control {
    /// Bytes of destroyed objects, departed clients and replaced views that cores may still look at.
    pub(crate) fn bytes_awaiting_grace(&self) -> usize {
        self.engine.bytes_awaiting_grace() + self.grace.now.bytes
    }

    /// Whether every core has passed a quiescent state since `epoch` began; then what waited for it is freed, whatever its
    /// destructors take.
    pub(crate) fn has_passed(&mut self, epoch: Epoch) -> bool {
        let _reclaiming = reclaiming();
        self.engine.passed(epoch)
    }

    /// What [`Control::bytes_awaiting_grace`] never exceeds: the limit of the configuration, unless one object that a
    /// client may make is larger.
    pub(crate) fn grace_bound(&self) -> usize {
        let limit = self.grace_limit();
        let cores = self.engine.core_count();
        let cq = completion_queue_size(self.quota.cq_depth(), cores as u32).next_multiple_of(LINE)
            + cores * size_of::<CompletionQueue>();
        let depth = self.quota.wr_depth();
        let qp = 2 * work_queue_size(depth) + rnic_engine::core::Qp::bytes_for(depth);
        limit.max(cq.max(qp) + BOOKKEEPING + limit / ROOM_AT_MOST)
    }

    /// Bytes of memory regions that are being deregistered.
    pub(crate) fn mapped_awaiting_grace(&self) -> u64 {
        self.grace.now.mapped
    }

    /// What [`Control::mapped_awaiting_grace`] never exceeds.
    pub(crate) fn mapped_bound(&self) -> u64 {
        let limits = &self.config.limits;
        let each = limits.per_client.registered_memory.bytes();
        each.saturating_mul(limits.clients.into())
    }

    fn grace_limit(&self) -> usize {
        let limit = self.config.limits.bytes_awaiting_grace.bytes();
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// Beyond this much nothing is created.
    pub(crate) fn grace_gate(&self) -> usize {
        let limit = self.grace_limit();
        limit - (ROOM_EACH * (self.connections.len() + 16)).min(limit / ROOM_AT_MOST)
    }

    fn room_for(&mut self, conn: u32, cost: Cost) -> Room {
        let own_limit = self.quota.limits.bytes_awaiting_grace.bytes();
        let own_limit = usize::try_from(own_limit).unwrap_or(usize::MAX);
        let own = self.client_mut(conn).map_or(0, |client| client.awaiting_grace);
        let (views, gate) = (self.engine.bytes_awaiting_grace(), self.grace_gate());
        room(
            cost.bytes,
            own,
            own_limit,
            self.bytes_awaiting_grace(),
            views,
            gate,
        )
    }

    /// Begins what a request has to destroy, or lets it wait in line for room.
    pub(crate) fn begin_in_turn(&mut self, number: u64) {
        match self.ops.cost_of(number) {
            Some((conn, cost)) if cost.bytes == 0 => self.begin_destruction(number, conn, cost),
            Some((conn, cost)) if self.grace.line.is_empty() && self.room_for(conn, cost) == Room::Enough => {
                self.begin_destruction(number, conn, cost);
            }
            _ => {
                self.grace.line.push_back(number);
                self.serve_line();
            }
        }
    }

    /// Begins what waits in line, as far as there is room, in order; one whose client has too much waiting holds up
    /// nobody else.
    pub(crate) fn serve_line(&mut self) {
        let mut left = std::mem::take(&mut self.grace.line);
        let mut full = false;
        let mut waiting = VecDeque::new();
        while let Some(number) = left.pop_front() {
            let Some((conn, cost)) = self.ops.cost_of(number) else {
                continue;
            };
            match self.room_for(conn, cost) {
                Room::Enough => self.begin_destruction(number, conn, cost),
                Room::ClientFull => waiting.push_back(number),
                Room::Full => {
                    full = true;
                    waiting.push_back(number);
                    waiting.append(&mut left);
                }
            }
        }
        // What was begun may have put more into the line.
        waiting.append(&mut self.grace.line);
        self.grace.full = full;
        self.grace.line = waiting;
    }

    fn begin_destruction(&mut self, number: u64, conn: u32, cost: Cost) {
        let now = &mut self.grace.now;
        now.bytes += cost.bytes;
        now.mapped += cost.mapped;
        if let Ok(client) = self.client_mut(conn) {
            client.awaiting_grace += cost.bytes;
        }
        self.ops.restart_clock(number, self.now);
        match self.ops.work_of(number) {
            Some(Work::Destroy(_)) => self.begin_destroy(number),
            Some(Work::Depart(_)) => self.begin_departure(number, conn),
            _ => {}
        }
    }

    /// It is freed.
    pub(crate) fn settle_grace(&mut self, conn: u32, cost: Cost) {
        let now = &mut self.grace.now;
        now.bytes = now.bytes.saturating_sub(cost.bytes);
        now.mapped = now.mapped.saturating_sub(cost.mapped);
        if let Ok(client) = self.client_mut(conn) {
            client.awaiting_grace = client.awaiting_grace.saturating_sub(cost.bytes);
        }
    }

    /// What these objects will set waiting.
    pub(crate) fn cost_of(&self, objects: &[Key]) -> Cost {
        let cores = self.engine.core_count();
        let objects = objects.iter().filter_map(|key| self.objects.peek(*key));
        objects.map(|object| Cost::of(object, cores)).sum()
    }

    /// Who holds up what awaits grace, for the text of a refusal.
    pub(crate) fn who_holds_up(&self, now: Instant) -> String {
        let stalled: Vec<_> = (0..self.engine.core_count())
            .filter_map(|core| Some((core, self.engine.stalled(core, now)?)))
            .map(|(core, quiet)| stall_text(core, quiet))
            .collect();
        match stalled.is_empty() {
            true => "poll cores that are at work".into(),
            false => stalled.join(" and "),
        }
    }

    /// Refuses what needs an answer of this core while it does not go on.
    pub(crate) fn answers(&self, core: usize) -> Verb<()> {
        match self.engine.stalled(core, self.now) {
            None => Ok(()),
            Some(quiet) => Err(Refusal::again(format!(
                "this needs {}; try again when it goes on",
                stall_text(core, quiet)
            ))),
        }
    }

    /// The same for what needs an answer of every core.
    pub(crate) fn all_answer(&self) -> Verb<()> {
        (0..self.engine.core_count()).try_for_each(|core| self.answers(core))
    }
}

fn stall_text(core: usize, quiet: Duration) -> String {
    format!(
        "poll core {core}, which has not gone on for {} ms",
        quiet.as_millis()
    )
}

impl Work {
    /// What it sets waiting, if it destroys something.
    pub(crate) fn cost(&self) -> Option<Cost> {
        match self {
            Work::Destroy(destroy) => Some(destroy.cost),
            Work::Depart(Departure { cost, .. }) => Some(*cost),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_refused_beyond_either_bound_and_to_nobody_who_is_alone() {
        let v = RetiredView::BYTES;
        assert_eq!(room(10, 0, 100, 0, 0, 10 + v), Room::Enough);
        assert_eq!(room(11, 90, 100, 90, 0, 1000 + v), Room::ClientFull);
        assert_eq!(room(10, 90, 100, 90, 0, 100 + v), Room::Enough);
        assert_eq!(room(10, 0, 100, 91, 0, 100 + v), Room::Full);
        assert_eq!(
            room(1 << 30, 0, 100, 0, 0, 100),
            Room::Enough,
            "larger than the bound, alone"
        );
        assert_eq!(room(1 << 30, 0, 100, 1, 0, 100), Room::Full);
        assert_eq!(room(1 << 30, 0, 100, 20, 20, 100), Room::Enough, "views are few");
        assert_eq!(room(1 << 30, 0, 100, 90, 90, 100), Room::Full, "views are many");
        assert_eq!(room(usize::MAX, 1, usize::MAX - 1, 1, 0, 100), Room::ClientFull);
    }
}
