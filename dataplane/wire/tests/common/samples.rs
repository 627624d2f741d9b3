//! One packet of every opcode, and the frames around it.

use rnic_wire::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Headers of an opcode with every field set to something recognisable.
pub fn headers(opcode: Opcode) -> Headers {
    let n = opcode.to_u8() as u32;
    let mut bth = Bth::new(opcode, 0x12_0000 | n, Psn::new(0xFE_DC00 | n));
    bth.ack_req = opcode.transport.is_reliable() && opcode.is_request() && opcode.ends_message();
    bth.solicited = opcode.is_send() && opcode.ends_message();
    let mut h = Headers::new(bth);
    h.xrceth = opcode.has_xrceth().then_some(XrcEth { srqn: 0x45_6700 | n });
    h.deth = opcode.has_deth().then_some(Deth {
        qkey: 0x1111_1111,
        src_qpn: 0x77_0000 | n,
    });
    h.reth = opcode.has_reth().then_some(Reth {
        va: 0x7F01_0203_0405_0600 | n as u64,
        rkey: 0xA0B0_C000 | n,
        dma_len: 8_192 + n,
    });
    h.atomic = opcode.has_atomic_eth().then_some(AtomicEth {
        va: 0x7F01_0203_0405_0608,
        rkey: 0xA0B0_C0D0,
        swap_or_add: 0x0123_4567_89AB_CDEF,
        compare: 0xFEDC_BA98_7654_3210,
    });
    h.aeth = opcode.has_aeth().then_some(Aeth {
        syndrome: Syndrome::Ack { credits: 5 },
        msn: 0x33_0000 | n,
    });
    h.atomic_ack = opcode.has_atomic_ack_eth().then_some(AtomicAckEth {
        original: 0x1122_3344_5566_7788,
    });
    h.imm = opcode.has_imm().then_some(0xCAFE_0000 | n);
    h.ieth = opcode.has_ieth().then_some(0xDEAD_0000 | n);
    h.feth = opcode.has_feth().then_some(Feth {
        placement: Feth::GLOBAL_VISIBILITY | Feth::PERSISTENCE,
        selectivity: Feth::REGION,
    });
    h
}

/// A payload whose length suits the opcode and, where there is a choice, needs pad.
pub fn payload(opcode: Opcode) -> Vec<u8> {
    let len = match opcode.operation {
        _ if !opcode.has_payload() => 0,
        Operation::AtomicWrite => 8,
        Operation::SelectiveAcknowledge => SELECTIVE_ACK_LEN,
        _ if opcode.is_first() || opcode.is_middle() => 256,
        _ => 1 + opcode.to_u8() as usize,
    };
    (0..len).map(|i| (i * 7 + 3) as u8).collect()
}

pub fn v4() -> Net {
    Net::V4(Ipv4 {
        src: Ipv4Addr::new(192, 168, 77, 1),
        dst: Ipv4Addr::new(192, 168, 77, 2),
        tos: Ecn::Ect0.on(0x68),
        ttl: 64,
        ident: 0x1234,
        dont_fragment: true,
    })
}

pub fn v6() -> Net {
    Net::V6(Ipv6 {
        src: Ipv6Addr::new(0xFD77, 0, 0, 0, 0, 0, 0, 1),
        dst: Ipv6Addr::new(0xFD77, 0, 0, 0, 0, 0, 0, 2),
        traffic_class: Ecn::Ect0.on(0x68),
        flow_label: 0xA_BCDE,
        hop_limit: 64,
    })
}

pub fn link(tags: VlanTags) -> Link {
    Link {
        dst: MacAddr([0x52, 0x54, 0, 0x77, 0, 2]),
        src: MacAddr([0x52, 0x54, 0, 0x77, 0, 1]),
        tags,
    }
}

pub fn one_tag() -> VlanTags {
    VlanTags::one(VlanTag::customer(0x6123))
}

pub fn two_tags() -> VlanTags {
    VlanTags::two(VlanTag::service(0x2064), VlanTag::customer(0x0123))
}

pub fn repr(opcode: Opcode, net: Net, tags: VlanTags) -> FrameRepr {
    FrameRepr {
        link: link(tags),
        net,
        udp_src_port: 0xC123,
        headers: headers(opcode),
    }
}

/// A whole frame of the opcode.
pub fn frame(opcode: Opcode, net: Net, tags: VlanTags) -> Vec<u8> {
    emit(&repr(opcode, net, tags), &payload(opcode))
}

/// Emits a frame into a buffer of its own.
pub fn emit(repr: &FrameRepr, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0xEE; MAX_FRAME_HEADER_LEN + payload.len() + 8];
    let len = repr
        .emit_frame(&TableCrc, payload, &mut out)
        .expect("a sample can be emitted");
    out.truncate(len);
    out
}

/// Every opcode over IPv4 and IPv6, without, with one and with two VLAN tags.
pub fn all_frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for net in [v4(), v6()] {
        for tags in [VlanTags::NONE, one_tag(), two_tags()] {
            frames.extend(Opcode::all().map(|opcode| frame(opcode, net, tags)));
        }
    }
    frames
}

/// Repairs the IPv4 checksum of an untagged frame after a test has changed its header.
pub fn fix_ipv4_checksum(frame: &mut [u8]) {
    let ip = &mut frame[14..34];
    (ip[10], ip[11]) = (0, 0);
    let mut sum: u32 = ip
        .chunks(2)
        .map(|w| u16::from_be_bytes([w[0], w[1]]) as u32)
        .sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    ip[10..12].copy_from_slice(&(!sum as u16).to_be_bytes());
}

/// Repairs the ICRC of an untagged IPv4 frame after a test has changed what it covers.
pub fn fix_icrc(frame: &mut [u8]) {
    let end = frame.len() - ICRC_LEN;
    let state = Icrc::start(&TableCrc, &frame[14..end], IpVersion::V4);
    frame[end..].copy_from_slice(&Icrc::finish(state));
}
