//! Every frame captured between two Linux hosts.

mod common;

use common::{captured_frames, samples};
use rnic_wire::*;
use std::collections::HashSet;

/// Bits of the IP header on, by byte offset, that routers may change: written down here once more, apart from the code.
fn masked_bits(version: IpVersion, offset: usize) -> u8 {
    match (version, offset) {
        (IpVersion::V4, 1 | 8 | 10 | 11 | 26 | 27 | 32) => 0xFF,
        (IpVersion::V6, 0) => 0x0F,
        (IpVersion::V6, 1 | 2 | 3 | 7 | 46 | 47 | 52) => 0xFF,
        _ => 0,
    }
}

fn icrc_of(covered: &[u8], version: IpVersion) -> [u8; 4] {
    Icrc::finish(Icrc::start(&TableCrc, covered, version))
}

#[test]
fn every_captured_frame_is_emitted_again_byte_for_byte() {
    for (name, bytes) in captured_frames() {
        let frame = Frame::parse(&bytes, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            samples::emit(&frame.repr(), frame.payload()),
            bytes,
            "{name}: {frame}"
        );
    }
}

#[test]
fn the_icrc_of_every_captured_frame_is_right() {
    for (name, bytes) in captured_frames() {
        let frame = Frame::parse(&bytes, None).unwrap();
        assert!(verify_icrc(&TableCrc, frame.datagram()), "{name}: {frame}");
    }
}

#[test]
fn the_icrc_is_wrong_on_any_flipped_covered_bit_and_right_on_any_flipped_masked_bit() {
    let mut whole = HashSet::new();
    for (name, bytes) in captured_frames() {
        let frame = Frame::parse(&bytes, None).unwrap();
        let (version, icrc) = (frame.net().version(), frame.icrc());
        let header_len = frame.payload_range().start - ETHERNET_LEN;
        // Headers are flipped in every frame, payload and pad once per shape of frame: CRC time is what limits this.
        let first_of_shape = whole.insert((version, frame.bth().opcode, frame.bth().pad, bytes.len()));
        let mut covered = bytes[ETHERNET_LEN..bytes.len() - ICRC_LEN].to_vec();
        let end = if first_of_shape { covered.len() } else { header_len };
        for offset in 0..end {
            for bit in 0..8 {
                covered[offset] ^= 1 << bit;
                let masked = masked_bits(version, offset) & 1 << bit != 0;
                let same = icrc_of(&covered, version) == icrc;
                assert_eq!(same, masked, "{name}: byte {offset} of IP, bit {bit}");
                covered[offset] ^= 1 << bit;
            }
        }
    }
    assert!(whole.len() > 30);
}

#[test]
fn a_frame_that_lacks_its_icrc_is_sealed_with_the_one_it_had() {
    for (name, bytes) in captured_frames() {
        let mut sealed = bytes.clone();
        let end = sealed.len() - ICRC_LEN;
        sealed[end..].fill(0xA5);
        Icrc::seal(&TableCrc, &mut sealed, ETHERNET_LEN);
        assert_eq!(sealed, bytes, "{name}");
        assert_eq!(verify_plain(&TableCrc, &sealed), Some(true), "{name}");
    }
}

#[test]
fn what_is_too_short_to_be_sealed_stays_as_it_is() {
    for len in 0..ETHERNET_LEN + ICRC_LEN {
        let mut bytes = vec![7; len];
        Icrc::seal(&TableCrc, &mut bytes, ETHERNET_LEN);
        assert_eq!(bytes, vec![7; len]);
    }
}

#[test]
fn a_flipped_bit_of_the_icrc_itself_is_noticed() {
    for (name, mut bytes) in captured_frames() {
        for bit in 0..32 {
            let at = bytes.len() - 4 + bit / 8;
            bytes[at] ^= 1 << (bit % 8);
            let datagram = Datagram::parse(&bytes, None).unwrap();
            assert!(!verify_icrc(&TableCrc, &datagram), "{name}: ICRC bit {bit}");
            assert_eq!(
                verify_plain(&TableCrc, &bytes),
                Some(false),
                "{name}: ICRC bit {bit}"
            );
            bytes[at] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn no_single_flipped_bit_of_a_captured_frame_passes_unless_it_is_masked() {
    let mut shapes = HashSet::new();
    for (name, mut bytes) in captured_frames() {
        let opcode = Frame::parse(&bytes, None).unwrap().bth().opcode;
        let version = Datagram::parse(&bytes, None).unwrap().net().version();
        if !shapes.insert((version, opcode)) {
            continue;
        }
        let original = bytes.clone();
        for bit in ETHERNET_LEN * 8..bytes.len() * 8 {
            let (at, mask) = (bit / 8, 1u8 << (bit % 8));
            bytes[at] ^= mask;
            let masked = masked_bits(version, at - ETHERNET_LEN) & mask != 0;
            if let Ok(datagram) = Datagram::parse(&bytes, None) {
                assert_eq!(verify_icrc(&TableCrc, &datagram), masked, "{name}: bit {bit}");
            } else {
                // IPv4's checksum notices TOS and TTL; repaired as a router does, the ICRC still holds.
                let mut repaired = bytes.clone();
                if version == IpVersion::V4 && masked {
                    samples::fix_ipv4_checksum(&mut repaired);
                    let datagram = Datagram::parse(&repaired, None).unwrap();
                    assert!(verify_icrc(&TableCrc, &datagram), "{name}: bit {bit}");
                }
            }
            bytes[at] = original[at];
        }
    }
}

#[test]
fn the_golden_cnp_of_a_connectx_4_lx_is_emitted_byte_for_byte() {
    #[rustfmt::skip]
    let golden = [
        0x45, 0xC2, 0x00, 0x3C, 0x71, 0x8C, 0x40, 0x00, 0x40, 0x11, 0x91, 0x61, 0x0A, 0x00, 0x11, 0x01,
        0x0A, 0x00, 0x12, 0x01, 0x00, 0x00, 0x12, 0xB7, 0x00, 0x28, 0x00, 0x00, 0x81, 0x00, 0xFF, 0xFF,
        0x40, 0x00, 0x01, 0x18, 0x00, 0x00, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0x82, 0xFD, 0x00, 0x2A,
    ];
    let mut bytes = vec![0; 12];
    bytes.extend([0x08, 0x00]);
    bytes.extend(golden);

    let frame = Frame::parse(&bytes, None).unwrap();
    assert_eq!(frame.bth().opcode, Opcode::CNP);
    assert_eq!(frame.bth().dest_qpn, 0x118);
    assert!(frame.bth().becn && !frame.bth().fecn && !frame.bth().mig_req);
    assert!(frame.payload().is_empty());
    assert!(verify_icrc(&TableCrc, frame.datagram()));
    assert_eq!(samples::emit(&frame.repr(), &[]), bytes);
}
