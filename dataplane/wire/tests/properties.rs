//! Properties over random input.

mod common;

use common::samples;
use proptest::collection::vec;
use proptest::prelude::*;
use rnic_wire::*;
use std::net::{Ipv4Addr, Ipv6Addr};

fn opcode() -> impl Strategy<Value = Opcode> {
    proptest::sample::select(Opcode::all().collect::<Vec<_>>())
}

prop_compose! {
    fn bth()(
        opcode in opcode(),
        flags in any::<[bool; 5]>(),
        pkey in any::<u16>(),
        dest_qpn in 0..1u32 << 24,
        psn in any::<u32>(),
        pad in 0..4u8,
    ) -> Bth {
        let [solicited, mig_req, fecn, becn, ack_req] = flags;
        let psn = Psn::new(psn);
        Bth { opcode, solicited, mig_req, pad, tver: 0, pkey, fecn, becn, dest_qpn, ack_req, psn }
    }
}

prop_compose! {
    fn headers()(
        bth in bth(),
        (a, b) in any::<(u64, u64)>(),
        (c, d, e) in any::<(u32, u32, u64)>(),
        syndrome in any::<u8>(),
    ) -> Headers {
        let o = bth.opcode;
        let low = 0x00FF_FFFF;
        let mut h = Headers::new(bth);
        h.xrceth = o.has_xrceth().then_some(XrcEth { srqn: c & low });
        h.deth = o.has_deth().then_some(Deth { qkey: d, src_qpn: c & low });
        h.reth = o.has_reth().then_some(Reth { va: a, rkey: d, dma_len: c });
        h.atomic = o.has_atomic_eth().then_some(AtomicEth { va: a, rkey: d, swap_or_add: b, compare: e });
        h.aeth = o.has_aeth().then_some(Aeth { syndrome: Syndrome::from_u8(syndrome), msn: c & low });
        h.atomic_ack = o.has_atomic_ack_eth().then_some(AtomicAckEth { original: b });
        h.imm = o.has_imm().then_some(d);
        h.ieth = o.has_ieth().then_some(d);
        h.feth = o.has_feth().then_some(Feth { placement: syndrome & 0xF, selectivity: syndrome >> 4 & 3 });
        h
    }
}

fn net() -> impl Strategy<Value = Net> {
    let v4 = any::<(u32, u32, u8, u8, u16, bool)>().prop_map(|(src, dst, tos, ttl, ident, dont_fragment)| {
        Net::V4(Ipv4 {
            src: Ipv4Addr::from_bits(src),
            dst: Ipv4Addr::from_bits(dst),
            tos,
            ttl,
            ident,
            dont_fragment,
        })
    });
    let v6 =
        (any::<(u128, u128, u8, u8)>(), 0..1u32 << 20).prop_map(|((src, dst, class, hops), flow_label)| {
            Net::V6(Ipv6 {
                src: Ipv6Addr::from_bits(src),
                dst: Ipv6Addr::from_bits(dst),
                traffic_class: class,
                flow_label,
                hop_limit: hops,
            })
        });
    prop_oneof![v4, v6]
}

fn tags() -> impl Strategy<Value = VlanTags> {
    let tag = || {
        any::<(bool, u16)>().prop_map(|(s, tci)| {
            if s {
                VlanTag::service(tci)
            } else {
                VlanTag::customer(tci)
            }
        })
    };
    prop_oneof![
        Just(VlanTags::NONE),
        tag().prop_map(VlanTags::one),
        (tag(), tag()).prop_map(|(outer, inner)| VlanTags::two(outer, inner)),
    ]
}

fn tagged_frames() -> impl Strategy<Value = Vec<u8>> {
    proptest::sample::select(samples::all_frames())
}

/// Everything one can ask of a frame, to see that nothing panics.
fn inspect(bytes: &[u8], metadata: Option<u16>) {
    let _ = Summary::new(bytes, metadata).to_string();
    if let Ok(datagram) = Datagram::parse(bytes, metadata) {
        let right = verify_icrc(&TableCrc, &datagram);
        // Of frames that are none, the answer has no meaning, but there is one.
        assert!(verify_plain(&TableCrc, bytes).is_none_or(|sum| sum == right));
        let _ = (
            datagram.grh(),
            datagram.vlan_ids(),
            datagram.icrc(),
            datagram.ib(),
        );
    }
    verify_plain(&TableCrc, bytes);
    if let Ok(frame) = Frame::parse(bytes, metadata) {
        assert!(frame.payload_range().end + ICRC_LEN <= bytes.len());
        assert_eq!(frame.payload(), &bytes[frame.payload_range()]);
        samples::emit(&frame.repr(), frame.payload());
    }
    let _ = Headers::parse(bytes);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), metadata in any::<Option<u16>>()) {
        inspect(&bytes, metadata);
    }

    #[test]
    fn frames_with_random_damage_never_panic(
        mut bytes in tagged_frames(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cutting in any::<bool>(),
        metadata in any::<Option<u16>>(),
    ) {
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cutting {
            bytes.truncate(cut.index(bytes.len()));
        }
        inspect(&bytes, metadata);
    }

    #[test]
    fn damaged_untagged_frames_with_a_repaired_checksum_never_panic(
        opcode in opcode(),
        damage in vec((14..90usize, any::<u8>()), 1..4),
    ) {
        let mut bytes = samples::frame(opcode, samples::v4(), VlanTags::NONE);
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        samples::fix_ipv4_checksum(&mut bytes);
        inspect(&bytes, None);
    }

    #[test]
    fn emitted_headers_are_parsed_to_the_same_headers(headers in headers()) {
        let mut out = [0; MAX_HEADER_LEN];
        let len = headers.emit(&mut out).unwrap();
        prop_assert_eq!(Headers::parse(&out), Ok((headers, len)));
    }

    #[test]
    fn emitted_frames_are_parsed_to_the_same_frame_with_a_right_icrc(
        mut headers in headers(),
        net in net(),
        tags in tags(),
        udp_src_port in any::<u16>(),
        mut payload in vec(any::<u8>(), 0..300),
        tail in 0..20usize,
    ) {
        if !headers.bth.opcode.has_payload() {
            payload.clear();
        }
        headers.bth.pad = pad_len(payload.len());
        let repr = FrameRepr { link: samples::link(tags), net, udp_src_port, headers };
        let mut bytes = samples::emit(&repr, &payload);
        let len = bytes.len();
        bytes.resize(len + tail, 0);
        let frame = Frame::parse(&bytes, None).unwrap();
        prop_assert_eq!(frame.repr(), repr);
        prop_assert_eq!(frame.payload(), &payload[..]);
        prop_assert_eq!(frame.datagram().byte_len(), len);
        prop_assert!(verify_icrc(&TableCrc, frame.datagram()));
        let plain = (tags == VlanTags::NONE).then_some(true);
        prop_assert_eq!(verify_plain(&TableCrc, &bytes), plain);
        let (src, dst) = (net.src_gid(), net.dst_gid());
        prop_assert!(frame.datagram().is_between(&src, &dst));
        for bit in 0..128 {
            let mut other = src;
            other[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!frame.datagram().is_between(&other, &dst));
            let mut other = dst;
            other[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!frame.datagram().is_between(&src, &other));
        }
    }

    #[test]
    fn a_template_emits_what_a_representation_emits(
        headers in headers(),
        net in net(),
        tags in tags(),
        ident in any::<u16>(),
        room in 0..200usize,
    ) {
        let net = match net {
            Net::V4(ip) => Net::V4(Ipv4 { ident, ..ip }),
            v6 => v6,
        };
        let repr = FrameRepr { link: samples::link(tags), net, udp_src_port: 0xC001, headers };
        let template = FrameTemplate::new(repr.link, repr.net, repr.udp_src_port);
        let (mut a, mut b) = ([0; 200], [0; 200]);
        let by_repr = repr.emit_headers(0, &mut a[..room]);
        let by_template = template.emit_headers(&headers, ident, 0, &mut b[..room]);
        prop_assert_eq!(by_repr, by_template);
        prop_assert_eq!(a, b);
        if let Ok(len) = by_template {
            prop_assert_eq!(len, template.prefix_len() + headers.len());
        }
    }

    #[test]
    fn the_table_crc_is_crc32fast_s(state in any::<u32>(), bytes in vec(any::<u8>(), 0..600), skip in 0..8usize) {
        let bytes = &bytes[skip.min(bytes.len())..];
        let mut oracle = crc32fast::Hasher::new_with_initial(!state);
        oracle.update(bytes);
        prop_assert_eq!(!TableCrc.update(state, bytes), oracle.finalize());
    }

    #[test]
    fn the_icrc_is_the_same_at_every_split_between_headers_and_payload(
        bytes in tagged_frames(),
    ) {
        let frame = Frame::parse(&bytes, None).unwrap();
        let (version, ip_start) = (frame.net().version(), frame.link().byte_len());
        let covered = &bytes[ip_start..bytes.len() - ICRC_LEN];
        for split in version.header_len() + UDP_LEN + 12..=covered.len() {
            let state = Icrc::start(&TableCrc, &covered[..split], version);
            let state = TableCrc.update(state, &covered[split..]);
            prop_assert_eq!(Icrc::finish(state), frame.icrc());
        }
        let header_end = frame.payload_range().start;
        let state = Icrc::start(&TableCrc, &bytes[ip_start..header_end], version);
        let state = TableCrc.update(state, frame.payload());
        let state = Icrc::pad(&TableCrc, state, frame.bth().pad);
        prop_assert_eq!(Icrc::finish(state), frame.icrc());
    }

    #[test]
    fn psn_differences_undo_additions(start in any::<u32>(), n in -0x80_0000i32..0x80_0000) {
        let start = Psn::new(start);
        let other = start.wrapping_add(n as u32);
        prop_assert_eq!(other.diff(start), n);
        prop_assert_eq!(other.wrapping_sub(n as u32), start);
    }
}

#[test]
fn the_icrc_agrees_with_crc32fast_over_a_pseudo_header_made_by_hand() {
    for bytes in samples::all_frames() {
        let frame = Frame::parse(&bytes, None).unwrap();
        let ip_start = frame.link().byte_len();
        let mut pseudo = bytes[ip_start..bytes.len() - ICRC_LEN].to_vec();
        let udp = match frame.net() {
            Net::V4(_) => {
                pseudo[1] = 0xFF;
                pseudo[8] = 0xFF;
                pseudo[10..12].fill(0xFF);
                IPV4_LEN
            }
            Net::V6(_) => {
                pseudo[0] = 0x6F;
                pseudo[1..4].fill(0xFF);
                pseudo[7] = 0xFF;
                IPV6_LEN
            }
        };
        pseudo[udp + 6..udp + 8].fill(0xFF);
        pseudo[udp + 12] = 0xFF;
        let mut oracle = crc32fast::Hasher::new();
        oracle.update(&[0xFF; 8]);
        oracle.update(&pseudo);
        assert_eq!(frame.icrc(), oracle.finalize().to_le_bytes());
    }
}

#[test]
fn the_table_crc_has_the_check_value_and_may_be_split_anywhere() {
    assert_eq!(!TableCrc.update(u32::MAX, b"123456789"), 0xCBF4_3926);
    let bytes: Vec<u8> = (0..300u32).map(|i| (i * 31) as u8).collect();
    let whole = TableCrc.update(u32::MAX, &bytes);
    assert_eq!(!whole, crc32fast::hash(&bytes));
    for split in 0..=bytes.len() {
        let state = TableCrc.update(u32::MAX, &bytes[..split]);
        assert_eq!(TableCrc.update(state, &bytes[split..]), whole);
    }
}
