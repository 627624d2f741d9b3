//! Path MTUs.

use core::fmt;

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

/// A path MTU: the largest payload of one packet, as one of the five sizes of the specification.
///
/// The discriminants are those of verbs' `enum ibv_mtu`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum Mtu {
    /// 256 bytes.
    M256 = 1,
    /// 512 bytes.
    M512 = 2,
    /// 1024 bytes.
    M1024 = 3,
    /// 2048 bytes.
    M2048 = 4,
    /// 4096 bytes.
    M4096 = 5,
}

impl Mtu {
    /// All five, ascending.
    pub const ALL: [Mtu; 5] = [Mtu::M256, Mtu::M512, Mtu::M1024, Mtu::M2048, Mtu::M4096];

    /// Payload bytes of one full packet.
    #[inline]
    pub const fn bytes(self) -> usize {
        1 << self.log2()
    }

    /// Base-2 logarithm of [`Mtu::bytes`].
    #[inline]
    pub const fn log2(self) -> u32 {
        self as u32 + 7
    }

    /// The MTU of exactly this many bytes.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            256 => Some(Mtu::M256),
            512 => Some(Mtu::M512),
            1024 => Some(Mtu::M1024),
            2048 => Some(Mtu::M2048),
            4096 => Some(Mtu::M4096),
            _ => None,
        }
    }

    /// The MTU of verbs' `enum ibv_mtu`, 1 to 5.
    pub const fn from_verbs(value: u8) -> Option<Self> {
        match value {
            1 => Some(Mtu::M256),
            2 => Some(Mtu::M512),
            3 => Some(Mtu::M1024),
            4 => Some(Mtu::M2048),
            5 => Some(Mtu::M4096),
            _ => None,
        }
    }

    /// The value of verbs' `enum ibv_mtu`, 1 to 5.
    #[inline]
    pub const fn to_verbs(self) -> u8 {
        self as u8
    }

    /// The largest MTU whose packets, of any opcode and over IPv6, fit an IP MTU of `ip_mtu` bytes.
    pub const fn fitting(ip_mtu: usize) -> Option<Self> {
        // IPv6, UDP, the longest transport header that precedes payload, ICRC. Pad is never needed at full size.
        const OVERHEAD: usize = 40 + 8 + crate::opcode::MAX_PAYLOAD_HEADER_LEN + crate::ICRC_LEN;
        let mut i = Mtu::ALL.len();
        while i > 0 {
            i -= 1;
            if Mtu::ALL[i].bytes() + OVERHEAD <= ip_mtu {
                return Some(Mtu::ALL[i]);
            }
        }
        None
    }

    /// How many packets a message of `len` bytes takes: at least one, since an empty message is one packet.
    #[inline]
    pub const fn packets(self, len: u32) -> u32 {
        if len == 0 {
            1
        } else {
            ((len - 1) >> self.log2()) + 1
        }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_converts_to_bytes_and_to_the_verbs_value_and_back() {
        for (mtu, (bytes, verbs)) in
            Mtu::ALL
                .into_iter()
                .zip([(256, 1), (512, 2), (1024, 3), (2048, 4), (4096, 5)])
        {
            assert_eq!((mtu.bytes(), mtu.to_verbs()), (bytes, verbs));
            assert_eq!(Mtu::from_bytes(bytes), Some(mtu));
            assert_eq!(Mtu::from_verbs(verbs), Some(mtu));
        }
        for bad in [0usize, 255, 1500, 8192] {
            assert_eq!(Mtu::from_bytes(bad), None);
        }
        assert_eq!((Mtu::from_verbs(0), Mtu::from_verbs(6)), (None, None));
    }

    #[test]
    fn the_largest_mtu_that_fits_an_ip_mtu_is_what_linux_chooses() {
        assert_eq!(Mtu::fitting(1500), Some(Mtu::M1024));
        assert_eq!(Mtu::fitting(4200), Some(Mtu::M4096));
        assert_eq!(Mtu::fitting(9000), Some(Mtu::M4096));
        assert_eq!(Mtu::fitting(300), None);
    }

    #[test]
    fn packet_counts_round_up_and_an_empty_message_is_one_packet() {
        assert_eq!(Mtu::M256.packets(0), 1);
        assert_eq!(Mtu::M256.packets(256), 1);
        assert_eq!(Mtu::M256.packets(257), 2);
        assert_eq!(Mtu::M256.packets(u32::MAX), 1 << 24);
    }
}
