//! Ports as one core has them: taken in and given back by command.
use super::{
    run::Core,
    shared::{CongestionCounters, Handoff, Shared},
};
use crate::{
    frame::{BURST, FrameBurst, SharedPool},
    port::{Port, PortStats},
    retire::RetireLink,
};

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
    /// Empty frames.
    pub(super) spare: FrameBurst,
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
    #[inline]
    pub(super) fn ready(&mut self) -> bool {
        if self.spare.is_empty()
            && let Some(pool) = &self.pool
        {
            pool.alloc_burst(BURST, &mut self.spare);
        }
        if self.tx.is_full() {
            self.flush();
        }
        !self.spare.is_empty() && !self.tx.is_full()
    }

    /// Gives queued frames to the port; what it does not take stays.
    #[inline]
    pub(super) fn flush(&mut self) {
        if let Some(queue) = &mut self.queue
            && !self.tx.is_empty()
        {
            queue.tx_burst(&mut self.tx);
        }
    }

    /// Hands queued frames to the core that has a queue of this port.
    pub(super) fn hand_over(&mut self, port: u16, owner: &Shared, dropped: &mut u64) {
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
