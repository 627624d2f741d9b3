//! The way between the two QPs, and what happens on it.

use crate::script::{Amount, Fault, FaultKind, FrameName, Pick, Rate, Script, Side};
use rnic_sim::{Packet, Rng};
use rnic_transport::Time;
use rnic_wire::{NakCode, Opcode, Psn, Syndrome};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Nanoseconds that every frame takes.
pub(crate) const WIRE: u64 = 1_000;
/// A frame to be overtaken goes on after so many nanoseconds though none has followed.
const OVERTAKE: u64 = 100_000;

/// A frame as it arrives.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub packet: Packet,
    /// "Congestion experienced".
    pub marked: bool,
}

/// Frames on their way.
pub(crate) struct Link {
    faults: Vec<Fault>,
    rates: Vec<Rate>,
    rng: Rng,
    /// Frames can be marked.
    capable: bool,
    /// First PSN of either requester.
    firsts: [Psn; 2],
    in_flight: BinaryHeap<Reverse<(Time, u64, usize)>>,
    packets: Vec<Arrival>,
    /// Of each side, a frame that the next one overtakes.
    held: [Option<(Time, Arrival)>; 2],
}

impl Link {
    pub fn new(script: &Script, firsts: [u32; 2]) -> Self {
        Link {
            faults: script.faults.clone(),
            rates: script.rates.clone(),
            rng: Rng::new(script.seed),
            capable: script.congestion,
            firsts: firsts.map(Psn::new),
            in_flight: BinaryHeap::new(),
            packets: Vec::new(),
            held: [None, None],
        }
    }

    /// Sends a frame of `side`. Whether it is marked on the way.
    pub fn send(&mut self, now: Time, side: Side, packet: Packet) -> bool {
        let relative = relative(&packet, side, self.firsts);
        let mut happens = Vec::new();
        for fault in &mut self.faults {
            if picks(&fault.pick, side, &packet, relative) && take(&mut fault.amount) {
                happens.push(fault.kind);
            }
        }
        for rate in &self.rates {
            if rate.side == side && self.rng.chance(rate.per_mille) {
                happens.push(rate.kind);
            }
        }
        let due = self.held[side.index()].take();
        let mut late = 0;
        let (mut lost, mut copies, mut reordered, mut marked) = (false, 1, false, false);
        for kind in happens {
            match kind {
                FaultKind::Drop | FaultKind::Corrupt => lost = true,
                FaultKind::Duplicate => copies = 2,
                FaultKind::Delay(nanos) => late += nanos,
                FaultKind::Reorder => reordered = true,
                FaultKind::Mark => marked = self.capable,
            }
        }
        let arrival = Arrival { packet, marked };
        if !lost && reordered && due.is_none() {
            self.held[side.index()] = Some((now.saturating_add(OVERTAKE), arrival));
            return marked;
        }
        if !lost {
            for _ in 0..copies {
                self.schedule(now.saturating_add(WIRE + late), side, arrival.clone());
            }
        }
        if let Some((_, overtaken)) = due {
            self.schedule(now.saturating_add(WIRE), side, overtaken);
        }
        marked && !lost
    }

    fn schedule(&mut self, at: Time, side: Side, arrival: Arrival) {
        self.in_flight
            .push(Reverse((at, self.packets.len() as u64, 1 - side.index())));
        self.packets.push(arrival);
    }

    /// When something happens next.
    pub fn next(&self) -> Option<Time> {
        let arrival = self.in_flight.peek().map(|Reverse((at, ..))| *at);
        let held = self.held.iter().flatten().map(|(at, _)| *at);
        held.chain(arrival).min()
    }

    /// The next frame that arrives by `now`, and at which side.
    pub fn arrive(&mut self, now: Time) -> Option<(usize, Arrival)> {
        for side in [Side::A, Side::B] {
            if let Some((at, arrival)) = self.held[side.index()].take_if(|(at, _)| *at <= now) {
                self.schedule(at, side, arrival);
            }
        }
        self.in_flight.peek().filter(|Reverse((at, ..))| *at <= now)?;
        let Reverse((_, number, to)) = self.in_flight.pop()?;
        Some((to, self.packets[number as usize].clone()))
    }
}

/// Whether the fault happens once more.
fn take(amount: &mut Amount) -> bool {
    match amount {
        Amount::Always => true,
        Amount::Times(0) => false,
        Amount::Times(left) => {
            *left -= 1;
            true
        }
    }
}

/// The PSN counted from the first of the requester that it belongs to; that of a CNP as it is.
pub(crate) fn relative(packet: &Packet, side: Side, firsts: [Psn; 2]) -> u32 {
    if packet.headers.bth.opcode == Opcode::CNP {
        return packet.psn();
    }
    let requester = if packet.headers.bth.opcode.is_request() {
        side.index()
    } else {
        1 - side.index()
    };
    packet.headers.bth.psn.get().wrapping_sub(firsts[requester].get()) & 0xFF_FFFF
}

/// What a frame is called in scripts: "NAK access", "SEND_FIRST".
pub(crate) fn name(packet: &Packet) -> String {
    match packet.aeth() {
        Some((_, Syndrome::RnrNak { .. }, _)) => "RNR_NAK".into(),
        Some((_, Syndrome::Nak(code), _)) => format!(
            "NAK {}",
            match code {
                NakCode::PsnSequenceError => "sequence",
                NakCode::InvalidRequest => "invalid",
                NakCode::RemoteAccessError => "access",
                NakCode::RemoteOperationalError => "operational",
                _ => "reserved",
            }
        ),
        _ if packet.headers.bth.opcode == Opcode::CNP => "CNP".into(),
        _ => packet.name().into(),
    }
}

pub(crate) fn picks(pick: &Pick, side: Side, packet: &Packet, relative: u32) -> bool {
    let called = name(packet);
    let named = match &pick.name {
        FrameName::Any => true,
        FrameName::Named(name) => called.split(' ').next() == Some(name),
    };
    pick.side == side && named && pick.psn.is_none_or(|psn| psn == relative)
}
