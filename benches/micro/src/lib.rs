//! Frames to measure with.
use std::net::{Ipv4Addr, Ipv6Addr};

use rnic_wire::{
    Aeth, Bth, Ecn, FrameRepr, FrameTemplate, Headers, Ipv4, Ipv6, Link, MAX_FRAME_HEADER_LEN, MacAddr, Net,
    Opcode, Operation, Psn, Reth, Syndrome, TableCrc, Transport, VlanTags,
};

const UDP_SOURCE: u16 = 0xC123;

/// Between which addresses.
pub fn net(version: u8) -> Net {
    let tos = Ecn::Ect0.on(0);
    match version {
        4 => Net::V4(Ipv4 {
            src: Ipv4Addr::new(10, 0, 0, 1),
            dst: Ipv4Addr::new(10, 0, 0, 2),
            tos,
            ttl: 64,
            ident: 7,
            dont_fragment: true,
        }),
        _ => Net::V6(Ipv6 {
            src: Ipv6Addr::new(0xFD00, 0, 0, 0, 0, 0, 0, 1),
            dst: Ipv6Addr::new(0xFD00, 0, 0, 0, 0, 0, 0, 2),
            traffic_class: tos,
            flow_label: 0xABCDE,
            hop_limit: 64,
        }),
    }
}

fn link() -> Link {
    Link {
        dst: MacAddr([2, 0, 0, 0, 0, 2]),
        src: MacAddr([2, 0, 0, 0, 0, 1]),
        tags: VlanTags::NONE,
    }
}

/// The template of a flow.
pub fn template(version: u8) -> FrameTemplate {
    FrameTemplate::new(link(), net(version), UDP_SOURCE)
}

/// Headers of a WRITE in one packet.
pub fn write_only(len: usize) -> Headers {
    let mut bth = Bth::new(
        Opcode::new(Transport::Rc, Operation::WriteOnly),
        0x12_3456,
        Psn::new(77),
    );
    bth.ack_req = true;
    let mut headers = Headers::new(bth);
    headers.reth = Some(Reth {
        va: 0x7F00_0000_0000,
        rkey: 0x0102_0304,
        dma_len: len as u32,
    });
    headers
}

/// Headers of its acknowledgement.
pub fn acknowledge() -> Headers {
    let mut headers = Headers::new(Bth::new(
        Opcode::new(Transport::Rc, Operation::Acknowledge),
        0x12_3456,
        Psn::new(77),
    ));
    headers.aeth = Some(Aeth {
        syndrome: Syndrome::Ack { credits: 31 },
        msn: 5,
    });
    headers
}

/// A frame with these headers and so much payload.
///
/// # Panics
/// When the headers do not allow the payload.
pub fn frame(version: u8, headers: Headers, len: usize) -> Vec<u8> {
    let repr = FrameRepr {
        link: link(),
        net: net(version),
        udp_src_port: UDP_SOURCE,
        headers,
    };
    let mut out = vec![0; MAX_FRAME_HEADER_LEN + len + 8];
    let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
    let len = repr
        .emit_frame(&TableCrc, &payload, &mut out)
        .expect("the headers suit the payload");
    out.truncate(len);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rnic_wire::{Kind, classify, verify_icrc};

    #[test]
    fn what_is_measured_are_frames_with_right_icrcs() {
        for version in [4, 6] {
            for (headers, len) in [(write_only(64), 64), (acknowledge(), 0)] {
                let bytes = frame(version, headers, len);
                let Kind::Roce(packet) = classify(&bytes, None) else {
                    panic!("no RoCE frame: {bytes:?}");
                };
                assert!(verify_icrc(&TableCrc, packet.datagram()));
                assert_eq!(packet.payload().len(), len);
            }
        }
    }
}
