//! Ports as one core has them: taken in and given back by command.
use arrayvec::ArrayVec;
use rnic_simd::Crc;
use rnic_wire::Icrc;

use super::{
    host::Env,
    run::Core,
    shared::{CongestionCounters, Handoff, Shared},
    stages::Stage,
};
use crate::{
    frame::{BURST, Frame, FrameBurst, SharedPool},
    port::{Port, PortStats},
    retire::RetireLink,
};

/// Frames a core keeps of each port's pool, at most. A port has thousands.
const SPARES: usize = 2 * BURST;

/// A core's part of a port: its queue if it has one, the pool, frames. Made and freed by the control thread; it
/// travels in a box, so that the core does neither.
#[derive(Default)]
pub struct PortPart {
    /// The core's queue; a core without one hands its frames to `owner`.
    pub(super) queue: Option<Box<dyn Port>>,
    /// `None` where there is no port.
    pub(super) pool: Option<SharedPool>,
    /// Frames to be sent at the end of the pass.
    pub(super) tx: FrameBurst,
    /// Of the frames in `tx`, by index, that have no ICRC yet: where their IP header begins. Zero of the others.
    unsealed: [u8; BURST],
    /// Frames to be filled: those used last are taken first, as the cache still has them.
    pub(super) spare: ArrayVec<Frame, SPARES>,
    /// [`FramePool::id`](crate::frame::FramePool::id) of `pool`.
    pool_id: usize,
    /// A core that has a queue.
    pub(super) owner: u16,
    /// Of this core's QPs.
    pub(super) congestion: CongestionCounters,
    /// For its way back.
    pub(crate) link: RetireLink,
}

impl PortPart {
    /// A core's part of a port that core `owner` has a queue of.
    pub(crate) fn new(queue: Option<Box<dyn Port>>, pool: SharedPool, owner: u16) -> Box<Self> {
        Box::new(PortPart {
            queue,
            pool_id: pool.id(),
            pool: Some(pool),
            owner,
            ..PortPart::default()
        })
    }

    /// Whether there is a port.
    pub(super) fn is_there(&self) -> bool {
        self.pool.is_some()
    }

    /// Whether one more frame can be made and queued; makes room if it can.
    #[inline(always)] // two looks, nearly always
    pub(super) fn ready(&mut self, env: &mut Env) -> bool {
        !self.spare.is_empty() && !self.tx.is_full() || self.make_room(env)
    }

    #[inline(never)]
    fn make_room(&mut self, env: &mut Env) -> bool {
        if self.spare.is_empty()
            && let Some(pool) = &self.pool
        {
            let mut fresh = FrameBurst::new_const();
            pool.alloc_burst(BURST, &mut fresh);
            self.spare.extend(fresh);
        }
        if self.tx.is_full() {
            self.flush(env);
        }
        !self.spare.is_empty() && !self.tx.is_full()
    }

    /// Queues a spare frame and has `build` fill it, once [`PortPart::ready`] has said that there are room and a frame. `build`
    /// tells whether the ICRC is there; if it is not it is computed together with those of other frames: right behind the
    /// stores of the headers it would have to wait for them. `ip_start` is where the IP header begins. `false` when `build` has
    /// failed, and nothing is queued.
    #[inline]
    pub(super) fn queue_with(
        &mut self,
        ip_start: usize,
        build: impl FnOnce(&mut Frame) -> Option<bool>,
    ) -> bool {
        let at = self.tx.len();
        let Some(spare) = self.spare.pop() else {
            return false;
        };
        self.tx.push(spare);
        match self.tx.last_mut().and_then(build) {
            Some(sealed) => {
                self.unsealed[at] = if sealed { 0 } else { ip_start as u8 };
                true
            }
            None => {
                self.spare.extend(self.tx.pop());
                false
            }
        }
    }

    /// Computes the ICRCs that are missing.
    #[inline]
    fn seal(&mut self, crc: &Crc) {
        for (frame, ip_start) in self.tx.iter_mut().zip(&mut self.unsealed) {
            let ip_start = usize::from(std::mem::take(ip_start));
            if ip_start != 0 {
                Icrc::seal(crc, frame.bytes_mut(), ip_start);
            }
        }
    }

    /// Gives queued frames to the port; what it does not take stays.
    #[inline]
    pub(super) fn flush(&mut self, env: &mut Env) {
        let before = env.stages.enter(Stage::Icrc);
        self.seal(&env.crc);
        env.stages.enter(Stage::Tx);
        if let Some(queue) = &mut self.queue
            && !self.tx.is_empty()
        {
            queue.tx_burst(&mut self.tx);
        }
        env.stages.enter(before);
    }

    /// Hands queued frames to the core that has a queue of this port.
    pub(super) fn hand_over(&mut self, port: u16, owner: &Shared, crc: &Crc, dropped: &mut u64) {
        self.seal(crc);
        let frames = std::mem::replace(&mut self.tx, FrameBurst::new_const());
        for frame in frames {
            if owner.inbound.push(Handoff::Send { port, frame }).is_err() {
                *dropped += 1;
            }
        }
        owner.kick();
    }
}

impl Core {
    /// Takes a frame that was dealt with. It is filled again, if it is of the pool of a port here; else it goes back.
    #[inline]
    pub(super) fn recycle(&mut self, frame: Frame) {
        let pool = frame.pool();
        if pool == 0 {
            return;
        }
        for &port in &self.port_list {
            let part = &mut self.ports[usize::from(port)];
            if part.pool_id == pool {
                // One too many goes back.
                let _ = part.spare.try_push(frame);
                return;
            }
        }
    }

    /// The same of a burst, whose frames are all of one pool where ports are not mixed.
    #[inline]
    pub(super) fn recycle_all(&mut self, burst: &mut FrameBurst) {
        let pool = burst.first().map_or(0, Frame::pool);
        let of_pool = |port: &&u16| self.ports[usize::from(**port)].pool_id == pool;
        let Some(port) = self.port_list.iter().find(of_pool).copied().filter(|_| pool != 0) else {
            return burst.clear();
        };
        for frame in burst.drain(..) {
            if frame.pool() == pool {
                let _ = self.ports[usize::from(port)].spare.try_push(frame);
            } else {
                self.recycle(frame);
            }
        }
    }

    /// Puts `part` in the place of a port and returns what was there.
    pub(super) fn exchange_port(&mut self, port: u16, mut part: Box<PortPart>) -> Box<PortPart> {
        if let Some(place) = self.ports.get_mut(usize::from(port)) {
            std::mem::swap(place, &mut part);
            self.port_list.retain(|listed| *listed != port);
            if place.is_there() {
                self.port_list.push(port);
                self.me.publish_port(usize::from(port), PortStats::default());
                self.me
                    .publish_congestion(usize::from(port), &CongestionCounters::default());
            }
        }
        part
    }

    /// Gives frames of a port that wait to be handed over back to their pool. No core has a part of the port any
    /// more, so none can follow.
    pub(super) fn drop_inbound(&mut self, port: u16) {
        for _ in 0..self.me.inbound.len() {
            match self.me.inbound.pop() {
                Some(
                    Handoff::Received { port: of, .. }
                    | Handoff::Copied { port: of, .. }
                    | Handoff::Send { port: of, .. },
                ) if of == port => {
                    self.env.counters.handoff_dropped += 1;
                }
                Some(handoff) => self.take_handoff(handoff),
                None => return,
            }
        }
    }
}
