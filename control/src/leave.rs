//! A client's leaving: its socket is closed, whether it ended, was killed or is broken. Everything it owns goes by
//! the order of [`crate::destroy`], then the client itself.

use rnic_engine::command::Command;
use rnic_qsbr::Epoch;
use rnic_transport::{Cause, Check};

use crate::{
    client::Client,
    control::Control,
    destroy::Then,
    grace::Cost,
    objects::{Key, Kind},
    ops::{Op, Work},
};

/// A client that owns nothing any more, on its way out.
#[derive(Debug)]
pub struct Departure {
    step: Step,
    /// What of it counts as awaiting grace: its region.
    pub(crate) cost: Cost,
}

#[derive(Debug)]
enum Step {
    /// Too much awaits grace for now.
    Line,
    /// Cores are giving its doorbells up.
    Stop,
    /// They have; the next grace period is that of the batch.
    Stopped,
    /// Cores pass quiescent states.
    Grace(Epoch),
}

impl Departure {
    /// Whether it has not begun.
    pub(crate) fn is_in_line(&self) -> bool {
        matches!(self.step, Step::Line)
    }

    /// Whether cores are giving its doorbells up.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(self.step, Step::Stop)
    }

    /// Its grace period began.
    pub(crate) fn grace_began(&mut self, epoch: Epoch) {
        self.step = Step::Grace(epoch);
    }

    /// The epoch it waits for, if it does.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        match self.step {
            Step::Grace(epoch) => Some(epoch),
            _ => None,
        }
    }
}

impl Control {
    /// A connection's socket is closed, or its client is broken: everything it owns goes.
    pub(crate) fn leave(&mut self, conn: u32) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if connection.leaving {
            return;
        }
        connection.leaving = true;
        self.poller.remove(&connection.session);
        let peer = &connection.session.peer;
        tracing::info!(session = connection.session.number(), pid = peer.pid, comm = %peer.comm, "client left");
        // Nobody waits for the answer of a silent neighbour any more.
        let waiting: Vec<u64> = self.ops.of(conn).collect();
        for number in waiting {
            self.neighbours.forget(number);
            if !self.ops.waits_for_neighbour(number) {
                continue;
            }
            if let Some(Op {
                work: Work::CreateAh(creation),
                ..
            }) = self.ops.take(number)
            {
                self.abandon_ah(&creation);
            }
        }
        self.go_on_leaving(conn);
    }

    /// The next part of a client's leaving, when nothing of it is under way: QPs, then what they used, then what
    /// that used, then the client itself.
    pub(crate) fn go_on_leaving(&mut self, conn: u32) {
        if self.ops.of(conn).next().is_some() {
            return;
        }
        let Some(client) = self.connections.get(&conn).and_then(|c| c.client.as_deref()) else {
            self.connections.remove(&conn);
            return;
        };
        // As many as may await grace at once: the death of one client is no reason to refuse others.
        let room = self.quota.limits.bytes_awaiting_grace.bytes() as usize / 2;
        let order: [&[Kind]; 4] = [
            &[Kind::Qp, Kind::Target],
            // An XRC SRQ has a CQ.
            &[Kind::Srq],
            &[Kind::Cq, Kind::Mw, Kind::Mr, Kind::Ah],
            &[Kind::Channel, Kind::Pd, Kind::Xrcd],
        ];
        let batch = order
            .into_iter()
            .map(|kinds| self.objects_of(client, kinds, room))
            .find(|batch| !batch.is_empty());
        let Some(batch) = batch else {
            return self.depart(conn);
        };
        let mut free: Vec<Key> = batch
            .into_iter()
            .filter(|key| self.refuse_new_work(*key).is_ok())
            .collect();
        debug_assert!(
            !free.is_empty(),
            "objects of a leaving client depend on each other in a circle"
        );
        // Target QPs that nobody else holds go too.
        let last: Vec<Key> = free
            .iter()
            .filter_map(|key| self.let_go_of_target(*key))
            .collect();
        free.extend(last);
        self.destroy_all(conn, free, Then::Leave);
    }

    /// Objects of some kinds, of `room` bytes together, and one at least.
    fn objects_of(&self, client: &Client, kinds: &[Kind], mut room: usize) -> Vec<Key> {
        let mut found = Vec::new();
        for key in &client.objects {
            if !self.objects.peek(*key).is_some_and(|o| kinds.contains(&o.kind())) {
                continue;
            }
            let bytes = self.cost_of(&[*key]).bytes;
            if !found.is_empty() && bytes > room {
                break;
            }
            room = room.saturating_sub(bytes);
            found.push(*key);
        }
        found
    }

    fn depart(&mut self, conn: u32) {
        let Ok(client) = self.client_mut(conn) else { return };
        let cost = Cost {
            bytes: client.shrink(),
            mapped: 0,
        };
        let step = Step::Line;
        let op = self.begin(conn, Work::Depart(Departure { step, cost }));
        self.begin_in_turn(op);
    }

    /// Its turn has come, and it is on the account.
    pub(crate) fn begin_departure(&mut self, op: u64, conn: u32) {
        let Ok(client) = self.client_mut(conn) else { return };
        let client = client.index;
        if let Some(Work::Depart(departure)) = self.ops.work_mut(op) {
            departure.step = Step::Stop;
        }
        for core in 0..self.engine.core_count() {
            self.command(op, core, |token| Command::RemoveClient { client, token });
        }
    }

    /// Goes on with a departure: its step is done.
    pub(crate) fn advance_departure(&mut self, number: u64, mut op: Op) {
        let Work::Depart(departure) = &mut op.work else {
            return;
        };
        if let Step::Stop = departure.step {
            departure.step = Step::Stopped;
            self.ops.put_back(number, op);
            self.batch.resume_after_grace(number);
            return;
        }
        let cost = departure.cost;
        self.settle_grace(op.conn, cost);
        let registered = self.client_mut(op.conn).ok().and_then(|client| client.registered);
        if let Some(registered) = registered {
            let registry = self.registry.clone();
            registry.remove_client(self, registered);
        }
        // The region goes with the client: the cores' parts have gone already.
        if let Some(client) = self.connections.remove(&op.conn).and_then(|c| c.client) {
            self.by_index.remove(&client.index);
            self.numbers.clients.give(client.index);
        }
    }

    /// A client that is broken (its memory was not there, or it forged what only it could forge): its QPs go to
    /// the error state, then it leaves.
    pub(crate) fn expel(&mut self, conn: u32, why: &str) {
        let Some(connection) = self.connections.get(&conn).filter(|c| !c.leaving) else {
            return;
        };
        let peer = &connection.session.peer;
        tracing::warn!(pid = peer.pid, comm = %peer.comm, "client is broken and is disconnected: {why}");
        let objects = connection
            .client
            .as_deref()
            .map(|client| client.objects.clone())
            .unwrap_or_default();
        let op = self.begin(conn, Work::Fail);
        let cause = Cause::of(Check::MemoryFault);
        let mut failing = false;
        for key in objects {
            failing |= self.fail_qp(op, key, cause).is_some();
        }
        if !failing {
            self.ops.take(op);
        }
        if let Some(connection) = self.connections.get(&conn) {
            // The client learns of it now, not when its last object is gone.
            let _ = rustix::net::shutdown(&connection.session, rustix::net::Shutdown::Both);
        }
        self.leave(conn);
    }
}
