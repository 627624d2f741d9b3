//! From a packet the transport wants sent to a frame in a port's burst.
use std::ptr::NonNull;

use rnic_simd::Crc;
use rnic_transport::{Access, Emit, KeyError, QpType, Source};
use rnic_wire::{
    Bth, FrameTemplate, ICRC_LEN, Icrc, MAX_FRAME_HEADER_LEN, Plain, SELECTIVE_ACK_LEN, Whole, pad_len,
};

use super::{host::Env, qp::Qp, queue::Segments, run::Core, stages::Stage};
use crate::{
    frame::Frame,
    mem::{By, RemoteRange, copy_bytes},
};

impl Qp {
    /// IPv4 identification of its next frame.
    #[inline]
    pub(super) fn next_ident(&mut self) -> u16 {
        self.rec.ident = self.rec.ident.wrapping_add(1);
        self.rec.ident
    }

    #[inline]
    pub(super) fn gather(&self, env: &Env, source: &Source, segments: &mut Segments) -> Result<(), KeyError> {
        match *source {
            Source::None | Source::Missing | Source::Send { len: 0, .. } | Source::Remote { len: 0, .. } => {}
            Source::Send {
                wr_index,
                offset,
                len,
                ..
            } => {
                let from = (self.rec.id.pd, Access::NONE);
                let wr = self.records.get(wr_index as usize).ok_or(KeyError::Range)?;
                self.sq.segments(&env.mrs, from, wr, offset, len, segments)?;
            }
            Source::Remote {
                rkey,
                addr,
                len,
                srqn,
            } => {
                let pd = match self.rec.rc.qp_type() {
                    // With its XRC SRQ a request loses its protection domain.
                    QpType::XrcTgt => env.xrc_srq(srqn).ok_or(KeyError::PdMismatch)?.pd,
                    _ => self.rec.id.pd,
                };
                let by = By {
                    pd,
                    qpn: self.rec.id.qpn,
                };
                let (len, right) = (u64::from(len), Access::REMOTE_READ);
                segments.push(env.mrs.resolve_remote(rkey, by, addr, len, right)?);
            }
        }
        Ok(())
    }
}

impl Core {
    /// Resolves the payload of a packet; an error is the QP's, and `false`.
    #[inline]
    pub(super) fn gather(&mut self, qp: &mut Qp, emit: &Emit, payload: &mut Segments) -> bool {
        payload.clear();
        if emit.source == Source::Missing {
            self.gather_missing(qp, payload);
            return true;
        }
        match qp.gather(&self.env, &emit.source, payload) {
            Ok(()) => true,
            Err(error) => {
                self.env.counters.gather_errors += 1;
                qp.with(&mut self.env, |rc, ctx| rc.gather_failed(ctx, emit, error));
                false
            }
        }
    }

    /// The payload of a selective acknowledgement, which is the QP's own: it lies here until the next one.
    #[cold]
    fn gather_missing(&mut self, qp: &Qp, payload: &mut Segments) {
        *self.missing = qp.rec.rc.selective_ack(&qp.rec.beside().cold);
        payload.push(RemoteRange {
            ptr: NonNull::from(&mut *self.missing).cast(),
            len: SELECTIVE_ACK_LEN,
        });
    }

    /// Builds the frame for `emit` from a spare buffer of `port`. `None` (and a count) when it cannot be built.
    #[inline]
    pub(super) fn build(
        &mut self,
        port: usize,
        template: &FrameTemplate,
        ident: u16,
        emit: &Emit,
        payload: &Segments,
    ) -> Option<Frame> {
        let (state, crc) = (&mut self.ports[port], &self.env.crc);
        let mut frame = state.spare.pop()?;
        match build_frame(&mut frame, template, emit, ident, payload, crc) {
            Some(true) => {}
            Some(false) => Icrc::seal(crc, frame.bytes_mut(), template.ip_start()),
            None => {
                state.spare.push(frame);
                self.env.counters.gather_errors += 1;
                return None;
            }
        }
        Some(frame)
    }

    /// Builds the frame for `emit` and queues it at `port`, which is [`ready`](super::port::PortPart::ready). `false` (and a
    /// count) when it cannot be built.
    #[inline]
    pub(super) fn queue(
        &mut self,
        port: usize,
        template: &FrameTemplate,
        ident: u16,
        emit: &Emit,
        payload: &Segments,
    ) -> bool {
        let before = self.env.stages.enter(Stage::Copy);
        let (part, crc) = (&mut self.ports[port], &self.env.crc);
        let ip_start = template.ip_start();
        let queued = part.queue_with(ip_start, |frame| {
            build_frame(frame, template, emit, ident, payload, crc)
        });
        self.env.stages.enter(before);
        self.env.counters.gather_errors += u64::from(!queued);
        queued
    }
}

/// Payload bytes up to which headers and payload are summed together, after the copy: one call of the kernel instead of one
/// for each part, at a time when all stores are done.
const SHORT: usize = 256;

/// Headers, payload (a long one copied and summed in one pass), pad, and the ICRC of a long one: whether it is there.
#[inline]
fn build_frame(
    frame: &mut Frame,
    template: &FrameTemplate,
    emit: &Emit,
    ident: u16,
    payload: &[RemoteRange],
    crc: &Crc,
) -> Option<bool> {
    let len: usize = payload.iter().map(|r| r.len).sum();
    let pad = usize::from(pad_len(len));
    let buffer = frame.buffer_mut();
    if buffer.len() < MAX_FRAME_HEADER_LEN + len + pad + ICRC_LEN {
        return None;
    }
    let header_len = template.emit_headers(&emit.headers, ident, len, buffer).ok()?;
    Some(fill_payload(frame, template, header_len, payload, crc))
}

/// The same of a message that is one packet.
#[inline]
pub(super) fn build_whole(
    frame: &mut Frame,
    template: &FrameTemplate,
    whole: &Whole,
    ident: u16,
    payload: RemoteRange,
    crc: &Crc,
) -> Option<bool> {
    let pad = usize::from(pad_len(payload.len));
    let buffer = frame.buffer_mut();
    if buffer.len() < MAX_FRAME_HEADER_LEN + payload.len + pad + ICRC_LEN {
        return None;
    }
    let header_len = template.emit_whole(whole, ident, payload.len, buffer)?;
    Some(fill_payload(frame, template, header_len, &[payload], crc))
}

/// The same of a plain packet, whose payload is one part or none.
#[inline(never)] // as many ways as there are extensions
pub(super) fn build_plain(
    frame: &mut Frame,
    template: &FrameTemplate,
    plain: &Plain,
    ident: u16,
    payload: &[RemoteRange],
    crc: &Crc,
) -> Option<bool> {
    let len = payload.first().map_or(0, |range| range.len);
    let buffer = frame.buffer_mut();
    if buffer.len() < MAX_FRAME_HEADER_LEN + len + usize::from(pad_len(len)) + ICRC_LEN {
        return None;
    }
    let header_len = template.emit_plain(plain, ident, len, buffer)?;
    Some(fill_payload(frame, template, header_len, payload, crc))
}

/// The same of a packet in the middle of a message.
#[inline(never)] // long ones, of which each costs more than a call
pub(super) fn build_middle(
    frame: &mut Frame,
    template: &FrameTemplate,
    bth: &Bth,
    ident: u16,
    payload: RemoteRange,
    crc: &Crc,
) -> Option<bool> {
    let buffer = frame.buffer_mut();
    if buffer.len() < MAX_FRAME_HEADER_LEN + payload.len + ICRC_LEN {
        return None;
    }
    let header_len = template.emit_middle(bth, ident, payload.len, buffer)?;
    Some(fill_payload(frame, template, header_len, &[payload], crc))
}

/// What follows the headers of a frame that has room for it.
#[inline(always)] // of its callers one has a single part
fn fill_payload(
    frame: &mut Frame,
    template: &FrameTemplate,
    header_len: usize,
    payload: &[RemoteRange],
    crc: &Crc,
) -> bool {
    let len: usize = payload.iter().map(|r| r.len).sum();
    let pad = usize::from(pad_len(len));
    let buffer = frame.buffer_mut();
    let mut at = header_len;
    let short = len <= SHORT;
    if short {
        for range in payload {
            let target = &mut buffer[at..at + range.len];
            // SAFETY: as below. Whatever the client writes meanwhile, what is summed later is what lies in the frame.
            unsafe { copy_bytes(range.ptr.as_ptr(), target.as_mut_ptr(), range.len) };
            at += range.len;
        }
        // Four bytes at once, whatever the pad: the ICRC follows.
        buffer[at..at + ICRC_LEN].fill(0);
        at += pad;
    } else {
        let (ip_start, version) = (template.ip_start(), template.version());
        let mut state = Icrc::start(crc, &buffer[ip_start..header_len], version);
        for range in payload {
            let target = &mut buffer[at..at + range.len];
            // SAFETY: the range was resolved in this pass of the loop, so it is mapped, or it is memory of this core
            // (`missing`); the target is a frame this core owns, outside all client memory.
            state = unsafe { crc.copy_crc_raw(state, target.as_mut_ptr(), range.ptr.as_ptr(), range.len) };
            at += range.len;
        }
        buffer[at..at + pad].fill(0);
        let state = Icrc::pad(crc, state, pad as u8);
        at += pad;
        buffer[at..at + ICRC_LEN].copy_from_slice(&Icrc::finish(state));
    }
    frame.set_len(at + ICRC_LEN);
    !short
}
