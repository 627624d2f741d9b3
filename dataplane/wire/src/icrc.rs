//! The invariant CRC: a CRC-32 over all that no router may change (A17.3.3, 7.8.1).

use crate::datagram::Datagram;
use crate::ip::IpVersion;
use crate::opcode::BTH_LEN;
use crate::udp::UDP_LEN;
use crate::{Crc32, ICRC_LEN, IPV4_LEN, IPV6_LEN, Ones};

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

    /// The four bytes that follow payload and pad on the wire: the inverted register, little-endian.
    #[inline]
    pub const fn finish(state: u32) -> [u8; ICRC_LEN] {
        (!state).to_le_bytes()
    }
}

/// Whether the ICRC of a received packet is right.
///
/// To be asked before anything in the packet is acted upon, also for a packet of a reserved opcode.
#[inline]
pub fn verify_icrc(crc: &impl Crc32, datagram: &Datagram<'_>) -> bool {
    let state = Icrc::start(crc, datagram.icrc_covered(), datagram.version());
    Icrc::finish(state) == datagram.icrc()
}
