//! The short way of requests of one packet, from the client's queue to the port in one step, of responses of one packet, and of
//! the middle of long WRITEs. It is taken while nothing else waits to be sent; whatever is not plain is left to the long way, which says what is
//! wrong with it.
use std::ptr::NonNull;

use rnic_abi::{Wqe, wqe_flags};
use rnic_transport::{Access, Ctx, Received, SendFlags, SendWr, Source, Stretch, Time, WrOpcode};
use rnic_wire::{Extension, Plain};

use super::{
    host::Env,
    port::PortPart,
    qp::Qp,
    queue::{Accepted, Segments, SendQueue, hold_entry},
    records::{QpBeside, QpRecord},
    run::Core,
    service::{PACKET_BUDGET, fill},
    stages::Stage,
    transmit::{build_middle, build_plain, build_whole},
};
use crate::mem::{By, MrTable, RemoteRange};

impl Core {
    /// Sends the WQEs at the head of the send queue that are requests of one packet; tells how many, and whether the next one is
    /// to be left where it is: for lack of room at the port, or of responses to earlier READs and atomics.
    #[inline]
    pub(super) fn send_short(&mut self, qp: &mut Qp) -> (usize, bool) {
        let oldest = qp.oldest();
        let Qp {
            rec,
            sq,
            records,
            template: Some(template),
            route: Some(route),
            ..
        } = qp
        else {
            return (0, false);
        };
        let room = rec.rc.whole_room(records.len() as u32);
        if room == 0 || route.direct || rec.bad.set {
            return (0, false);
        }
        let room = (room.min(sq.posted(&rec.sq, oldest)) as usize).min(PACKET_BUDGET);
        let (part, env) = (&mut self.ports[usize::from(route.port)], &mut self.env);
        let (mtu, ip_start) = (rec.rc.path_mtu(), template.ip_start());
        let always = rec.id.always();
        for count in 0..room {
            if !part.ready(env) {
                self.stuck += 1;
                return (count, true);
            }
            let Some(wqe) = &sq.peek(&rec.sq) else {
                return (count, false);
            };
            let ident = rec.ident.wrapping_add(1);
            let queued = if let Some((opcode, payload)) = whole_message(wqe, &env.mrs, rec.id.pd, mtu) {
                let accepted = Accepted {
                    data: rec.sq.next,
                    length: payload.len as u32,
                    remote_srqn: None,
                };
                let inline = wqe.flags & wqe_flags::INLINE != 0;
                if inline {
                    sq.copy_one(&rec.sq, wqe);
                }
                sq.take_one(&mut rec.sq);
                let whole = rec.rc.send_whole(records, env.now, |wr| {
                    fill(wr, wqe, &accepted, opcode, always);
                    if !inline {
                        hold_entry(wr, &wqe.sges[0]);
                    }
                });
                let before = env.stages.enter(Stage::Copy);
                let queued = part.queue_with(ip_start, |frame| {
                    build_whole(frame, template, &whole, ident, payload, &env.crc)
                });
                env.stages.enter(before);
                queued
            } else if let Some((opcode, len)) = fetch(wqe, mtu) {
                if !rec.rc.may_fetch() {
                    return (count, rec.rc.fetches());
                }
                let wr = Fetch { opcode, len, always };
                let plain = post_fetch(rec, sq, records, wqe, &wr, env.now);
                part.queue_with(ip_start, |frame| {
                    build_plain(frame, template, &plain, ident, &[], &env.crc)
                })
            } else {
                return (count, false);
            };
            rec.ident = ident;
            env.counters.tx_roce += u64::from(queued);
            env.counters.gather_errors += u64::from(!queued);
        }
        (room, false)
    }

    /// Sends what the responder of `qp` has to say, as far as each of it is one packet that nothing has to be asked about;
    /// tells how much.
    #[inline]
    pub(super) fn send_responses(&mut self, qp: &mut Qp) -> usize {
        let Qp {
            rec,
            template: Some(template),
            route: Some(route),
            ..
        } = qp
        else {
            return 0;
        };
        let (part, env) = (&mut self.ports[usize::from(route.port)], &mut self.env);
        let (rec, QpBeside { cold, .. }) = rec.both();
        let by = By {
            pd: rec.id.pd,
            qpn: rec.id.qpn,
        };
        for count in 0..PACKET_BUDGET {
            if !part.ready(env) {
                return count;
            }
            let Some((plain, source)) = rec.rc.response_ahead(cold) else {
                return count;
            };
            let mut payload = None;
            if let Source::Remote { rkey, addr, len, .. } = source {
                let range = env
                    .mrs
                    .resolve_remote(rkey, by, addr, len.into(), Access::REMOTE_READ);
                let Ok(range) = range else {
                    return count;
                };
                payload = Some(range);
            }
            rec.ident = rec.ident.wrapping_add(1);
            let ident = rec.ident;
            let before = env.stages.enter(Stage::Copy);
            let queued = part.queue_with(template.ip_start(), |frame| {
                build_plain(frame, template, &plain, ident, payload.as_slice(), &env.crc)
            });
            env.stages.enter(before);
            if !queued {
                return count;
            }
            rec.rc.response_sent(cold);
            env.counters.tx_roce += 1;
        }
        PACKET_BUDGET
    }

    /// Sends what comes next of a long WRITE of `qp`, at most `budget` bytes of it; how many were sent. None where anything is
    /// out of the ordinary: packets then go one by one.
    #[inline]
    pub(super) fn send_stretch(&mut self, qp: &mut Qp, budget: usize) -> usize {
        let bytes = budget.min(PACKET_BUDGET * qp.rec.rc.path_mtu()) as u32;
        let ahead = qp.with(&mut self.env, |rc, ctx| rc.stretch_ahead(ctx, bytes));
        ahead.map_or(0, |stretch| self.queue_stretch(qp, &stretch))
    }

    fn queue_stretch(&mut self, qp: &mut Qp, stretch: &Stretch) -> usize {
        let mut payload = Segments::new();
        if qp.gather(&self.env, &stretch.source, &mut payload).is_err() {
            return 0;
        }
        let (Some(template), Some(route), [whole]) = (&qp.template, &qp.route, payload.as_slice()) else {
            return 0;
        };
        let (part, env) = (&mut self.ports[usize::from(route.port)], &mut self.env);
        let (ip_start, mtu) = (template.ip_start(), stretch.mtu.bytes());
        let mut packets = 0;
        while packets < stretch.packets && part.ready(env) {
            let bth = qp.rec.rc.stretch_bth(stretch, packets);
            let range = RemoteRange {
                // SAFETY: the range has the payload of all packets of the stretch, of one path MTU each.
                ptr: unsafe { whole.ptr.add(packets as usize * mtu) },
                len: mtu,
            };
            qp.rec.ident = qp.rec.ident.wrapping_add(1);
            let ident = qp.rec.ident;
            let before = env.stages.enter(Stage::Copy);
            let queued = part.queue_with(ip_start, |frame| {
                build_middle(frame, template, &bth, ident, range, &env.crc)
            });
            env.stages.enter(before);
            if !queued {
                break;
            }
            packets += 1;
        }
        self.env.counters.tx_roce += u64::from(packets);
        let len = packets * mtu as u32;
        let sent = Stretch {
            packets,
            len,
            ..*stretch
        };
        if packets > 0 {
            qp.with(&mut self.env, |rc, ctx| rc.stretch_sent(ctx, &sent));
        }
        len as usize
    }
}

/// Answers a READ or atomic at once, if nothing has to be said before and there is room at the port; else `None`, and nothing
/// has happened.
#[inline]
pub(super) fn answer(
    env: &mut Env,
    ports: &mut [Box<PortPart>],
    qp: &mut Qp,
    plain: &Plain,
) -> Option<Received> {
    let port = qp.route.filter(|route| !route.direct)?.port;
    let part = &mut ports[usize::from(port)];
    if qp.template.is_none() || !part.ready(env) {
        return None;
    }
    let Plain { psn, operation, .. } = *plain;
    let mut payload = None;
    let response = match &plain.extension {
        Extension::Reth(reth) => {
            let response = qp.rec.rc.answer_read(psn, reth)?;
            let by = By {
                pd: qp.rec.id.pd,
                qpn: qp.rec.id.qpn,
            };
            if reth.dma_len > 0 {
                let (len, right) = (reth.dma_len.into(), Access::REMOTE_READ);
                payload = Some(env.mrs.resolve_remote(reth.rkey, by, reth.va, len, right).ok()?);
            }
            qp.rec.rc.fetch_answered();
            response
        }
        Extension::Atomic(eth) => {
            let now = env.now;
            let (rc, mut host, sq, cold) = qp.parts(env);
            let host = &mut host;
            rc.answer_atomic(&mut Ctx { host, sq, cold, now }, operation, psn, eth)?
        }
        _ => return None,
    };
    let Qp {
        rec,
        template: Some(template),
        ..
    } = qp
    else {
        return None;
    };
    rec.ident = rec.ident.wrapping_add(1);
    let ident = rec.ident;
    let before = env.stages.enter(Stage::Copy);
    let queued = part.queue_with(template.ip_start(), |frame| {
        build_plain(frame, template, &response, ident, payload.as_slice(), &env.crc)
    });
    env.stages.enter(before);
    env.counters.tx_roce += u64::from(queued);
    // Not to happen, of frames that are as long as the port's MTU: to its peer it is lost like any other.
    env.counters.gather_errors += u64::from(!queued);
    Some(Received::Accepted)
}

/// Operation and payload of a WQE that is a SEND or WRITE of one unit, one entry or inline data, and nothing out of the
/// ordinary.
#[inline]
fn whole_message(wqe: &Wqe, mrs: &MrTable, pd: u32, mtu: usize) -> Option<(WrOpcode, RemoteRange)> {
    let opcode = match wqe.opcode {
        0 => WrOpcode::Write,
        2 => WrOpcode::Send,
        _ => return None,
    };
    if wqe.units != 1 || wqe.flags & !(PLAIN | wqe_flags::INLINE) != 0 {
        return None;
    }
    if wqe.flags & wqe_flags::INLINE != 0 {
        let len = wqe.inline_len as usize;
        let fits = wqe.num_sge == 0 && len <= size_of_val(&wqe.sges) && len <= mtu;
        let ptr = NonNull::from(&wqe.sges).cast();
        return fits.then_some((opcode, RemoteRange { ptr, len }));
    }
    let [sge, _] = &wqe.sges;
    let len = sge.length as usize;
    if wqe.num_sge != 1 || wqe.inline_len != 0 || len == 0 || len > mtu {
        return None;
    }
    let range = mrs.resolve(sge.lkey, pd, sge.addr, len as u64, Access::NONE);
    Some((opcode, range.ok()?))
}

/// Flags that change nothing of how a request is sent.
const PLAIN: u8 = wqe_flags::SIGNALED | wqe_flags::SOLICITED;

/// A READ or atomic of one packet.
struct Fetch {
    opcode: WrOpcode,
    len: u32,
    always: SendFlags,
}

/// Operation and length of a WQE that is a READ or atomic of one unit and one entry, and nothing out of the ordinary.
#[inline]
fn fetch(wqe: &Wqe, mtu: usize) -> Option<(WrOpcode, u32)> {
    let opcode = match wqe.opcode {
        4 => WrOpcode::Read,
        5 => WrOpcode::CompSwap,
        6 => WrOpcode::FetchAdd,
        _ => return None,
    };
    let len = wqe.sges[0].length;
    let fits = match opcode {
        WrOpcode::Read => len > 0 && len as usize <= mtu,
        _ => len as usize == size_of::<u64>(),
    };
    let plain = wqe.units == 1 && wqe.flags & !PLAIN == 0 && wqe.num_sge == 1 && wqe.inline_len == 0;
    (fits && plain).then_some((opcode, len))
}

/// Takes the READ or atomic at the head of the send queue.
#[inline(never)] // what SENDs and WRITEs have no use for
fn post_fetch(
    rec: &mut QpRecord,
    sq: &mut SendQueue,
    records: &mut [SendWr],
    wqe: &Wqe,
    fetch: &Fetch,
    now: Time,
) -> Plain {
    let accepted = Accepted {
        data: rec.sq.next,
        length: fetch.len,
        remote_srqn: None,
    };
    let reads = fetch.opcode == WrOpcode::Read;
    if !reads {
        sq.copy_one(&rec.sq, wqe);
    }
    sq.take_one(&mut rec.sq);
    rec.rc.send_fetch(records, now, |wr| {
        fill(wr, wqe, &accepted, fetch.opcode, fetch.always);
        if reads {
            hold_entry(wr, &wqe.sges[0]);
        }
    })
}
