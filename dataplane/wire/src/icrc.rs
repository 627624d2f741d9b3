//! The invariant CRC: a CRC-32 over all that no router may change (A17.3.3, 7.8.1).

use crate::datagram::Datagram;
use crate::ethernet::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::ip::{IpVersion, PROTOCOL_UDP};
use crate::opcode::BTH_LEN;
use crate::udp::UDP_LEN;
use crate::{Crc32, ICRC_LEN, IPV4_LEN, IPV6_LEN, Ones, ROCE_UDP_PORT};

/// The CRC register after eight bytes of 0xFF, which stand for the local route header that RoCE does not have.
const SEED: u32 = {
    let mut crc = u32::MAX;
    let mut bit = 0;
    while bit < 64 {
        crc ^= 1;
        crc = crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        bit += 1;
    }
    crc
};

const V4_LEN: usize = IPV4_LEN + UDP_LEN + BTH_LEN;
const V6_LEN: usize = IPV6_LEN + UDP_LEN + BTH_LEN;

/// Bits of IP, UDP and BTH that count as ones: TOS, TTL, both checksums, BTH byte 4.
static V4_ONES: Ones = {
    let mut mask = [0; V4_LEN];
    mask[1] = 0xFF;
    mask[8] = 0xFF;
    mask[10] = 0xFF;
    mask[11] = 0xFF;
    mask[IPV4_LEN + 6] = 0xFF;
    mask[IPV4_LEN + 7] = 0xFF;
    mask[IPV4_LEN + UDP_LEN + 4] = 0xFF;
    Ones::new(&mask)
};

/// The same for IPv6: traffic class, flow label, hop limit, UDP checksum, BTH byte 4.
static V6_ONES: Ones = {
    let mut mask = [0; V6_LEN];
    mask[0] = 0x0F;
    mask[1] = 0xFF;
    mask[2] = 0xFF;
    mask[3] = 0xFF;
    mask[7] = 0xFF;
    mask[IPV6_LEN + 6] = 0xFF;
    mask[IPV6_LEN + 7] = 0xFF;
    mask[IPV6_LEN + UDP_LEN + 4] = 0xFF;
    Ones::new(&mask)
};

/// The steps of an ICRC. The state between them is the raw register of [`Crc32`], so that a fused copy-and-CRC kernel
/// can take the payload's part.
pub struct Icrc;

impl Icrc {
    /// Feeds the headers, from the first byte of IP to the last before the payload, and returns the register.
    ///
    /// The masked fields are read from the IP, UDP and BTH headers at the start of `headers`. A shorter slice gives a
    /// meaningless register, nothing worse. More than the headers may be passed: payload and pad need no masking.
    #[inline]
    pub fn start(crc: &impl Crc32, headers: &[u8], version: IpVersion) -> u32 {
        let ones = match version {
            IpVersion::V4 => &V4_ONES,
            IpVersion::V6 => &V6_ONES,
        };
        crc.update_with_ones(SEED, headers, ones)
    }

    /// Feeds the `pad` (0 to 3) zero bytes after the payload.
    #[inline]
    pub fn pad(crc: &impl Crc32, state: u32, pad: u8) -> u32 {
        match pad {
            0 => state,
            _ => crc.update(state, &[0; 3][..pad.min(3) as usize]),
        }
    }

    /// Completes a frame of which all but the last four bytes is written, and whose IP header stands at `ip_start`. A frame
    /// that is too short for both stays as it is.
    #[inline]
    pub fn seal(crc: &impl Crc32, frame: &mut [u8], ip_start: usize) {
        let Some((covered, last)) = frame.split_last_chunk_mut::<ICRC_LEN>() else {
            return;
        };
        if let Some(covered @ [first, ..]) = covered.get(ip_start..) {
            let version = match first >> 4 {
                4 => IpVersion::V4,
                _ => IpVersion::V6,
            };
            *last = Icrc::finish(Icrc::start(crc, covered, version));
        }
    }

    /// The four bytes that follow payload and pad on the wire: the inverted register, little-endian.
    #[inline]
    pub const fn finish(state: u32) -> [u8; ICRC_LEN] {
        (!state).to_le_bytes()
    }
}

/// The same as [`verify_icrc`] of a frame that was not parsed, if it is an untagged one to RoCE's port, of IPv4 without
/// options or of IPv6, as nearly all are: for who has a burst, whose sums overlap when they are asked for one after the
/// other. `None` of all others.
///
/// It says nothing else about the frame: where [`Datagram::parse`] refuses it, that is what counts.
#[inline]
pub fn verify_plain(crc: &impl Crc32, frame: &[u8]) -> Option<bool> {
    let [kind_high, kind_low, first, ..] = *frame.get(ETHERNET_LEN - 2..)?.first_chunk::<3>()?;
    let ip = frame.get(ETHERNET_LEN..)?;
    let be16 = |at: usize| Some(u16::from_be_bytes(*ip.get(at..)?.first_chunk()?));
    let (version, protocol, total) = match (u16::from_be_bytes([kind_high, kind_low]), first) {
        (ETHERTYPE_IPV4, 0x45) => (IpVersion::V4, *ip.get(9)?, usize::from(be16(2)?)),
        (ETHERTYPE_IPV6, _) => (IpVersion::V6, *ip.get(6)?, usize::from(be16(4)?) + IPV6_LEN),
        _ => return None,
    };
    let udp = version.header_len();
    if protocol != PROTOCOL_UDP || be16(udp + 2)? != ROCE_UDP_PORT || total < udp + UDP_LEN + ICRC_LEN {
        return None;
    }
    let (covered, icrc) = ip.get(..total)?.split_last_chunk::<ICRC_LEN>()?;
    Some(Icrc::finish(Icrc::start(crc, covered, version)) == *icrc)
}

/// Whether the ICRC of a received packet is right.
///
/// To be asked before anything in the packet is acted upon, also for a packet of a reserved opcode.
#[inline]
pub fn verify_icrc(crc: &impl Crc32, datagram: &Datagram<'_>) -> bool {
    let state = Icrc::start(crc, datagram.icrc_covered(), datagram.version());
    Icrc::finish(state) == datagram.icrc()
}
