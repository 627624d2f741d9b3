//! From a frame to the QP it is for. Whatever is not right is counted and dropped.
use std::ptr::NonNull;

use arrayvec::ArrayVec;
use rnic_transport::{Ctx, Payload, QpType, Received};
use rnic_wire::{
    self as wire, Datagram, Ecn, Extension, Kind, PlainFrame, Qpn, Transport, Whole, classify, verify_icrc,
    verify_plain,
};

use super::{
    host::{Env, Gathered},
    port::PortPart,
    qp::Qp,
    run::Core,
    shared::{Handoff, RESERVED},
    short::answer,
    stages::Stage,
};
use crate::{
    command::{Message, Sent},
    frame::{BURST, Frame, FrameBurst},
    mem::RemoteRange,
};

/// The default partition, full and limited members alike.
const DEFAULT_PARTITION: u16 = 0x7fff;

/// Bytes of a frame up to which it is summed with the others of its burst; a longer one when it is its turn, right before its
/// payload is copied, which the nearest cache has then.
const TOGETHER: usize = 512;

/// What is known of a received frame before it is its turn.
#[derive(Copy, Clone, Default)]
pub(super) struct Ahead<'a> {
    /// Whether the ICRC is right.
    sum: Option<bool>,
    /// Slot of the QP it is for, one of this core's.
    slot: Option<u32>,
    /// The frame, if it is a plain one.
    plain: Option<PlainFrame<'a>>,
}

/// Where a frame went.
enum Taken {
    /// It was for this core, or for nobody.
    Here,
    /// To the control thread.
    SlowPath,
    /// To this core.
    By(usize),
}

impl Core {
    /// One burst from each port. Tells how many frames came.
    pub(super) fn receive_ports(&mut self) -> usize {
        let mut count = 0;
        for i in 0..self.port_list.len() {
            let port = self.port_list[i];
            let Some(queue) = &mut self.ports[usize::from(port)].queue else {
                continue;
            };
            self.env.stages.enter(Stage::Rx);
            queue.tick(self.env.now.0);
            let mut burst = FrameBurst::new_const();
            let came = queue.rx_burst(&mut burst);
            if came == 0 {
                continue;
            }
            count += came;
            self.env.stages.enter(Stage::Classify);
            let ahead = self.look_ahead(&burst);
            let mut elsewhere: ArrayVec<(usize, Taken), BURST> = ArrayVec::new_const();
            for (i, (frame, ahead)) in burst.iter().zip(&ahead).enumerate() {
                if ahead.plain.is_none() || !self.take_plain(port, ahead) {
                    match self.take(port, frame, false, ahead) {
                        Taken::Here => {}
                        taken => elsewhere.push((i, taken)),
                    }
                }
            }
            self.env.stages.enter(Stage::Rx);
            let mut slots: ArrayVec<Option<u32>, BURST> = ArrayVec::new_const();
            if self.is_crowded() {
                slots.extend(ahead.iter().map(|ahead| ahead.slot));
            }
            drop(ahead);
            if elsewhere.is_empty() {
                self.recycle_all(&mut burst);
            } else {
                self.part_with(port, burst, elsewhere);
            }
            self.env.stages.enter(Stage::StateMachine);
            self.answer(&slots);
        }
        self.env.stages.enter(Stage::Other);
        count
    }

    /// Sends those frames of a burst on that were not for this core, in their order.
    fn part_with(&mut self, port: u16, burst: FrameBurst, elsewhere: ArrayVec<(usize, Taken), BURST>) {
        let mut elsewhere = elsewhere.into_iter().peekable();
        for (i, frame) in burst.into_iter().enumerate() {
            let taken = elsewhere.next_if(|(at, _)| *at == i);
            self.dispose(port, frame, false, taken.map_or(Taken::Here, |(_, taken)| taken));
        }
    }

    /// What of a burst's frames is done best together: the misses of the table and of the QPs overlap, and so do the sums of the
    /// frames that this core will verify.
    #[inline(never)]
    fn look_ahead<'a>(&mut self, burst: &'a FrameBurst) -> ArrayVec<Ahead<'a>, BURST> {
        let view = self.view.refresh();
        // Several frames in a row are often for one QP. There is no QP 0 in any view.
        let mut last = (0, None);
        let mut slot_of = |qpn| {
            if qpn != last.0 {
                // Whoever has a QP in its view owns it.
                last = (qpn, view.qp(qpn).map(|leaf| leaf.slot));
            }
            last.1
        };
        let mut ahead: ArrayVec<Ahead<'a>, BURST> = ArrayVec::new_const();
        for frame in burst {
            let plain = match frame.vlan() {
                None => PlainFrame::parse(frame.bytes()),
                Some(_) => None,
            };
            let qpn = match &plain {
                Some(packet) => packet.dest_qpn(),
                None => likely_qpn(frame.bytes()).unwrap_or(0),
            };
            ahead.push(Ahead {
                slot: slot_of(qpn),
                sum: None,
                plain,
            });
        }
        self.env.stages.enter(Stage::Icrc);
        let qp = |ahead: &Ahead<'_>| self.qps.get(ahead.slot? as usize)?.as_ref();
        if self.is_spread() {
            ahead.iter().filter_map(qp).for_each(|qp| qp.prefetch());
        }
        for (frame, ahead) in burst.iter().zip(&mut ahead) {
            if ahead.slot.is_some() && frame.len() <= TOGETHER {
                ahead.sum = match &ahead.plain {
                    Some(packet) => Some(packet.verify_icrc(&self.env.crc)),
                    None => verify_plain(&self.env.crc, frame.bytes()),
                };
            }
        }
        if self.is_spread() {
            ahead.iter().filter_map(qp).for_each(|qp| qp.prefetch_record());
        }
        ahead
    }

    /// Serves the QPs that a burst was for before it is their turn among the many that are active: by then their peers' timers
    /// would have run out, and they would have to be loaded again.
    #[inline]
    fn answer(&mut self, burst: &[Option<u32>]) {
        for (i, slot) in burst.iter().enumerate() {
            let Some(slot) = *slot else { continue };
            // Once, however many frames were for it, so that one with much to send leaves others their turn. Most come in a
            // row, so the last ones first.
            if burst[..i].iter().rev().any(|before| *before == Some(slot)) {
                continue;
            }
            let qp = self.qps.get_mut(slot as usize);
            if let Some(mut qp) = qp.and_then(|place| place.take_if(|qp| qp.rec.rc.has_work())) {
                self.serve_one(&mut qp);
                self.after(slot, &mut qp);
                self.qps[slot as usize] = Some(qp);
            }
        }
    }

    /// Frames that other cores handed over, at most a burst.
    pub(super) fn receive_inbound(&mut self) -> usize {
        for count in 0..crate::frame::BURST {
            match self.me.inbound.pop() {
                Some(handoff) => self.take_handoff(handoff),
                None => return count,
            }
        }
        crate::frame::BURST
    }

    pub(super) fn take_handoff(&mut self, handoff: Handoff) {
        match handoff {
            Handoff::Received { port, frame, direct } => self.receive(port, frame, direct),
            Handoff::Copied { port, frame, direct } => self.receive_copy(port, &frame, direct),
            Handoff::Send { port, frame } => self.send_slow(port, frame),
        }
    }

    /// Takes a frame that came through a port and is plain, if nothing about it, or about the QP if it is a whole message, is out of
    /// the ordinary; else `false`, nothing has happened, and the frame goes the long way, where it is found out what is.
    #[inline(never)]
    fn take_plain(&mut self, port: u16, ahead: &Ahead<'_>) -> bool {
        let (Some(slot), Some(packet)) = (ahead.slot, &ahead.plain) else {
            return false;
        };
        self.env.stages.enter(Stage::Lookup);
        let place = self.qps.get_mut(slot as usize);
        let Some(qp) = place.and_then(Option::as_deref_mut) else {
            return false;
        };
        let env = &mut self.env;
        let sum = || {
            env.stages.enter(Stage::Icrc);
            packet.verify_icrc(&env.crc)
        };
        if !qp.is_from_peer(port, packet) || !ahead.sum.unwrap_or_else(sum) {
            return false;
        }
        self.env.stages.enter(Stage::StateMachine);
        let outcome = match packet.whole() {
            Some(whole @ Whole { reth: Some(_), .. }) => {
                receive_whole(&mut self.env, qp, &whole, packet.payload())
            }
            Some(whole) => receive_send(&mut self.env, qp, &whole, packet.payload()),
            None => receive_plain(&mut self.env, &mut self.ports, qp, packet),
        };
        let Some(outcome) = outcome else {
            return false;
        };
        self.env.counters.rx_roce += 1;
        if outcome == Received::Accepted && qp.rec.pending.kinds == 0 && (qp.active || !qp.has_work()) {
            qp.rec.counters.received_packets += 1;
            // No deadline moves by a message.
            if packet.whole().is_none()
                && let Some(deadline) = qp.deadline()
            {
                self.timers.arm(slot, deadline);
            }
        } else if let Some(mut qp) = self.qps[slot as usize].take() {
            self.received(slot, &mut qp, outcome);
            self.qps[slot as usize] = Some(qp);
        }
        true
    }

    /// One frame. `direct` frames were built by a core of this appliance and did not come through a port.
    #[inline]
    pub(super) fn receive(&mut self, port: u16, frame: Frame, direct: bool) {
        let taken = self.take(port, &frame, direct, &Ahead::default());
        self.dispose(port, frame, direct, taken);
    }

    /// Sends a frame where it went.
    #[inline]
    fn dispose(&mut self, port: u16, frame: Frame, direct: bool, taken: Taken) {
        match taken {
            Taken::Here => self.recycle(frame),
            Taken::SlowPath => self.divert(port, frame),
            Taken::By(owner) => self.hand_to(owner, Handoff::Received { port, frame, direct }),
        }
    }

    #[inline]
    fn take(&mut self, port: u16, frame: &Frame, direct: bool, ahead: &Ahead<'_>) -> Taken {
        self.env.stages.enter(Stage::Classify);
        let kind = classify(frame.bytes(), frame.vlan());
        self.env.stages.enter(Stage::Lookup);
        // Looked at where it is: it was made just now, and a copy would wait for the stores.
        let owner = match kind {
            Kind::Other => return Taken::SlowPath,
            Kind::Malformed(error) => {
                self.env.counters.malformed[error.index()] += 1;
                return Taken::Here;
            }
            Kind::Roce(ref packet) => {
                let qpn = packet.bth().dest_qpn;
                let owner = match ahead.slot {
                    Some(_) => self.id,
                    None => usize::from(self.view.refresh().owner(qpn)),
                };
                if owner == self.id {
                    self.env.counters.rx_roce += 1;
                    let sum = || {
                        let before = self.env.stages.enter(Stage::Icrc);
                        let right = verify_icrc(&self.env.crc, packet.datagram());
                        self.env.stages.enter(before);
                        right
                    };
                    if !ahead.sum.unwrap_or_else(sum) {
                        self.env.counters.icrc_errors += 1;
                        return Taken::Here;
                    }
                    if qpn == Qpn::MULTICAST.get() {
                        self.receive_multicast(port, packet, frame, direct);
                        return Taken::Here;
                    }
                    let slot = self.find(qpn, packet.bth().pkey, ahead.slot);
                    let Some((slot, mut qp)) = slot else {
                        return Taken::Here;
                    };
                    if self.addressed(&qp, packet.datagram(), port, direct) {
                        if packet.datagram().ecn() == Ecn::Ce {
                            self.marked(&mut qp, packet);
                        }
                        self.env.stages.enter(Stage::StateMachine);
                        let outcome = self.give(&mut qp, packet);
                        self.received(slot, &mut qp, outcome);
                    } else {
                        self.env.counters.address_mismatch += 1;
                    }
                    self.qps[slot as usize] = Some(qp);
                    return Taken::Here;
                }
                owner
            }
            Kind::ReservedOpcode {
                datagram,
                opcode,
                dest_qpn,
                psn,
            } => {
                let owner = usize::from(self.view.refresh().owner(dest_qpn));
                if owner == self.id {
                    if !ahead.sum.unwrap_or_else(|| verify_icrc(&self.env.crc, &datagram)) {
                        self.env.counters.icrc_errors += 1;
                        return Taken::Here;
                    }
                    self.env.counters.reserved_opcode += 1;
                    let Some((slot, mut qp)) = self.find(dest_qpn, DEFAULT_PARTITION, None) else {
                        return Taken::Here;
                    };
                    let class = qp.rec.rc.qp_type().transport();
                    if Transport::of_opcode(opcode) == Some(class)
                        && self.addressed(&qp, &datagram, port, direct)
                    {
                        let outcome = qp.with(&mut self.env, |rc, ctx| rc.receive_reserved(ctx, opcode, psn));
                        self.received(slot, &mut qp, outcome);
                    }
                    self.qps[slot as usize] = Some(qp);
                    return Taken::Here;
                }
                owner
            }
        };
        Taken::By(owner)
    }

    /// A packet for a QP is marked "congestion experienced".
    #[cold]
    fn marked(&mut self, qp: &mut Qp, packet: &wire::Frame<'_>) {
        let counters = &mut self.ports[usize::from(qp.rec.id.port)].congestion;
        counters.np_ecn_marked_roce_packets += 1;
        qp.rec.rc.marked(packet.bth().opcode, self.env.now);
    }

    /// Gives a packet to the transport of the QP it is for.
    #[inline]
    pub(super) fn give(&mut self, qp: &mut Qp, packet: &wire::Frame<'_>) -> Received {
        let (headers, payload) = (packet.headers(), range_of(packet.payload()));
        if headers.deth.is_some() {
            let grh = packet.datagram().grh();
            let ranges = [range_of(&grh), payload];
            qp.with(&mut self.env, |rc, ctx| {
                rc.receive(ctx, headers, Gathered::new(&ranges))
            })
        } else {
            qp.with(&mut self.env, |rc, ctx| {
                rc.receive(ctx, headers, Gathered::new(&[payload]))
            })
        }
    }

    /// Whether addresses, VLAN and ingress port of a packet are those of the QP's address vector; a datagram has to be
    /// for the QP's own port.
    #[inline]
    fn addressed(&self, qp: &Qp, datagram: &Datagram<'_>, port: u16, direct: bool) -> bool {
        if qp.rec.rc.qp_type() == QpType::Ud {
            return self.is_for_port(qp.rec.id.port, datagram, port, direct);
        }
        let Some(path) = qp.path() else { return false };
        let ends = datagram.is_between(&path.remote_ip, &path.local_ip);
        let vlan = path.vlan.map(|tci| tci & 0x0fff).filter(|id| *id != 0);
        ends && (direct || (path.port == port && datagram.vlan_id() == vlan))
    }

    fn hand_to(&mut self, owner: usize, handoff: Handoff) {
        let core = &self.cores[owner];
        if core.inbound.push(handoff).is_err() {
            self.env.counters.handoff_dropped += 1;
        }
        core.kick();
    }

    /// Takes the QP with this number out of the arena; `slot` is its slot, if it was looked up in this pass. The caller puts
    /// it back.
    #[inline]
    pub(super) fn find(&mut self, qpn: u32, pkey: u16, slot: Option<u32>) -> Option<(u32, Box<Qp>)> {
        if qpn <= 1 {
            self.env.counters.special_qp += 1;
            return None;
        }
        if pkey & 0x7fff != DEFAULT_PARTITION {
            self.env.counters.pkey_mismatch += 1;
            return None;
        }
        let slot = slot.or_else(|| self.view.refresh().qp(qpn).map(|leaf| leaf.slot));
        let qp = slot.and_then(|slot| Some((slot, self.qps.get_mut(slot as usize)?.take()?)));
        if qp.is_none() {
            self.env.counters.unknown_qp += 1;
        }
        qp
    }

    fn divert(&mut self, port: u16, frame: Frame) {
        if !self.messages.has_room(RESERVED + 1)
            || self
                .messages
                .push(Sent::Message(Message::Frame { port, frame }))
                .is_err()
        {
            self.env.counters.slow_path_dropped += 1;
            return;
        }
        self.control_called = true;
    }
}

#[inline(always)] // where it is known to be a WRITE, little of it is left
fn receive_whole(env: &mut Env, qp: &mut Qp, whole: &Whole, payload: &[u8]) -> Option<Received> {
    let now = env.now;
    let (rc, mut host, sq, cold) = qp.parts(env);
    let host = &mut host;
    rc.receive_whole(
        &mut Ctx { host, sq, cold, now },
        whole,
        Gathered::new(&[range_of(payload)]),
    )
}

/// The same of a SEND, for which all of the QP is needed.
#[inline(never)]
fn receive_send(env: &mut Env, qp: &mut Qp, whole: &Whole, payload: &[u8]) -> Option<Received> {
    receive_whole(env, qp, whole, payload)
}

/// The same of any other plain packet.
#[inline(never)]
fn receive_plain(
    env: &mut Env,
    ports: &mut [Box<PortPart>],
    qp: &mut Qp,
    packet: &PlainFrame<'_>,
) -> Option<Received> {
    let payload = [range_of(packet.payload())];
    let payload = Gathered::new(&payload);
    let taken = packet.fetch().and_then(|plain| match &plain.extension {
        Extension::Reth(_) | Extension::Atomic(_) if payload.is_empty() => answer(env, ports, qp, &plain),
        _ => {
            let now = env.now;
            let (rc, mut host, sq, cold) = qp.parts(env);
            let host = &mut host;
            rc.receive_fetched(&mut Ctx { host, sq, cold, now }, &plain, payload)
        }
    });
    taken.or_else(|| receive_headers(env, qp, packet, payload))
}

/// The same of one of which nothing but its headers is short.
#[inline(never)]
fn receive_headers(
    env: &mut Env,
    qp: &mut Qp,
    packet: &PlainFrame<'_>,
    payload: Gathered<'_>,
) -> Option<Received> {
    let headers = packet.headers()?;
    Some(qp.with(env, |rc, ctx| rc.receive(ctx, &headers, payload)))
}

/// The destination QPN of a frame if it is untagged RoCE over IPv4 without options or over IPv6, as nearly all are. Good
/// for a prefetch and nothing else: nothing was checked.
#[inline]
fn likely_qpn(frame: &[u8]) -> Option<u32> {
    const BTH_DEST_QPN: usize = 4;
    let udp = match frame.get(12..15)? {
        [0x08, 0x00, 0x45] => 14 + 20,
        [0x86, 0xDD, _] => 14 + 40,
        _ => return None,
    };
    let word = frame.get(udp + 8 + BTH_DEST_QPN..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*word) & 0xFF_FFFF)
}

/// Bytes of a frame, or of its headers.
#[inline]
fn range_of(bytes: &[u8]) -> RemoteRange {
    RemoteRange {
        ptr: NonNull::from(bytes).cast(),
        len: bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::likely_qpn;

    #[test]
    fn a_qpn_is_guessed_from_plain_frames_and_from_no_others() {
        for (kind, network) in [([0x08, 0x00, 0x45], 20), ([0x86, 0xDD, 0x60], 40)] {
            let mut frame = vec![0; 14 + network + 8 + 12];
            frame[12..15].copy_from_slice(&kind);
            let at = 14 + network + 8 + 4;
            frame[at..at + 4].copy_from_slice(&[0xFF, 0x12, 0x34, 0x56]);
            assert_eq!(likely_qpn(&frame), Some(0x12_3456));
            assert_eq!(likely_qpn(&frame[..at + 3]), None, "cut off");
            assert_eq!(likely_qpn(&frame[..13]), None, "cut off");
            frame[12] = 0x81;
            assert_eq!(likely_qpn(&frame), None, "tagged");
        }
    }
}
