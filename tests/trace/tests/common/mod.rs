//! Traces made by hand, and ways to make them wrong.
#![allow(dead_code)] // each test binary uses its part

use rnic_trace::{Near, Options, Record, Report, check};
use rnic_wire::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Ecn, Frame, FrameRepr, Headers, Ipv4, Link, MAX_FRAME_HEADER_LEN,
    MacAddr, NakCode, Net, Opcode, Operation, Psn, PsnSet, Reth, SELECTIVE_ACK_LEN, SelectiveAck, Syndrome,
    TableCrc, Transport, XrcEth,
};
use std::net::Ipv4Addr;

/// Microseconds between two frames of [`good`].
const STEP: u64 = 10;
/// Encoding of an RNR timer of 10.24 ms.
const RNR_TIMER: u8 = 20;

pub const ADDRESS: u64 = 0x7F00_0000_1000;

/// A trace being made.
#[derive(Clone, Default)]
pub struct Trace {
    pub records: Vec<Record>,
}

impl Trace {
    /// Adds a frame, `STEP` after the one before.
    pub fn add(&mut self, from: u8, headers: Headers, len: usize, ecn: Ecn) {
        let address = |side: u8| Ipv4Addr::new(10, 0, 0, side);
        let mac = |side: u8| MacAddr([2, 0, 0, 0, 0, side]);
        let repr = FrameRepr {
            link: Link {
                src: mac(from),
                dst: mac(3 - from),
                ..Link::default()
            },
            net: Net::V4(Ipv4 {
                src: address(from),
                dst: address(3 - from),
                tos: ecn.on(0),
                ttl: 64,
                ident: 0,
                dont_fragment: true,
            }),
            udp_src_port: 0xC123,
            headers,
        };
        let nanos = self.records.last().map_or(1_000_000_000, |last| last.nanos) + STEP * 1_000;
        self.records.push(Record {
            number: self.records.len() + 1,
            nanos,
            sent: Some(true),
            missed: 0,
            bytes: emit(&repr, &vec![0x5A; len]),
        });
    }

    /// A request of A, whose QP is 0x11, to B, whose QP is 0x22.
    fn request(&mut self, operation: Operation, psn: u32, len: usize, fill: impl Fn(&mut Headers)) {
        let bth = Bth::new(Opcode::new(Transport::Rc, operation), 0x22, Psn::new(psn));
        let mut headers = Headers::new(bth);
        fill(&mut headers);
        self.add(1, headers, len, Ecn::Ect0);
    }

    fn response(&mut self, operation: Operation, psn: u32, syndrome: Syndrome, msn: u32, len: usize) {
        let opcode = Opcode::new(Transport::Rc, operation);
        let mut headers = Headers::new(Bth::new(opcode, 0x11, Psn::new(psn)));
        if opcode.has_aeth() {
            headers.aeth = Some(Aeth { syndrome, msn });
        }
        if operation == Operation::AtomicAcknowledge {
            headers.atomic_ack = Some(AtomicAckEth { original: 5 });
        }
        self.add(2, headers, len, Ecn::NotEct);
    }

    /// Makes a frame anew with other headers or another payload length.
    pub fn edit(&mut self, number: usize, change: impl Fn(&mut FrameRepr, &mut usize)) {
        let record = &mut self.records[number - 1];
        let frame = Frame::parse(&record.bytes, None).expect("the trace is good");
        let (mut repr, mut len) = (frame.repr(), frame.payload().len());
        change(&mut repr, &mut len);
        record.bytes = emit(&repr, &vec![0x5A; len]);
    }

    /// Takes a frame out; the others keep their numbers.
    pub fn remove(&mut self, number: usize) {
        self.records.retain(|record| record.number != number);
    }

    /// Adds a copy of a frame at the end.
    pub fn repeat(&mut self, number: usize) {
        let nanos = self.records.last().expect("a frame").nanos + STEP * 1_000;
        let copy = Record {
            nanos,
            number: self.records.len() + 1,
            ..self.records[number - 1].clone()
        };
        self.records.push(copy);
    }

    /// Puts a frame just before another.
    pub fn move_before(&mut self, number: usize, before: usize) {
        let nanos = self.records[before - 1].nanos - 1;
        self.records[number - 1].nanos = nanos;
        self.records.sort_by_key(|record| record.nanos);
    }

    pub fn check(&self, near: Near) -> Report {
        self.check_with(&Options {
            near,
            ..Options::default()
        })
    }

    pub fn check_with(&self, options: &Options) -> Report {
        check(&self.records, options)
    }
}

fn emit(repr: &FrameRepr, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; MAX_FRAME_HEADER_LEN + payload.len() + 8];
    let len = repr
        .emit_frame(&TableCrc, payload, &mut out)
        .expect("a frame that can be emitted");
    out.truncate(len);
    out
}

/// The same headers with another operation.
pub fn operate(headers: &mut Headers, operation: Operation) {
    headers.bth.opcode = Opcode::new(headers.bth.opcode.transport, operation);
}

/// A connection of path MTU 256 on which everything happens that the rules on RC are about, and nothing wrong.
pub fn good() -> Trace {
    use Operation::*;
    const OK: Syndrome = Syndrome::ACK;
    let mut t = Trace::default();
    let plain = |_: &mut Headers| ();
    let read = |va: u64, dma_len: u32| {
        move |headers: &mut Headers| headers.reth = Some(Reth { va, rkey: 7, dma_len })
    };
    let add = |headers: &mut Headers| {
        headers.atomic = Some(AtomicEth {
            va: ADDRESS,
            rkey: 7,
            swap_or_add: 1,
            compare: 0,
        })
    };
    // 1-6: a message of three packets, a WRITE.
    t.request(SendFirst, 100, 256, plain);
    t.request(SendMiddle, 101, 256, plain);
    t.request(SendLast, 102, 10, plain);
    t.response(Acknowledge, 102, OK, 1, 0);
    t.request(WriteOnly, 103, 8, read(ADDRESS, 8));
    t.response(Acknowledge, 103, OK, 2, 0);
    // 7-13: PSN 105 is lost behind the point.
    t.request(SendOnly, 104, 4, plain);
    t.request(SendOnly, 105, 4, plain);
    t.request(SendOnly, 106, 4, plain);
    t.response(Acknowledge, 105, Syndrome::Nak(NakCode::PsnSequenceError), 3, 0);
    t.request(SendOnly, 105, 4, plain);
    t.request(SendOnly, 106, 4, plain);
    t.response(Acknowledge, 106, OK, 5, 0);
    // 14-17: no receive WQE.
    t.request(SendOnly, 107, 4, plain);
    t.response(Acknowledge, 107, Syndrome::RnrNak { timer: RNR_TIMER }, 5, 0);
    t.request(SendOnly, 107, 4, plain);
    t.records[15].nanos += 11_000_000;
    t.response(Acknowledge, 107, OK, 6, 0);
    // 18-28: a READ whose second response is lost behind the point, so that it is resumed.
    t.request(ReadRequest, 108, 0, read(ADDRESS, 600));
    t.request(SendOnly, 111, 4, plain);
    t.response(ReadResponseFirst, 108, OK, 7, 256);
    t.response(ReadResponseMiddle, 109, OK, 7, 256);
    t.response(ReadResponseLast, 110, OK, 7, 88);
    t.response(Acknowledge, 111, OK, 8, 0);
    t.request(ReadRequest, 109, 0, read(ADDRESS + 256, 344));
    t.request(SendOnly, 111, 4, plain);
    t.response(ReadResponseFirst, 109, OK, 8, 256);
    t.response(ReadResponseLast, 110, OK, 8, 88);
    t.response(Acknowledge, 111, OK, 8, 0);
    // 29-32: an atomic whose ACK is lost behind the point.
    t.request(FetchAdd, 112, 0, add);
    t.response(AtomicAcknowledge, 112, OK, 9, 0);
    t.request(FetchAdd, 112, 0, add);
    t.response(AtomicAcknowledge, 112, OK, 9, 0);
    // 33-35: congestion.
    t.request(SendOnly, 113, 4, plain);
    t.edit(33, |repr, _| mark(repr));
    t.add(
        2,
        Headers::new(Bth::new(Opcode::CNP, 0x11, Psn::ZERO)),
        0,
        Ecn::NotEct,
    );
    t.response(Acknowledge, 113, OK, 10, 0);
    // 36-37: a WRITE that is refused.
    t.request(WriteOnly, 114, 8, read(ADDRESS, 8));
    t.response(Acknowledge, 114, Syndrome::Nak(NakCode::RemoteAccessError), 10, 0);
    t
}

/// Marks a frame "congestion experienced".
pub fn mark(repr: &mut FrameRepr) {
    set_ecn(repr, Ecn::Ce);
}

pub fn set_ecn(repr: &mut FrameRepr, ecn: Ecn) {
    if let Net::V4(ip) = &mut repr.net {
        ip.tos = ecn.on(ip.tos);
    }
}

/// The same trace between an XRC initiator and its target.
pub fn xrc(mut trace: Trace) -> Trace {
    for number in 1..=trace.records.len() {
        trace.edit(number, |repr, _| {
            let headers = &mut repr.headers;
            if headers.bth.opcode.transport == Transport::Rc {
                headers.bth.opcode = Opcode::new(Transport::Xrc, headers.bth.opcode.operation);
                headers.xrceth = headers.bth.opcode.has_xrceth().then_some(XrcEth { srqn: 0x31 });
            }
        });
    }
    trace
}

/// A WRITE of which PSNs 101 and 103 are lost behind the point, and sent again alone (7 and 8) because of frame 6: a
/// selective ACK that says of these distances from 101 that they have arrived.
pub fn good_selective(arrived: &[u32]) -> Trace {
    use Operation::*;
    let mut t = Trace::default();
    let reth = |headers: &mut Headers| {
        headers.reth = Some(Reth {
            va: ADDRESS,
            rkey: 7,
            dma_len: 4 * 256 + 8,
        })
    };
    let plain = |_: &mut Headers| ();
    t.request(WriteFirst, 100, 256, reth);
    (101..104).for_each(|psn| t.request(WriteMiddle, psn, 256, plain));
    t.request(WriteLast, 104, 8, plain);
    let mut headers = Headers::new(Bth::new(Opcode::SELECTIVE_ACK, 0x11, Psn::new(101)));
    headers.aeth = Some(Aeth {
        syndrome: Syndrome::Nak(NakCode::PsnSequenceError),
        msn: 0,
    });
    t.add(2, headers, SELECTIVE_ACK_LEN, Ecn::NotEct);
    let frame = Frame::parse(&t.records[5].bytes, None).expect("the trace is good");
    let mut received = PsnSet::EMPTY;
    arrived.iter().for_each(|distance| received.insert(distance - 1));
    t.records[5].bytes = emit(&frame.repr(), &SelectiveAck { seen: 3, received }.to_bytes());
    t.request(WriteMiddle, 101, 256, plain);
    t.request(WriteMiddle, 103, 256, plain);
    t.request(SendOnly, 105, 4, plain);
    t.response(Acknowledge, 105, Syndrome::ACK, 2, 0);
    t
}

/// Messages of two packets on UC.
pub fn good_uc() -> Trace {
    let mut t = Trace::default();
    for psn in 0..6 {
        let operation = [Operation::SendFirst, Operation::SendLast][psn as usize % 2];
        let opcode = Opcode::new(Transport::Uc, operation);
        let len = [256, 20][psn as usize % 2];
        t.add(
            1,
            Headers::new(Bth::new(opcode, 0x22, Psn::new(psn))),
            len,
            Ecn::NotEct,
        );
    }
    t
}

/// Datagrams of one QP.
pub fn good_ud() -> Trace {
    let mut t = Trace::default();
    for psn in [5, 6, 9] {
        let opcode = Opcode::new(Transport::Ud, Operation::SendOnly);
        let mut headers = Headers::new(Bth::new(opcode, 0x22, Psn::new(psn)));
        headers.deth = Some(rnic_wire::Deth {
            qkey: 1,
            src_qpn: 0x11,
        });
        t.add(1, headers, 32, Ecn::NotEct);
    }
    t
}
