//! The poll cores: takes work requests, moves bytes, completes.
use std::sync::atomic::Ordering;

use rnic_abi::*;
use zerocopy::{FromZeros, IntoBytes};

use super::{Client, Mr, Object, Qp, Ring, State, drain, wake};

const RTR: u8 = 2;
const RTS: u8 = 3;
const ERROR: u8 = 6;

/// One pass over every QP; whether something was done. The mock looks at every queue in every pass, as a core
/// does with its active ones; [`may_sleep`] is where the protocols come in.
pub fn run(state: &mut State) -> bool {
    let mut busy = false;
    for client in 0..state.clients.len() {
        let Client { objects, region, .. } = &mut state.clients[client];
        for object in objects.values_mut() {
            let Object::Qp(qp) = object else { continue };
            for ring in [&mut qp.sq, &mut qp.rq] {
                ring.seen = region
                    .u32(ring.offset + RingIndices::TAIL)
                    .load(Ordering::Acquire);
            }
        }
        let qps: Vec<u32> = handles(&state.clients[client]);
        for handle in qps {
            busy |= serve(state, client, handle);
        }
    }
    busy
}

fn handles(client: &Client) -> Vec<u32> {
    let qps = client
        .objects
        .iter()
        .filter(|(_, object)| matches!(object, Object::Qp(_)));
    qps.map(|(handle, _)| *handle).collect()
}

/// Drops every queue and announces sleep; false when there turned out to be work.
pub fn may_sleep(state: &mut State) -> bool {
    let State { clients, wakes, .. } = state;
    let mut quiet = true;
    for client in clients.iter_mut() {
        for socket in &client.core_wakes {
            *wakes += u32::from(drain(socket));
        }
        for object in client.objects.values() {
            let Object::Qp(qp) = object else { continue };
            for ring in [&qp.sq, &qp.rq] {
                let word = |offset| client.region.u32(ring.offset + offset);
                // Against what the last pass saw: a ring that cannot go on for now (no receive at the peer) is
                // looked at again after the next post.
                quiet &=
                    protocol::drop_queue(word(RingIndices::TAIL), ring.seen, word(RingIndices::NEED_KICK));
            }
        }
        let bell = client.layout.doorbell;
        for core in 0..client.layout.cores as usize {
            let block = client.layout.doorbells + core * bell.size();
            let sleeping = client.region.u32(block + DoorbellLayout::SLEEPING);
            protocol::announce_sleep(sleeping);
            for i in 0..bell.level1_words as usize {
                quiet &=
                    protocol::take_doorbells(client.region.u64(block + DoorbellLayout::LEVEL1 + 8 * i)) == 0;
            }
            for i in 0..bell.level0_words as usize {
                quiet &= protocol::take_doorbells(client.region.u64(block + bell.level0() + 8 * i)) == 0;
            }
        }
    }
    quiet
}

/// Looks at every queue by itself again.
pub fn awake(state: &mut State) {
    for client in &state.clients {
        for object in client.objects.values() {
            let Object::Qp(qp) = object else { continue };
            for ring in [&qp.sq, &qp.rq] {
                protocol::keep_queue(client.region.u32(ring.offset + RingIndices::NEED_KICK));
            }
        }
        for core in 0..client.layout.cores as usize {
            let block = client.layout.doorbells + core * client.layout.doorbell.size();
            client
                .region
                .u32(block + DoorbellLayout::SLEEPING)
                .store(0, Ordering::Relaxed);
        }
    }
}

/// Serves one QP as long as it has something to do.
fn serve(state: &mut State, client: usize, handle: u32) -> bool {
    let mut busy = false;
    loop {
        let this = &state.clients[client];
        let Some(Object::Qp(qp)) = this.objects.get(&handle) else {
            return busy;
        };
        match qp.attrs.qp_state {
            RTS => {}
            ERROR => return flush(&mut state.clients[client], handle) || busy,
            _ => return busy,
        }
        let Some((wqe, bytes)) = peek(this, &qp.sq) else {
            return busy;
        };
        let Some(outcome) = execute(state, client, handle, &wqe, &bytes) else {
            return busy;
        };
        busy = true;
        advance(&mut state.clients[client], handle, &wqe, false);
        let this = &mut state.clients[client];
        let Some(Object::Qp(qp)) = this.objects.get_mut(&handle) else {
            return busy;
        };
        let failed = outcome.status != 0;
        if failed {
            qp.attrs.qp_state = ERROR;
            qp.cause = outcome.cause;
        }
        if failed || qp.sig_all || wqe.flags & wqe_flags::SIGNALED != 0 {
            let cqe = Cqe {
                wr_id: wqe.wr_id,
                ..outcome
            };
            complete(this, handle, false, cqe);
        }
        if failed {
            let qpn = qpn(this, handle);
            this.report(handle, qpn, event_kind::QP_FATAL, outcome.cause);
        }
    }
}

fn qpn(client: &Client, handle: u32) -> u32 {
    match client.objects.get(&handle) {
        Some(Object::Qp(qp)) => qp.qpn,
        _ => 0,
    }
}

/// The next entry of a ring, if there is one: its head and all its bytes.
fn peek(client: &Client, ring: &Ring) -> Option<(Wqe, Vec<u8>)> {
    let tail = client.region.u32(ring.offset).load(Ordering::Acquire);
    if tail == ring.head {
        return None;
    }
    let mut bytes = Vec::new();
    let mut units = 1;
    let mut i = 0;
    while i < units {
        let mut unit = [0; WQE_UNIT];
        let at = (ring.head.wrapping_add(i) & (ring.depth - 1)) as usize;
        client
            .region
            .read(ring.offset + RING_ENTRIES + at * WQE_UNIT, &mut unit);
        bytes.extend(unit);
        units = bytes[11].into();
        i += 1;
    }
    let mut wqe = Wqe::new_zeroed();
    wqe.as_mut_bytes().copy_from_slice(&bytes[..WQE_UNIT]);
    assert!(tail.wrapping_sub(ring.head) <= ring.depth && (1..=Wqe::MAX_UNITS).contains(&units));
    Some((wqe, bytes))
}

fn advance(client: &mut Client, handle: u32, wqe: &Wqe, recv: bool) {
    let Some(Object::Qp(qp)) = client.objects.get_mut(&handle) else {
        return;
    };
    let ring = if recv { &mut qp.rq } else { &mut qp.sq };
    ring.head = ring.head.wrapping_add(wqe.units.into());
    client
        .region
        .u32(ring.offset + RingIndices::HEAD)
        .store(ring.head, Ordering::Release);
}

fn sges(wqe: &Wqe, bytes: &[u8]) -> Vec<Sge> {
    let mut sges = vec![Sge::default(); wqe.num_sge.into()];
    let len = sges.as_bytes().len();
    sges.as_mut_bytes()
        .copy_from_slice(&bytes[WQE_UNIT - 32..][..len]);
    sges
}

/// The region a key names, with the offset of `addr`, if the range and the access are right.
fn find(client: &Client, key: u32, addr: u64, len: u64, access: u32) -> Option<(&Mr, usize)> {
    let Some(Object::Mr(mr)) = client.objects.get(&key) else {
        return None;
    };
    let offset = addr.checked_sub(mr.iova)?;
    let inside = offset.checked_add(len)? <= mr.length;
    (inside && mr.access & access == access).then_some((mr, offset as usize))
}

fn gather(client: &Client, wqe: &Wqe, bytes: &[u8]) -> Option<Vec<u8>> {
    if wqe.flags & wqe_flags::INLINE != 0 {
        return Some(bytes[WQE_UNIT - 32..][..wqe.inline_len as usize].to_vec());
    }
    let mut payload = Vec::new();
    for sge in sges(wqe, bytes) {
        let (mr, offset) = find(client, sge.lkey, sge.addr, sge.length.into(), 0)?;
        let start = payload.len();
        payload.resize(start + sge.length as usize, 0);
        mr.memory.read(offset, &mut payload[start..]);
    }
    Some(payload)
}

fn scatter(client: &Client, sges: &[Sge], mut payload: &[u8]) -> bool {
    for sge in sges {
        let (now, later) = payload.split_at(payload.len().min(sge.length as usize));
        let Some((mr, offset)) = find(client, sge.lkey, sge.addr, sge.length.into(), 1) else {
            return false;
        };
        mr.memory.write(offset, now);
        payload = later;
    }
    payload.is_empty()
}

/// Does a work request; `None` when it has to wait. The completion without its `wr_id`.
fn execute(state: &mut State, client: usize, handle: u32, wqe: &Wqe, bytes: &[u8]) -> Option<Cqe> {
    let this = &state.clients[client];
    let Some(Object::Qp(qp)) = this.objects.get(&handle) else {
        return None;
    };
    let (from, dest) = (qp.qpn, qp.attrs.dest_qp_num);
    let fail = |status, check, syndrome| {
        let cause = Cause {
            check,
            opcode: 0x0a,
            syndrome,
            reserved: 0,
            psn: 5,
        };
        Some(Cqe {
            status,
            cause,
            ..Cqe::default()
        })
    };
    let (target, peer) = state.clients.iter_mut().enumerate().find_map(|(i, client)| {
        let (handle, qp) = client.qp(dest)?;
        (qp.attrs.qp_state >= RTR && qp.attrs.dest_qp_num == from).then_some((i, handle))
    })?;
    let mut payload = match wqe.opcode {
        4..=6 => Vec::new(),
        _ => match gather(&state.clients[client], wqe, bytes) {
            Some(payload) => payload,
            None => return fail(4, 1, 0),
        },
    };
    damage(state.corrupt, &mut payload);
    let byte_len = match wqe.opcode {
        2 | 3 | 9 => return deliver(state, target, peer, wqe, &payload, from),
        0 | 1 => {
            let Some((mr, offset)) = find(
                &state.clients[target],
                wqe.rkey,
                wqe.remote_addr,
                payload.len() as u64,
                1 << 1,
            ) else {
                access_error(&mut state.clients[target], peer);
                return fail(10, 2, 0x62);
            };
            mr.memory.write(offset, &payload);
            if wqe.opcode == 1 {
                return deliver(state, target, peer, wqe, &payload, from);
            }
            0
        }
        5 | 6 => {
            let local = sges(wqe, bytes);
            let this = &state.clients[target];
            let Some((mr, offset)) = find(this, wqe.rkey, wqe.remote_addr, 8, 1 << 3) else {
                access_error(&mut state.clients[target], peer);
                return fail(10, 2, 0x62);
            };
            let mut found = [0; 8];
            mr.memory.read(offset, &mut found);
            let (original, operands) = (u64::from_ne_bytes(found), wqe.atomic_operands());
            let now = match wqe.opcode {
                6 => original.wrapping_add(operands.compare_add),
                _ if original == operands.compare_add => operands.swap,
                _ => original,
            };
            mr.memory.write(offset, &now.to_ne_bytes());
            damage(state.corrupt, &mut found);
            if !scatter(&state.clients[client], &local, &found) {
                return fail(4, 1, 0);
            }
            8
        }
        4 => {
            let local = sges(wqe, bytes);
            let len: u64 = local.iter().map(|sge| u64::from(sge.length)).sum();
            let Some((mr, offset)) = find(&state.clients[target], wqe.rkey, wqe.remote_addr, len, 1 << 2)
            else {
                access_error(&mut state.clients[target], peer);
                return fail(10, 2, 0x62);
            };
            let mut payload = vec![0; len as usize];
            mr.memory.read(offset, &mut payload);
            damage(state.corrupt, &mut payload);
            if !scatter(&state.clients[client], &local, &payload) {
                return fail(4, 1, 0);
            }
            len as u32
        }
        _ => return fail(2, 3, 0),
    };
    let opcode = [1, 1, 0, 0, 2, 3, 4][usize::from(wqe.opcode)];
    Some(Cqe {
        opcode,
        byte_len,
        ..Cqe::default()
    })
}

fn damage(really: bool, payload: &mut [u8]) {
    if let Some(first) = payload.first_mut().filter(|_| really) {
        *first ^= 0x80;
    }
}

fn access_error(client: &mut Client, handle: u32) {
    let cause = Cause {
        check: 2,
        opcode: 0x0a,
        syndrome: 0x62,
        reserved: 0,
        psn: 5,
    };
    let qpn = qpn(client, handle);
    client.report(handle, qpn, event_kind::QP_ACCESS_ERR, cause);
}

/// Takes a receive of the peer for a SEND or an immediate; `None` when there is none yet.
fn deliver(
    state: &mut State,
    client: usize,
    handle: u32,
    wqe: &Wqe,
    payload: &[u8],
    from: u32,
) -> Option<Cqe> {
    let this = &state.clients[client];
    let Some(Object::Qp(qp)) = this.objects.get(&handle) else {
        return None;
    };
    let (recv, bytes) = peek(this, &qp.rq)?;
    let is_send = wqe.opcode != 1;
    if is_send && !scatter(this, &sges(&recv, &bytes), payload) {
        return Some(Cqe {
            status: 9,
            ..Cqe::default()
        });
    }
    let flags = [
        (wqe.opcode == 1 || wqe.opcode == 3, cqe_flags::WITH_IMM),
        (wqe.opcode == 9, cqe_flags::WITH_INV),
    ]
    .into_iter()
    .filter_map(|(set, flag)| set.then_some(flag))
    .fold(cqe_flags::RECV, |all, flag| all | flag);
    let solicited = wqe.flags & wqe_flags::SOLICITED != 0;
    let cqe = Cqe {
        wr_id: recv.wr_id,
        byte_len: payload.len() as u32,
        imm_or_rkey: wqe.imm_or_rkey,
        src_qpn: from,
        opcode: if is_send { 128 } else { 129 },
        flags: flags | if solicited { cqe_flags::SOLICITED } else { 0 },
        ..Cqe::default()
    };
    let this = &mut state.clients[client];
    advance(this, handle, &recv, true);
    complete(this, handle, true, cqe);
    Some(Cqe {
        opcode: if is_send { 0 } else { 1 },
        ..Cqe::default()
    })
}

/// Flushes both queues of a failed QP.
fn flush(client: &mut Client, handle: u32) -> bool {
    let mut busy = false;
    for recv in [false, true] {
        loop {
            let Some(Object::Qp(qp)) = client.objects.get(&handle) else {
                return busy;
            };
            let Some((wqe, _)) = peek(client, if recv { &qp.rq } else { &qp.sq }) else {
                break;
            };
            advance(client, handle, &wqe, recv);
            let flags = if recv { cqe_flags::RECV } else { 0 };
            complete(
                client,
                handle,
                recv,
                Cqe {
                    wr_id: wqe.wr_id,
                    status: 5,
                    flags,
                    ..Cqe::default()
                },
            );
            busy = true;
        }
    }
    busy
}

/// Pushes a completion of a QP and wakes who armed its CQ.
fn complete(client: &mut Client, handle: u32, recv: bool, cqe: Cqe) {
    let Some(Object::Qp(qp)) = client.objects.get(&handle) else {
        return;
    };
    let Qp {
        send_cq,
        recv_cq,
        qpn,
        ..
    } = **qp;
    let cqe = Cqe { handle, qpn, ..cqe };
    client.push(if recv { recv_cq } else { send_cq }, Handle(handle).slot(), cqe);
}

impl Client {
    /// Pushes any completion into the sub-ring of the core that serves `slot`.
    pub fn push(&mut self, cq: u32, slot: u32, cqe: Cqe) {
        let Some(Object::Cq(cq)) = self.objects.get_mut(&cq) else {
            panic!("no such CQ")
        };
        let core = slot % cq.tails.len() as u32;
        let ring = cq.offset + cq_subring_offset(cq.depth, core);
        let tail = &mut cq.tails[core as usize];
        let head = self.region.u32(ring + RingIndices::HEAD).load(Ordering::Acquire);
        assert!(tail.wrapping_sub(head) < cq.depth, "CQ overflow");
        let entry = (*tail & (cq.depth - 1)) as usize * size_of::<Cqe>();
        self.region.write(ring + RING_ENTRIES + entry, cqe.as_bytes());
        *tail = tail.wrapping_add(1);
        self.region
            .u32(ring + RingIndices::TAIL)
            .store(*tail, Ordering::Release);
        let solicited = cqe.status != 0 || cqe.flags & cqe_flags::SOLICITED != 0;
        if protocol::take_arm(self.region.u32(cq.offset), solicited) {
            let channel = cq.channel;
            if let Some(Object::Channel(socket)) = self.objects.get(&channel) {
                wake(socket);
            }
        }
    }
}
