//! Frames with one thing wrong each, and frames that look wrong but are not.

mod common;

use common::samples::{self, fix_icrc, fix_ipv4_checksum};
use rnic_wire::*;

const IP: usize = ETHERNET_LEN;
const UDP: usize = IP + IPV4_LEN;
const BTH: usize = UDP + UDP_LEN;

fn rc(operation: Operation) -> Opcode {
    Opcode::new(Transport::Rc, operation)
}

/// An untagged IPv4 SEND ONLY of five bytes, so with three of pad.
fn send() -> Vec<u8> {
    let repr = samples::repr(rc(Operation::SendOnly), samples::v4(), VlanTags::NONE);
    samples::emit(&repr, b"hello")
}

fn error_of(frame: &[u8]) -> ParseError {
    Frame::parse(frame, None).expect_err("the frame is broken")
}

/// Sets the lengths of IP and UDP so that they claim `ib_len` bytes from the BTH to the ICRC.
fn set_lengths(frame: &mut [u8], ib_len: u16) {
    frame[IP + 2..IP + 4].copy_from_slice(&(ib_len + 28).to_be_bytes());
    frame[UDP + 4..UDP + 6].copy_from_slice(&(ib_len + 8).to_be_bytes());
    fix_ipv4_checksum(frame);
}

#[test]
fn pad_count_is_minus_length_modulo_four_and_pad_bytes_are_zero_and_covered_by_the_icrc() {
    for len in 0..9 {
        let repr = samples::repr(rc(Operation::SendOnly), samples::v4(), VlanTags::NONE);
        let mut bytes = samples::emit(&repr, &vec![0xAB; len]);
        let frame = Frame::parse(&bytes, None).unwrap();
        let pad = frame.bth().pad as usize;
        assert_eq!(pad, (4 - len % 4) % 4);
        assert_eq!(frame.payload(), vec![0xAB; len]);
        assert_eq!(frame.ib().len(), 12 + len + pad);
        assert!(frame.ib().ends_with(&[0; 3][..pad]));
        for i in 0..pad {
            let at = bytes.len() - ICRC_LEN - 1 - i;
            bytes[at] ^= 1;
            assert!(!verify_icrc(&TableCrc, &Datagram::parse(&bytes, None).unwrap()));
            bytes[at] ^= 1;
        }
    }
}

#[test]
fn ethernet_padding_behind_a_zero_length_send_is_ignored() {
    let repr = samples::repr(rc(Operation::SendOnly), samples::v4(), VlanTags::NONE);
    let mut bytes = samples::emit(&repr, &[]);
    assert_eq!(bytes.len(), 58);
    for tail in [2, 6, 200] {
        bytes.resize(58 + tail, 0x5A);
        let frame = Frame::parse(&bytes, None).unwrap();
        assert!(frame.payload().is_empty());
        assert!(verify_icrc(&TableCrc, frame.datagram()));
        assert_eq!(samples::emit(&frame.repr(), &[]), bytes[..58]);
    }
}

#[test]
fn a_frame_cut_anywhere_is_dropped_and_never_read_past_its_end() {
    for frame in samples::all_frames() {
        for cut in 0..frame.len() {
            assert!(Frame::parse(&frame[..cut], None).is_err());
        }
    }
    assert_eq!(error_of(&[]), ParseError::Runt { have: 0 });
    assert_eq!(error_of(&send()[..13]), ParseError::Runt { have: 13 });
    assert_eq!(
        error_of(&send()[..20]),
        ParseError::IpTruncated { need: 20, have: 6 }
    );
    assert_eq!(
        error_of(&send()[..60]),
        ParseError::IpTruncated { need: 52, have: 46 }
    );
}

#[test]
fn lengths_that_disagree_inside_ip_and_udp_are_dropped() {
    for delta in [-4i16, -1, 1, 4] {
        let mut frame = send();
        let udp = u16::from_be_bytes([frame[UDP + 4], frame[UDP + 5]]);
        let wrong = udp.wrapping_add_signed(delta);
        frame[UDP + 4..UDP + 6].copy_from_slice(&wrong.to_be_bytes());
        assert_eq!(error_of(&frame), ParseError::UdpLength { udp: wrong, ip: udp });
    }
    let mut frame = send();
    frame[IP + 2..IP + 4].copy_from_slice(&27u16.to_be_bytes());
    fix_ipv4_checksum(&mut frame);
    assert_eq!(error_of(&frame), ParseError::IpLength { total: 27 });

    let mut v6 = samples::frame(rc(Operation::SendOnly), samples::v6(), VlanTags::NONE);
    v6[IP + 4..IP + 6].copy_from_slice(&[0, 0]);
    assert_eq!(error_of(&v6), ParseError::IpLength { total: 40 });
}

#[test]
fn a_datagram_too_short_for_its_headers_and_icrc_is_dropped() {
    for ib_len in 0..16 {
        let mut frame = send();
        set_lengths(&mut frame, ib_len);
        let have = ib_len.saturating_sub(4);
        assert_eq!(error_of(&frame), ParseError::HeaderTruncated { need: 12, have });
    }
    let mut write = samples::frame(rc(Operation::WriteOnly), samples::v4(), VlanTags::NONE);
    set_lengths(&mut write, 28);
    assert_eq!(
        error_of(&write),
        ParseError::HeaderTruncated { need: 28, have: 24 }
    );
}

#[test]
fn a_pad_longer_than_the_payload_is_dropped() {
    let repr = samples::repr(rc(Operation::SendOnly), samples::v4(), VlanTags::NONE);
    let mut frame = samples::emit(&repr, &[]);
    frame[BTH + 1] |= 0x30;
    assert_eq!(
        error_of(&frame),
        ParseError::PadExceedsPayload { pad: 3, payload: 0 }
    );
}

#[test]
fn payload_and_pad_that_are_not_a_multiple_of_four_are_dropped() {
    let mut frame = send();
    set_lengths(&mut frame, 12 + 6 + 4);
    assert_eq!(error_of(&frame), ParseError::UnalignedPayload { padded: 6 });
}

#[test]
fn payload_behind_an_opcode_that_has_none_is_dropped() {
    let mut frame = send();
    frame[BTH] = rc(Operation::Acknowledge).to_u8();
    frame[BTH + 1] &= !0x30;
    let opcode = rc(Operation::Acknowledge);
    assert_eq!(error_of(&frame), ParseError::UnexpectedPayload { opcode, len: 4 });
}

#[test]
fn ipv4_options_fragments_bad_checksums_and_wrong_versions_are_each_told_apart() {
    let changed = |at: usize, value: u8| {
        let mut frame = send();
        frame[at] = value;
        frame
    };
    let fixed = |at: usize, value: u8| {
        let mut frame = changed(at, value);
        fix_ipv4_checksum(&mut frame);
        frame
    };
    assert_eq!(error_of(&changed(IP + 8, 63)), ParseError::Ipv4Checksum);
    assert_eq!(
        error_of(&fixed(IP, 0x44)),
        ParseError::Ipv4HeaderLength { ihl: 4 }
    );
    assert_eq!(error_of(&fixed(IP, 0x65)), ParseError::IpVersion { version: 6 });
    assert_eq!(error_of(&fixed(IP + 6, 0x20)), ParseError::Fragment);
    assert_eq!(error_of(&fixed(IP + 7, 0x01)), ParseError::Fragment);

    let mut options = send();
    options.splice(UDP..UDP, [1, 1, 1, 1]);
    options[IP] = 0x46;
    fix_ipv4_checksum(&mut options);
    assert_eq!(error_of(&options), ParseError::Ipv4Options { ihl: 6 });

    let mut v6 = samples::frame(rc(Operation::SendOnly), samples::v6(), VlanTags::NONE);
    v6.splice(IP + IPV6_LEN..IP + IPV6_LEN, [17, 0, 0, 0, 0, 0, 0, 0]);
    v6[IP + 6] = 44;
    assert_eq!(error_of(&v6), ParseError::Fragment);
}

#[test]
fn a_transport_version_other_than_0_is_dropped() {
    let mut frame = send();
    frame[BTH + 1] |= 0x01;
    assert_eq!(error_of(&frame), ParseError::TransportVersion { tver: 1 });
}

#[test]
fn a_reserved_opcode_keeps_its_datagram_so_that_the_icrc_can_be_verified_before_a_nak() {
    let mut frame = send();
    frame[BTH] = 0x1F;
    fix_icrc(&mut frame);
    let Kind::ReservedOpcode {
        datagram,
        opcode,
        dest_qpn,
        psn,
    } = classify(&frame, None)
    else {
        panic!("not recognised as a reserved opcode");
    };
    assert_eq!((opcode, dest_qpn, psn), (0x1F, 0x12_0004, Psn::new(0xFE_DC04)));
    assert_eq!(Transport::of_opcode(opcode), Some(Transport::Rc));
    assert!(verify_icrc(&TableCrc, &datagram));
    assert_eq!(
        error_of(&frame),
        ParseError::ReservedOpcode {
            opcode,
            dest_qpn,
            psn
        }
    );

    frame[BTH] = 0xFF;
    assert!(matches!(
        classify(&frame, None),
        Kind::ReservedOpcode { opcode: 0xFF, .. }
    ));
    assert_eq!(Transport::of_opcode(0xFF), None);
}

#[test]
fn a_vlan_tag_counts_the_same_in_the_frame_and_in_the_metadata() {
    let opcode = rc(Operation::SendOnly);
    let plain = samples::frame(opcode, samples::v4(), VlanTags::NONE);
    let tagged = samples::frame(opcode, samples::v4(), samples::one_tag());
    let double = samples::frame(opcode, samples::v4(), samples::two_tags());

    let beside = Frame::parse(&plain, Some(0x6123)).unwrap();
    let inside = Frame::parse(&tagged, None).unwrap();
    for frame in [&beside, &inside] {
        assert_eq!(frame.datagram().vlan_ids(), [0x123, 0]);
        assert_eq!(frame.datagram().vlan_id(), Some(0x123));
        assert!(verify_icrc(&TableCrc, frame.datagram()));
    }
    // The outer tag of two taken out by the driver, or both left in.
    let half = Frame::parse(&tagged, Some(0x2064)).unwrap();
    let whole = Frame::parse(&double, None).unwrap();
    assert_eq!(half.datagram().vlan_ids(), [0x64, 0x123]);
    assert_eq!(whole.datagram().vlan_ids(), [0x64, 0x123]);
    assert_eq!(whole.datagram().vlan_id(), Some(0x123));

    assert_eq!(Frame::parse(&plain, None).unwrap().datagram().vlan_id(), None);
    let priority_only = Frame::parse(&plain, Some(0xE000)).unwrap();
    assert_eq!(priority_only.datagram().vlan_id(), None);
}

#[test]
fn a_third_vlan_tag_is_dropped_wherever_it_stands() {
    let double = samples::frame(rc(Operation::SendOnly), samples::v4(), samples::two_tags());
    assert_eq!(
        Frame::parse(&double, Some(5)).unwrap_err(),
        ParseError::TooManyVlanTags
    );
    let mut triple = double.clone();
    triple.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    assert_eq!(error_of(&triple), ParseError::TooManyVlanTags);
}

#[test]
fn what_is_not_roce_goes_to_the_slow_path_and_what_is_broken_does_not() {
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let mut icmp = send();
    icmp[IP + 9] = 1;
    let mut dns = send();
    dns[UDP + 2..UDP + 4].copy_from_slice(&53u16.to_be_bytes());
    let mut icmp6 = samples::frame(rc(Operation::SendOnly), samples::v6(), VlanTags::NONE);
    icmp6[IP + 6] = 58;
    for frame in [arp, icmp, dns, icmp6] {
        assert!(matches!(classify(&frame, None), Kind::Other));
    }
    assert!(matches!(classify(&send(), None), Kind::Roce(_)));
    let mut broken = send();
    broken[UDP + 5] ^= 4;
    assert!(matches!(
        classify(&broken, None),
        Kind::Malformed(ParseError::UdpLength { .. })
    ));
    assert!(matches!(
        classify(&[0; 5], None),
        Kind::Malformed(ParseError::Runt { have: 5 })
    ));
}

#[test]
fn a_ud_receive_begins_with_40_bytes_of_which_ipv4_fills_the_last_20() {
    let opcode = Opcode::new(Transport::Ud, Operation::SendOnly);
    let v4 = samples::frame(opcode, samples::v4(), samples::one_tag());
    let grh = Frame::parse(&v4, None).unwrap().datagram().grh();
    assert_eq!(grh[..20], [0; 20]);
    assert_eq!(grh[20..], v4[18..38]);
    let v6 = samples::frame(opcode, samples::v6(), VlanTags::NONE);
    let grh = Frame::parse(&v6, None).unwrap().datagram().grh();
    assert_eq!(grh, v6[14..54]);
}

#[test]
fn gids_are_the_addresses_with_ipv4_mapped() {
    let v4 = samples::v4();
    assert_eq!(
        v4.src_gid(),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 192, 168, 77, 1]
    );
    assert_eq!(v4.dst_gid()[12..], [192, 168, 77, 2]);
    assert_eq!(
        samples::v6().src_gid(),
        [0xFD, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    );
}

#[test]
fn an_ecn_mark_on_the_way_is_seen_and_leaves_the_icrc_right() {
    let mut frame = send();
    assert_eq!(Frame::parse(&frame, None).unwrap().net().ecn(), Ecn::Ect0);
    frame[IP + 1] = Ecn::Ce.on(frame[IP + 1]);
    fix_ipv4_checksum(&mut frame);
    let marked = Frame::parse(&frame, None).unwrap();
    assert_eq!(marked.net().ecn(), Ecn::Ce);
    assert!(verify_icrc(&TableCrc, marked.datagram()));
}

#[test]
fn emitting_refuses_what_no_packet_can_carry() {
    let mut out = vec![0; 70_000];
    let send = samples::repr(rc(Operation::SendOnly), samples::v4(), VlanTags::NONE);
    let too_long = Err(EmitError::PayloadTooLong { len: 65_535 });
    assert_eq!(send.emit_headers(65_535, &mut out), too_long);
    assert_eq!(
        send.emit_headers(usize::MAX, &mut out),
        Err(EmitError::PayloadTooLong { len: usize::MAX })
    );
    let largest = 65_535 - 20 - 8 - 12 - 4 - 3;
    assert_eq!(send.emit_headers(largest, &mut out), Ok(54));

    let ack = samples::repr(rc(Operation::Acknowledge), samples::v4(), VlanTags::NONE);
    let opcode = rc(Operation::Acknowledge);
    assert_eq!(
        ack.emit_headers(1, &mut out),
        Err(EmitError::UnexpectedPayload { opcode, len: 1 })
    );
    for room in 0..54 {
        let too_small = Err(EmitError::BufferTooSmall { need: 54, have: room });
        assert_eq!(send.emit_headers(0, &mut out[..room]), too_small);
    }
    for room in 54..58 {
        assert!(send.emit_frame(&TableCrc, &[], &mut out[..room]).is_err());
    }
    assert_eq!(send.emit_frame(&TableCrc, &[], &mut out[..58]), Ok(58));
}

#[test]
fn every_parse_error_has_a_counter_of_its_own_name() {
    let mut names: Vec<_> = ParseError::NAMES.to_vec();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), ParseError::NAMES.len());
    assert_eq!(ParseError::NAMES[ParseError::Fragment.index()], "ip_fragment");
    assert_eq!(ParseError::NAMES[error_of(&[]).index()], "runt");
}
