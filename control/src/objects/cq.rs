//! Completion queues.

use std::sync::atomic::Ordering;

use rnic_abi::{
    CreateCq, CreateCqReply, Handle, HandleArg, LINE, ModifyCq, QueryCqReply, ResizeCq, ResizeCqDone,
    ResizeCqReply, RingIndices, completion_queue_size, cq_subring_offset,
};
use rnic_engine::{command::Command, core::CqInit, mem::ClientMem, view};
use rustix::{io::Errno, net::SendFlags};

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
    /// Where it stood before it was resized, until its client has read what was left there.
    pub left: Option<Slice>,
    /// Completions and microseconds after which an armed one wakes its client; zero for at once.
    pub moderation: (u16, u16),
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
        let depth = self.completion_queue_depth(arg.depth)?;
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

    fn completion_queue_depth(&self, wanted: u32) -> Verb<u32> {
        let limit = self.quota.cq_depth();
        match wanted.checked_next_power_of_two() {
            Some(depth) if wanted > 0 && depth <= limit => Ok(depth),
            _ => Err(Refusal::invalid(format!(
                "depth is {wanted}; it must be 1 to {limit} (limits.per_client.cq_depth)"
            ))),
        }
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
        clear(&region, slice, depth, cores);
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
            left: None,
            moderation: (0, 0),
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

    /// Has every core go on in a new place; the client is answered when all have. What is left in the old place is the
    /// client's to read, which takes no time of a core, however much there is.
    pub(crate) fn resize_cq(&mut self, conn: u32, arg: &ResizeCq) -> Verb<Outcome> {
        let (key, device) = self.cq(conn, arg.handle)?;
        self.check_present(conn, device)?;
        self.all_answer()?;
        let depth = self.completion_queue_depth(arg.depth)?;
        let cores = self.engine.core_count() as u32;
        let region = self.client_mut(conn)?.region.clone();
        let cq = self.cq_mut(key)?;
        if cq.failed {
            return Err(Refusal::invalid(format!(
                "handle is {:#x}, a CQ that has overflowed (CQ_ERR); make another CQ",
                arg.handle
            )));
        }
        let (slot, now) = (cq.slot(), cq.depth);
        let place = if cq.left.is_none() {
            let waiting = waiting(&region, cq, cores).max().unwrap_or(0);
            if waiting > depth {
                return Err(Refusal::invalid(format!(
                    "depth is {}, but {waiting} completions wait in one sub-ring of the CQ; poll them first, or ask for \
                     as many",
                    arg.depth
                )));
            }
            let place = self.take_queue_space(conn, completion_queue_size(depth, cores))?;
            clear(&region, place, depth, cores);
            let cq = self.cq_mut(key)?;
            cq.left = Some(std::mem::replace(&mut cq.slice, place));
            cq.depth = depth;
            self.save(key);
            place
        } else if depth == now {
            // Asked again: perhaps not every core was told.
            cq.slice
        } else {
            return Err(Refusal::new(
                Errno::BUSY,
                format!(
                    "the CQ was resized to {now} before, and what was left in its old place was not said to be read \
                     (resize_cq_done)"
                ),
            ));
        };
        let op = self.begin(conn, Work::ResizeCq(key));
        for core in 0..cores as usize {
            self.command(op, core, |token| Command::ResizeCq {
                cq: slot,
                offset: place.offset as u64,
                depth,
                token,
            });
        }
        Ok(Outcome::Pending)
    }

    /// No core writes to the old place any more.
    pub(crate) fn cq_resized(&mut self, key: Key) -> Verb<Reply> {
        let subrings = self.engine.core_count() as u32;
        let cq = self.cq_mut(key)?;
        Ok(Reply::new(&ResizeCqReply {
            offset: cq.slice.offset as u64,
            depth: cq.depth,
            subrings,
        }))
    }

    /// The client has read what was left in the old place.
    pub(crate) fn resize_cq_done(&mut self, conn: u32, arg: &ResizeCqDone) -> Verb<Reply> {
        let (key, _) = self.cq(conn, arg.handle)?;
        let cq = self.cq_mut(key)?;
        let Some(left) = cq.left.take() else {
            return Err(Refusal::invalid("the CQ was not resized"));
        };
        let channel = cq.channel.filter(|_| arg.wake != 0);
        self.save(key);
        self.give_queue_space(conn, left);
        if let Some(What::Channel(channel)) = channel.and_then(|key| Some(&self.objects.peek(key)?.what)) {
            // A client that does not read its socket loses wakes.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::send(&*channel.socket, &arg.handle.to_le_bytes(), flags);
        }
        Ok(Reply::default())
    }

    pub(crate) fn modify_cq(&mut self, conn: u32, arg: &ModifyCq) -> Verb<Outcome> {
        let ModifyCq {
            handle,
            count,
            period,
        } = *arg;
        let (key, _) = self.cq(conn, handle)?;
        self.all_answer()?;
        if count > 1 && period == 0 {
            return Err(Refusal::invalid(format!(
                "count is {count} and period 0: fewer completions would never wake anyone; give a period, 1 to 65535 µs"
            )));
        }
        let cq = self.cq_mut(key)?.slot();
        let op = self.begin(conn, Work::ModifyCq(key, (count, period)));
        for core in 0..self.engine.core_count() {
            self.command(op, core, |token| Command::ModerateCq {
                cq,
                count,
                period,
                token,
            });
        }
        Ok(Outcome::Pending)
    }

    /// Every core moderates it.
    pub(crate) fn cq_modified(&mut self, key: Key, moderation: (u16, u16)) -> Verb<Reply> {
        self.cq_mut(key)?.moderation = moderation;
        self.save(key);
        Ok(Reply::default())
    }

    pub(crate) fn query_cq(&mut self, conn: u32, arg: &HandleArg) -> Verb<Reply> {
        let (key, _) = self.cq(conn, arg.handle)?;
        let subrings = self.engine.core_count() as u32;
        let region = self.client_mut(conn)?.region.clone();
        let cq = self.cq_mut(key)?;
        Ok(Reply::new(&QueryCqReply {
            depth: cq.depth,
            subrings,
            waiting: waiting(&region, cq, subrings).sum(),
            count: cq.moderation.0,
            period: cq.moderation.1,
            failed: cq.failed.into(),
            reserved: 0,
        }))
    }

    /// A CQ and its device.
    fn cq(&mut self, conn: u32, handle: u32) -> Verb<(Key, u32)> {
        let key = self.find(conn, Kind::Cq, handle, "handle")?;
        Ok((key, self.objects.peek(key).map_or(0, |object| object.device)))
    }

    fn cq_mut(&mut self, key: Key) -> Verb<&mut Cq> {
        match self.objects.peek_mut(key).map(|object| &mut object.what) {
            Some(What::Cq(cq)) => Ok(cq),
            _ => Err(Refusal::invalid("handle is of no CQ (any more)")),
        }
    }
}

/// Makes the place of a CQ empty and not armed.
fn clear(region: &ClientMem, place: Slice, depth: u32, subrings: u32) {
    region.copy_in(place.offset, &[0; LINE]);
    for subring in 0..subrings {
        let at = place.offset + cq_subring_offset(depth, subring);
        region.copy_in(at, &[0; size_of::<RingIndices>()]);
    }
}

/// Completions that wait in each sub-ring; of one whose indices were forged as many as it has room for.
fn waiting(region: &ClientMem, cq: &Cq, subrings: u32) -> impl Iterator<Item = u32> {
    let (at, depth) = (cq.slice.offset, cq.depth);
    (0..subrings).map(move |subring| {
        let ring = at + cq_subring_offset(depth, subring);
        // The core and the client go on while the control thread looks.
        let index = |offset| {
            region
                .u32(ring + offset)
                .map_or(0, |word| word.load(Ordering::Acquire))
        };
        let (tail, head) = (index(RingIndices::TAIL), index(RingIndices::HEAD));
        tail.wrapping_sub(head).min(depth)
    })
}
