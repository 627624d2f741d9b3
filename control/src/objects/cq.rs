//! Completion queues.

use rnic_abi::{
    CreateCq, CreateCqReply, Handle, LINE, RingIndices, completion_queue_size, cq_subring_offset,
};
use rnic_engine::{command::Command, core::CqInit, view};

use super::{IdKind, Key, Kind, Number, Object, What};
use crate::{
    control::Control,
    dispatch::Outcome,
    ops::Work,
    refusal::{Refusal, Verb},
    region_alloc::Slice,
    session::Reply,
};

/// A completion queue: a sub-ring on every poll core.
#[derive(Debug)]
pub struct Cq {
    /// Its number. The slot is the same on every core.
    pub number: u32,
    /// Where it stands in the region.
    pub slice: Slice,
    /// Entries of each sub-ring.
    pub depth: u32,
    /// Its completion channel.
    pub channel: Option<Key>,
    /// It has overflowed: completions are lost, and no QP may be made on it any more.
    pub failed: bool,
}

impl Cq {
    /// Its slot: index on every core.
    pub fn slot(&self) -> u32 {
        view::slot_of(self.number)
    }
}

/// A completion queue that poll cores are taking in.
#[derive(Debug)]
pub struct CqCreation {
    device: u32,
    handle: Handle,
    cq: Cq,
}

impl Control {
    pub(crate) fn create_cq(&mut self, conn: u32, arg: &CreateCq) -> Verb<Outcome> {
        self.device(conn, arg.device)?;
        self.allow(conn, Kind::Cq)?;
        self.all_answer()?;
        let limit = self.quota.cq_depth();
        let depth = match arg.depth.checked_next_power_of_two() {
            Some(depth) if arg.depth > 0 && depth <= limit => depth,
            _ => {
                return Err(Refusal::invalid(format!(
                    "depth is {}; it must be 1 to {limit} (limits.per_client.cq_depth)",
                    arg.depth
                )));
            }
        };
        let channel = match arg.channel {
            0 => None,
            handle => Some(self.hold(conn, Kind::Channel, handle, "channel")?.0),
        };
        let made = self.install_cq(conn, arg.device, depth, channel);
        if made.is_err()
            && let Some(channel) = channel
        {
            self.objects.put(channel);
        }
        made.map(|()| Outcome::Pending)
    }

    fn install_cq(&mut self, conn: u32, device: u32, depth: u32, channel: Option<Key>) -> Verb<()> {
        let cores = self.engine.core_count() as u32;
        let socket = channel.and_then(|key| match &self.objects.peek(key)?.what {
            What::Channel(channel) => Some(channel.socket.clone()),
            _ => None,
        });
        let full = || Refusal::exhausted("no CQ number is free in the daemon; destroy CQs first");
        let Number { slot, generation } = self.numbers.cqs.take().ok_or_else(full)?;
        let placed = self.take_place(conn, completion_queue_size(depth, cores));
        let (handle, slice) = placed.inspect_err(|_| self.numbers.cqs.give(slot))?;
        let client = self.client_mut(conn)?;
        let (region, index) = (client.region.clone(), client.index);
        region.copy_in(slice.offset, &[0; LINE]);
        for subring in 0..cores {
            let at = slice.offset + cq_subring_offset(depth, subring);
            region.copy_in(at, &[0; size_of::<RingIndices>()]);
        }
        // Clients know a CQ by the slot of its handle; its number here is the cores'.
        client.events.install(&region, handle, handle.slot());
        let queues: Result<Vec<_>, _> = (0..cores)
            .map(|subring| {
                self.engine.make_cq(CqInit {
                    handle: handle.0,
                    client: index,
                    number: slot,
                    region: region.clone(),
                    offset: slice.offset as u64,
                    depth,
                    subring,
                    channel: socket.clone(),
                })
            })
            .collect();
        let queues = match queues {
            Ok(queues) => queues,
            Err(error) => {
                self.give_queue_space(conn, slice);
                self.give_handle(conn, handle);
                self.numbers.cqs.give(slot);
                return Err(Refusal::invalid(format!("create_cq: {error}")));
            }
        };
        let cq = Cq {
            number: view::number(slot, generation),
            slice,
            depth,
            channel,
            failed: false,
        };
        let op = self.begin(conn, Work::CreateCq(CqCreation { device, handle, cq }));
        for (core, queue) in queues.into_iter().enumerate() {
            self.command(op, core, |token| Command::AddCq {
                cq: slot,
                queue,
                token,
            });
        }
        Ok(())
    }

    /// Every core has taken the queue in.
    pub(crate) fn cq_installed(&mut self, conn: u32, creation: CqCreation) -> Reply {
        let CqCreation { device, handle, cq } = creation;
        let reply = CreateCqReply {
            handle: handle.0,
            depth: cq.depth,
            subrings: self.engine.core_count() as u32,
            reserved: 0,
            offset: cq.slice.offset as u64,
        };
        let id = (IdKind::Number(view::Kind::Cq), cq.number);
        let what = What::Cq(cq);
        self.publish(Object::new(conn, handle, device, what), Some(id));
        Reply::new(&reply)
    }
}
