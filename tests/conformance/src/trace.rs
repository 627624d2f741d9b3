//! The trace of a played script as frames, for the checker of captures.

use crate::script::Side;
use rnic_sim::Packet;
use rnic_trace::{Near, Options, Record, Report};
use rnic_wire::{Ecn, FrameRepr, Ipv4, Link, MAX_FRAME_HEADER_LEN, Net, TableCrc, udp_source_port};
use std::net::Ipv4Addr;

/// Nanoseconds between two CNPs: the default of DCQCN.
const CNP_INTERVAL: u64 = 50_000;

/// A frame as it was sent.
pub(crate) struct Sent {
    pub nanos: u64,
    pub side: Side,
    pub packet: Packet,
    /// As it arrives.
    pub ecn: Ecn,
}

/// Checks every rule of the transport on what both sides sent, seen where they sent it.
pub(crate) fn check(sent: &[Sent], crossing: u64) -> Report {
    let records: Vec<Record> = sent.iter().enumerate().map(record).collect();
    rnic_trace::check(
        &records,
        &Options {
            near: Near::Everybody,
            crossing,
            cnp_interval: CNP_INTERVAL,
            cnp_within: Some(CNP_INTERVAL + crossing),
            ..Options::default()
        },
    )
}

fn record((at, sent): (usize, &Sent)) -> Record {
    let address = |side: usize| Ipv4Addr::new(10, 0, 0, 1 + side as u8);
    let side = sent.side.index();
    let repr = FrameRepr {
        link: Link::default(),
        net: Net::V4(Ipv4 {
            src: address(side),
            dst: address(1 - side),
            tos: sent.ecn.on(0),
            ttl: 64,
            ident: 0,
            dont_fragment: true,
        }),
        udp_src_port: udp_source_port(0, 0x11, 0x22),
        headers: sent.packet.headers,
    };
    let mut bytes = vec![0; MAX_FRAME_HEADER_LEN + sent.packet.payload.len() + 8];
    let len = repr
        .emit_frame(&TableCrc, &sent.packet.payload, &mut bytes)
        .expect("the state machines send what can be sent");
    bytes.truncate(len);
    Record {
        number: at + 1,
        nanos: sent.nanos,
        sent: Some(true),
        missed: 0,
        bytes,
    }
}
