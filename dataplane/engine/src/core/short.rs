//! The short way of messages that are one packet, from the client's queue to the port in one step, and of the middle of long
//! WRITEs. It is taken while nothing else waits to be sent; whatever is not plain is left to the long way, which says what is
//! wrong with it.
use std::ptr::NonNull;

use rnic_abi::{Wqe, wqe_flags};
use rnic_transport::{Access, SendFlags, Stretch, WrOpcode};

use super::{
    qp::Qp,
    queue::Segments,
    run::Core,
    service::PACKET_BUDGET,
    stages::Stage,
    transmit::{build_middle, build_whole},
};
use crate::mem::{MrTable, RemoteRange};

impl Core {
    /// Sends the WQEs at the head of the send queue that are whole messages; tells how many.
    #[inline]
    pub(super) fn send_short(&mut self, qp: &mut Qp) -> usize {
        let oldest = qp.oldest();
        let Qp {
            rec,
            sq,
            records,
            template: Some(template),
            path: Some(path),
            ..
        } = qp
        else {
            return 0;
        };
        let room = rec.rc.whole_room(records.len() as u32);
        if room == 0 || path.direct || rec.bad.set {
            return 0;
        }
        let room = (room.min(sq.posted(&rec.sq, oldest)) as usize).min(PACKET_BUDGET);
        let (part, env) = (&mut self.ports[usize::from(path.port)], &mut self.env);
        let (mtu, ip_start) = (rec.rc.path_mtu(), template.ip_start());
        let always = if rec.id.sig_all {
            SendFlags::SIGNALED
        } else {
            SendFlags::NONE
        };
        for count in 0..room {
            if !part.ready(env) {
                return count;
            }
            let data = rec.sq.next;
            sq.peek(&rec.sq);
            let wqe = sq.head(data);
            let Some((opcode, payload)) = whole_message(wqe, &env.mrs, rec.id.pd, mtu) else {
                return count;
            };
            sq.take_one(&mut rec.sq);
            let whole = rec.rc.send_whole(records, env.now, |wr| {
                wr.wr_id = wqe.wr_id;
                wr.remote_addr = wqe.remote_addr;
                wr.rkey = wqe.rkey;
                (wr.compare_add, wr.swap) = (0, 0);
                wr.imm_or_rkey = wqe.imm_or_rkey;
                wr.length = payload.len as u32;
                wr.data = data;
                wr.opcode = opcode;
                wr.flags = SendFlags::from_bits(u32::from(wqe.flags & wqe_flags::ALL))
                    .unwrap_or_default()
                    .union(always);
                wr.reserved = 0;
            });
            rec.ident = rec.ident.wrapping_add(1);
            let ident = rec.ident;
            let before = env.stages.enter(Stage::Copy);
            let queued = part.queue_with(ip_start, |frame| {
                build_whole(frame, template, &whole, ident, payload, &env.crc)
            });
            env.stages.enter(before);
            env.counters.tx_roce += u64::from(queued);
            env.counters.gather_errors += u64::from(!queued);
        }
        room
    }
}

impl Core {
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
        let (Some(template), Some(path), [whole]) = (&qp.template, &qp.path, payload.as_slice()) else {
            return 0;
        };
        let (part, env) = (&mut self.ports[usize::from(path.port)], &mut self.env);
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
            if !part.queue_with(ip_start, |frame| {
                build_middle(frame, template, &bth, ident, range, &env.crc)
            }) {
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

/// Operation and payload of a WQE that is one unit, one entry or inline data, and nothing out of the ordinary.
#[inline]
fn whole_message(wqe: &Wqe, mrs: &MrTable, pd: u32, mtu: usize) -> Option<(WrOpcode, RemoteRange)> {
    const PLAIN: u8 = wqe_flags::SIGNALED | wqe_flags::SOLICITED | wqe_flags::INLINE;
    let opcode = match wqe.opcode {
        0 => WrOpcode::Write,
        2 => WrOpcode::Send,
        _ => return None,
    };
    if wqe.units != 1 || wqe.flags & !PLAIN != 0 {
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
