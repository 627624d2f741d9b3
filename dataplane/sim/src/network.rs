//! Packets in flight, and what may happen to them.

use crate::node::Packet;
use crate::rng::Rng;
use rnic_transport::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What the network does to packets; chances in thousandths.
#[derive(Copy, Clone, Debug, Default)]
pub struct Faults {
    /// Lost.
    pub loss: u32,
    /// Corrupted, which the ICRC turns into a loss.
    pub corruption: u32,
    /// Delivered twice.
    pub duplication: u32,
    /// Delayed by up to `late_by` more than others, thus overtaken.
    pub reordering: u32,
    /// Nanoseconds that every packet takes.
    pub delay: u64,
    /// Most nanoseconds that a reordered or duplicated packet takes in addition.
    pub late_by: u64,
}

/// A full-duplex link of two nodes, 0 and 1.
#[derive(Debug)]
pub struct Network {
    faults: Faults,
    rng: Rng,
    in_flight: BinaryHeap<Reverse<(Time, u64)>>,
    packets: std::collections::HashMap<u64, (usize, Packet)>,
    sent: u64,
    /// Packets that were lost, corrupted or late.
    pub troubled: u64,
}

impl Network {
    /// An empty network.
    pub fn new(faults: Faults, rng: Rng) -> Self {
        Network {
            faults,
            rng,
            in_flight: BinaryHeap::new(),
            packets: Default::default(),
            sent: 0,
            troubled: 0,
        }
    }

    /// Stops all faults: what is sent from now on arrives, once and in order.
    pub fn heal(&mut self) {
        self.faults = Faults {
            delay: self.faults.delay,
            ..Faults::default()
        };
    }

    /// Sends a packet to node `to`.
    pub fn send(&mut self, now: Time, to: usize, packet: Packet) {
        let Faults {
            loss,
            corruption,
            duplication,
            reordering,
            ..
        } = self.faults;
        if self.rng.chance(duplication) {
            let late = self.late();
            self.schedule(now, late, to, packet.clone());
        }
        if self.rng.chance(loss) || self.rng.chance(corruption) {
            self.troubled += 1;
            return;
        }
        let reordered = self.rng.chance(reordering);
        self.troubled += u64::from(reordered);
        let late = if reordered { self.late() } else { 0 };
        self.schedule(now, late, to, packet);
    }

    /// How late a packet is.
    fn late(&mut self) -> u64 {
        self.rng.between(0, self.faults.late_by)
    }

    fn schedule(&mut self, now: Time, late: u64, to: usize, packet: Packet) {
        self.sent += 1;
        let at = now.saturating_add(self.faults.delay + late);
        self.in_flight.push(Reverse((at, self.sent)));
        self.packets.insert(self.sent, (to, packet));
    }

    /// When the next packet arrives.
    pub fn next_arrival(&self) -> Option<Time> {
        self.in_flight.peek().map(|Reverse((at, _))| *at)
    }

    /// The packet that arrives by `now`, and where.
    pub fn arrive(&mut self, now: Time) -> Option<(usize, Packet)> {
        let Reverse((at, number)) = self.in_flight.peek().copied()?;
        if at > now {
            return None;
        }
        self.in_flight.pop();
        self.packets.remove(&number)
    }
}
