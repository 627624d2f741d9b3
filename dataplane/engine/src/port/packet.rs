//! Where things are in a frame, for the wrappers. Frames may be anything: nothing here panics or reads beyond.
use std::ops::Range;

use crate::frame::Frame;

const ADDRESSES: usize = 12;
const ETHERNET: usize = 14;
const TAG: usize = 4;
const TPID_C: u16 = 0x8100;
const TPID_S: u16 = 0x88a8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ROCE_PORT: u16 = 4791;
/// Byte of the BTH that the ICRC does not cover (FECN, BECN, reserved; A17.9.3).
const BTH_UNCOVERED: usize = 4;

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// Where an IP header starts, and its version's EtherType.
fn ip(bytes: &[u8]) -> Option<(usize, u16)> {
    let mut at = ADDRESSES;
    for _ in 0..3 {
        match be16(bytes, at)? {
            TPID_C | TPID_S => at += TAG,
            kind => return Some((at + 2, kind)),
        }
    }
    None
}

/// The bytes whose change the ICRC of a RoCEv2 frame reveals for certain: BTH to ICRC. Of other frames, all behind
/// the Ethernet header.
pub(super) fn covered(bytes: &[u8]) -> Range<usize> {
    roce(bytes).unwrap_or(ETHERNET.min(bytes.len())..bytes.len())
}

/// Whether the byte at `at` of a frame may change without the ICRC showing it, though it lies in [`covered`].
pub(super) fn is_masked(bytes: &[u8], at: usize) -> bool {
    roce(bytes).is_some_and(|range| at == range.start + BTH_UNCOVERED)
}

fn roce(bytes: &[u8]) -> Option<Range<usize>> {
    let (start, kind) = ip(bytes)?;
    let (udp, end, protocol) = match kind {
        IPV4 => {
            let header = usize::from(bytes.get(start)? & 0xf) * 4;
            let total = usize::from(be16(bytes, start + 2)?);
            (start + header, start + total, *bytes.get(start + 9)?)
        }
        IPV6 => {
            let payload = usize::from(be16(bytes, start + 4)?);
            (start + 40, start + 40 + payload, *bytes.get(start + 6)?)
        }
        _ => return None,
    };
    let range = udp + 8..end.min(bytes.len());
    (protocol == UDP && be16(bytes, udp + 2)? == ROCE_PORT && !range.is_empty()).then_some(range)
}

/// Sets "congestion experienced" in the IP header of an ECN-capable packet, and mends the IPv4 checksum (RFC 1624,
/// equation 3). `false`, and no change, for everything else: a router may not mark what is not ECN-capable
/// (RFC 3168, section 5).
pub(super) fn mark_congestion(bytes: &mut [u8]) -> bool {
    let Some((start, kind)) = ip(bytes) else {
        return false;
    };
    let shift = match kind {
        IPV4 => 0,
        IPV6 => 4,
        _ => return false,
    };
    let (Some(before), Some(&class)) = (be16(bytes, start), bytes.get(start + 1)) else {
        return false;
    };
    if class >> shift & 0b11 == 0 {
        return false;
    }
    if kind == IPV4 {
        let Some(checksum) = be16(bytes, start + 10) else {
            return false;
        };
        let mut sum = u32::from(!checksum) + u32::from(!before) + u32::from(before | 0b11);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        bytes[start + 10..start + 12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    bytes[start + 1] = class | 0b11 << shift;
    true
}

/// Copies a frame into `out`, with the VLAN tag that the driver took out of it put back, and tells the length it
/// has; as much is copied as there is room for.
pub(super) fn copy_tagged(frame: &Frame, out: &mut [u8]) -> usize {
    let bytes = frame.bytes();
    let (head, tail) = bytes.split_at(ADDRESSES.min(bytes.len()));
    let tag = frame.vlan().map(|tci| {
        let [a, b] = TPID_C.to_be_bytes();
        let [c, d] = tci.to_be_bytes();
        [a, b, c, d]
    });
    let tag = tag.as_ref().map_or(&[][..], |tag| tag);
    let mut at = 0;
    for part in [head, tag, tail] {
        let room = out.get_mut(at..).unwrap_or_default();
        let n = part.len().min(room.len());
        room[..n].copy_from_slice(&part[..n]);
        at += part.len();
    }
    at
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A RoCEv2 frame over IPv4 with `payload` bytes behind the BTH, ECT(0), and a right checksum.
    pub fn roce_v4(payload: usize) -> Vec<u8> {
        let ib = 12 + payload + 4;
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let total = (20 + 8 + ib) as u16;
        let mut header = [
            0x45, 2, 0, 0, 0, 1, 0x40, 0, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        header[2..4].copy_from_slice(&total.to_be_bytes());
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(header);
        frame.extend([0xc0, 0, 0x12, 0xb7]);
        frame.extend(((8 + ib) as u16).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend((0..ib).map(|i| i as u8));
        frame
    }

    fn sum(header: &[u8]) -> u16 {
        let words = header
            .chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    #[test]
    fn marking_keeps_the_checksum_of_ipv4_right() {
        let mut frame = roce_v4(64);
        assert_eq!(sum(&frame[14..34]), 0xffff);
        assert!(mark_congestion(&mut frame));
        assert_eq!(frame[15] & 3, 3);
        assert_eq!(sum(&frame[14..34]), 0xffff);

        frame = roce_v4(64);
        frame[15] = 0;
        let before = frame.clone();
        assert!(!mark_congestion(&mut frame), "not ECN-capable");
        assert_eq!(frame, before);
    }

    #[test]
    fn marking_finds_the_traffic_class_of_ipv6_behind_a_tag() {
        let mut frame = vec![0; 80];
        frame[12..14].copy_from_slice(&TPID_C.to_be_bytes());
        frame[16..18].copy_from_slice(&IPV6.to_be_bytes());
        frame[18] = 0x60;
        frame[19] = 0x2f;
        assert!(mark_congestion(&mut frame));
        assert_eq!(frame[18..20], [0x60, 0x3f]);
    }

    #[test]
    fn the_covered_part_is_from_bth_to_icrc_without_padding_of_the_link() {
        let mut frame = roce_v4(0);
        let end = frame.len();
        frame.resize(70, 0);
        assert_eq!(covered(&frame), 42..end);
        assert!(is_masked(&frame, 46) && !is_masked(&frame, 45));
        frame[36] = 0;
        assert_eq!(covered(&frame), 14..70, "not RoCE");
        assert!(!is_masked(&frame, 46));
    }

    #[test]
    fn no_frame_is_too_short_or_too_strange() {
        let frame = roce_v4(8);
        for len in 0..frame.len() {
            let mut cut = frame[..len].to_vec();
            let range = covered(&cut);
            assert!(range.end <= len);
            mark_congestion(&mut cut);
        }
        let mut tags = [TPID_C.to_be_bytes(); 20].concat();
        assert!(!mark_congestion(&mut tags));
    }
}
