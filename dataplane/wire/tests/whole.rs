//! Packets that are a whole message: what is written and read the short way is what the long way writes and reads.
mod common;

use common::{captured_frames, samples};
use proptest::collection::vec;
use proptest::prelude::*;
use rnic_wire::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

prop_compose! {
    fn whole()(
        dest_qpn in 0..1u32 << 24,
        psn in any::<u32>(),
        (ack_req, solicited, write) in any::<(bool, bool, bool)>(),
        (va, rkey, dma_len) in any::<(u64, u32, u32)>(),
    ) -> Whole {
        let reth = write.then_some(Reth { va, rkey, dma_len });
        Whole { dest_qpn, psn: Psn::new(psn), ack_req, solicited, reth }
    }
}

fn template() -> impl Strategy<Value = FrameTemplate> {
    let tags = [VlanTags::NONE, samples::one_tag(), samples::two_tags()];
    let net = [samples::v4(), samples::v6()];
    (
        prop::sample::select(tags.to_vec()),
        prop::sample::select(net.to_vec()),
        any::<u16>(),
    )
        .prop_map(|(tags, net, port)| FrameTemplate::new(samples::link(tags), net, port))
}

/// What is read the short way, of RC.
const PLAIN: [Operation; 8] = {
    use Operation as O;
    [
        O::SendOnly,
        O::WriteOnly,
        O::ReadRequest,
        O::ReadResponseOnly,
        O::Acknowledge,
        O::AtomicAcknowledge,
        O::CompareSwap,
        O::FetchAdd,
    ]
};

fn rc(operation: Operation) -> Opcode {
    Opcode::new(Transport::Rc, operation)
}

/// Asserts that a frame is read the short way if and only if the long way finds it to be such a packet, and nothing about it
/// unusual; and that both read the same then. Whether it was one.
fn is_read_alike(bytes: &[u8]) -> bool {
    let long = match classify(bytes, None) {
        Kind::Roce(frame) => Some(frame),
        _ => None,
    };
    let usual = long.filter(|frame| {
        frame.link().tags == VlanTags::NONE
            && frame.net().ecn() != Ecn::Ce
            && frame.bth().pkey & 0x7FFF == 0x7FFF
    });
    let plain = usual.filter(|frame| PLAIN.map(rc).contains(&frame.bth().opcode));
    let short = PlainFrame::parse(bytes);
    assert_eq!(short.is_some(), plain.is_some());
    let (Some(short), Some(long)) = (short, plain) else {
        return false;
    };
    assert_eq!(short.headers().as_ref(), Some(long.headers()));
    assert_eq!(short.whole(), Whole::of(long.headers()));
    let fetch = Plain::of(long.headers()).filter(|plain| plain.operation != Operation::Acknowledge);
    assert_eq!(short.fetch(), fetch);
    assert_eq!(short.payload().as_ptr_range(), long.payload().as_ptr_range());
    assert_eq!(short.dest_qpn(), long.bth().dest_qpn);
    let sum = verify_icrc(&TableCrc, long.datagram());
    assert_eq!(short.verify_icrc(&TableCrc), sum);
    // The template of frames to one address from another, as far as it matters here.
    let template = |tags, from, to| {
        let net = match (long.net(), from, to) {
            (Net::V4(ip), IpAddr::V4(src), IpAddr::V4(dst)) => Net::V4(Ipv4 { src, dst, ..ip }),
            (Net::V6(ip), IpAddr::V6(src), IpAddr::V6(dst)) => Net::V6(Ipv6 { src, dst, ..ip }),
            _ => unreachable!("addresses of another version"),
        };
        FrameTemplate::new(samples::link(tags), net, 0xC001)
    };
    let (src, dst) = (long.net().src(), long.net().dst());
    let answers = |tags, from, to| short.answers(&template(tags, from, to));
    assert!(answers(VlanTags::NONE, dst, src));
    assert_eq!(answers(VlanTags::NONE, src, dst), src == dst);
    assert!(!answers(samples::one_tag(), dst, src) && !answers(samples::two_tags(), dst, src));
    let (v4, v6) = (samples::v4(), samples::v6());
    let other = if matches!(long.net(), Net::V4(_)) { v6 } else { v4 };
    assert!(!short.answers(&FrameTemplate::new(samples::link(VlanTags::NONE), other, 0xC001)));
    for bit in 0..128 {
        let flipped = |address| match address {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() ^ 1 << (bit % 32))),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() ^ 1 << bit)),
        };
        assert!(!answers(VlanTags::NONE, flipped(dst), src));
        assert!(!answers(VlanTags::NONE, dst, flipped(src)));
    }
    true
}

/// Every untagged sample of the opcodes.
fn frames() -> Vec<Vec<u8>> {
    samples_of(&PLAIN)
}

fn samples_of(operations: &[Operation]) -> Vec<Vec<u8>> {
    let sample = |net| {
        let frame = move |operation: &Operation| samples::frame(rc(*operation), net, VlanTags::NONE);
        operations.iter().map(frame)
    };
    [samples::v4(), samples::v6()]
        .into_iter()
        .flat_map(sample)
        .collect()
}

#[test]
fn samples_are_read_the_short_way_as_the_long_way() {
    for frame in frames() {
        assert!(is_read_alike(&frame));
    }
    let read = samples::all_frames()
        .iter()
        .filter(|frame| is_read_alike(frame))
        .count();
    assert_eq!(read, 16, "eight opcodes, two versions of IP, no tags");
}

#[test]
fn captured_frames_are_read_the_short_way_as_the_long_way() {
    let read = captured_frames()
        .iter()
        .filter(|(_, frame)| is_read_alike(frame))
        .count();
    assert!(read > 20, "{read}");
}

#[test]
fn every_flipped_bit_and_every_cut_is_read_the_short_way_as_the_long_way() {
    for mut frame in frames() {
        for bit in 0..frame.len() * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            is_read_alike(&frame);
            let mut repaired = frame.clone();
            samples::fix_ipv4_checksum(&mut repaired);
            is_read_alike(&repaired);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..frame.len() {
            assert!(!is_read_alike(&frame[..len]), "cut to {len}");
        }
        frame.extend([0; 20]);
        assert!(is_read_alike(&frame), "Ethernet padding");
    }
}

#[test]
fn the_longest_frames_are_read_the_short_way_as_the_long_way() {
    let messages = samples_of(&[Operation::SendOnly, Operation::WriteOnly]);
    for (frame, room) in messages.iter().zip([65_515, 65_515, 65_535, 65_535]) {
        let Kind::Roce(read) = classify(frame, None) else {
            panic!("a sample")
        };
        let header_len = UDP_LEN + read.headers().len() + ICRC_LEN;
        for len in room - header_len - 8..=room - header_len {
            if len + pad_len(len) as usize + header_len <= room {
                assert!(
                    is_read_alike(&samples::emit(&read.repr(), &vec![7; len])),
                    "{len}"
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_are_read_the_short_way_as_the_long_way(bytes in vec(any::<u8>(), 0..200)) {
        is_read_alike(&bytes);
    }

    #[test]
    fn damaged_frames_are_read_the_short_way_as_the_long_way(
        mut frame in prop::sample::select(samples::all_frames()),
        damage in vec((12..90usize, any::<u8>()), 1..5),
        repaired in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        if repaired {
            samples::fix_ipv4_checksum(&mut frame);
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        is_read_alike(&frame);
    }

    #[test]
    fn lengths_and_pads_that_disagree_are_read_the_short_way_as_the_long_way(
        mut frame in prop::sample::select(frames()),
        (ip, udp) in (-8i32..8, -8i32..8),
        pad in 0u8..4,
        more in 0usize..12,
    ) {
        let (at, udp_at) = if frame[12] == 8 { (16, 38) } else { (18, 58) };
        for (at, by) in [(at, ip), (udp_at, udp)] {
            let len = u16::from_be_bytes([frame[at], frame[at + 1]]);
            frame[at..at + 2].copy_from_slice(&len.wrapping_add_signed(by as i16).to_be_bytes());
        }
        frame[udp_at + 5] = frame[udp_at + 5] & !0x30 | pad << 4;
        frame.resize(frame.len() + more, 0);
        samples::fix_ipv4_checksum(&mut frame);
        is_read_alike(&frame);
    }

    #[test]
    fn what_is_written_the_short_way_is_read_so(
        whole in whole(),
        net in prop::sample::select(vec![samples::v4(), samples::v6()]),
        payload in vec(any::<u8>(), 0..300),
        (pkey, fecn, becn, mig_req) in (prop::sample::select(vec![0x7FFF, 0xFFFF, 0xFFFE]), any::<bool>(), any::<bool>(), any::<bool>()),
    ) {
        let mut headers = whole.headers();
        headers.bth = Bth { pkey, fecn, becn, mig_req, ..headers.bth };
        let link = samples::link(VlanTags::NONE);
        let frame = samples::emit(&FrameRepr { link, net, udp_src_port: 0xC001, headers }, &payload);
        prop_assert_eq!(is_read_alike(&frame), pkey & 0x7FFF == 0x7FFF);
        if let Some(read) = PlainFrame::parse(&frame) {
            prop_assert_eq!((read.whole(), read.payload()), (Some(whole), &payload[..]));
        }
    }

    #[test]
    fn headers_written_the_short_way_are_those_of_the_long_way(
        whole in whole(),
        template in template(),
        ident in any::<u16>(),
        len in 0usize..9000,
    ) {
        let (mut short, mut long) = ([0xEE; 256], [0xEE; 256]);
        let n = template.emit_whole(&whole, ident, len, &mut short).unwrap();
        let headers = whole.headers();
        prop_assert_eq!(Ok(n), template.emit_headers(&headers, ident, len, &mut long));
        prop_assert_eq!(&short[..n], &long[..n]);
        prop_assert_eq!(Whole::of(&headers), Some(whole));
        let middle = Headers::new(Bth { opcode: Opcode::new(Transport::Rc, Operation::WriteMiddle), ..headers.bth });
        let n = template.emit_middle(&middle.bth, ident, len, &mut short).unwrap();
        prop_assert_eq!(Ok(n), template.emit_headers(&middle, ident, len, &mut long));
        prop_assert_eq!(&short[..n], &long[..n]);
    }

    #[test]
    fn headers_that_do_not_fit_are_not_written(whole in whole(), template in template(), room in 0usize..MAX_FRAME_HEADER_LEN) {
        let mut out = [0; MAX_FRAME_HEADER_LEN];
        prop_assert!(template.emit_whole(&whole, 0, 65_536, &mut out).is_none(), "too long for IP");
        let n = template.emit_whole(&whole, 0, 0, &mut [0; 256]).unwrap();
        prop_assert!(room >= n || template.emit_whole(&whole, 0, 0, &mut out[..room]).is_none());
    }

    #[test]
    fn plain_packets_are_written_as_the_long_way_writes_them(
        (va, rkey, dma_len, original, compare) in any::<(u64, u32, u32, u64, u64)>(),
        (psn, msn, syndrome, which) in (any::<u32>(), 0..1u32 << 24, any::<u8>(), 0usize..5),
        template in template(),
        ident in any::<u16>(),
        len in 0usize..4096,
    ) {
        use Operation as O;
        let aeth = Aeth { syndrome: Syndrome::from_u8(syndrome), msn };
        let eth = AtomicEth { va, rkey, swap_or_add: original, compare };
        let (operation, extension) = [
            (O::ReadRequest, Extension::Reth(Reth { va, rkey, dma_len })),
            (O::FetchAdd, Extension::Atomic(eth)),
            (O::ReadResponseOnly, Extension::Aeth(aeth)),
            (O::AtomicAcknowledge, Extension::AtomicAck(aeth, AtomicAckEth { original })),
            (O::Acknowledge, Extension::Aeth(aeth)),
        ][which];
        let opcode = Opcode::new(Transport::Rc, operation);
        let ack_req = which == 0;
        let plain = Plain { operation, dest_qpn: 17, psn: Psn::new(psn), ack_req, extension };
        prop_assert_eq!(Plain::of(&plain.headers()), Some(plain));
        let len = if opcode.has_payload() { len } else { 0 };
        let (mut short, mut long) = ([0xEE; 256], [0xEE; 256]);
        let n = template.emit_plain(&plain, ident, len, &mut short).unwrap();
        prop_assert_eq!(Ok(n), template.emit_headers(&plain.headers(), ident, len, &mut long));
        prop_assert_eq!(&short[..n], &long[..n]);
    }
}
