//! CRC-32, the polynomial of Ethernet: the trait that faster kernels implement, and a portable table form.

/// CRC-32 over bytes: polynomial 0x04C1_1DB7, reflected (0xEDB8_8320), register shifted right.
///
/// `state` is the raw register. A CRC starts at `0xFFFF_FFFF`; each `update` feeds more bytes and returns the new
/// register, so `update(update(s, a), b) == update(s, a ++ b)`; the caller inverts the register at the end.
/// Hence `!update(0xFFFF_FFFF, b"123456789") == 0xCBF4_3926`.
///
/// Implementations must be total: any slice, empty and unaligned ones included.
pub trait Crc32 {
    /// Feeds `bytes` into the register `state` and returns the register after them.
    fn update(&self, state: u32, bytes: &[u8]) -> u32;

    /// As [`Crc32::update`], of bytes of which those bits count as ones that are set in `ones`, byte by byte; what is
    /// beyond [`Ones::LEN`] bytes counts as it is.
    #[inline]
    fn update_with_ones(&self, state: u32, bytes: &[u8], ones: &Ones) -> u32 {
        let (head, tail) = bytes.split_at(bytes.len().min(Ones::LEN));
        let mut own = ones.0;
        for (byte, given) in own.iter_mut().zip(head) {
            *byte |= given;
        }
        let state = self.update(state, &own[..head.len()]);
        if tail.is_empty() {
            return state;
        }
        self.update(state, tail)
    }
}

/// Bits at the beginning of a message that count as ones, whatever they are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Ones([u8; 2 * Ones::LEN]);

impl Ones {
    /// Bytes at the beginning of a message that it can say something about.
    pub const LEN: usize = 64;

    /// The bits set in `bytes`, of which there are at most [`Ones::LEN`].
    pub const fn new(bytes: &[u8]) -> Self {
        let mut ones = [0; 2 * Ones::LEN];
        let mut at = 0;
        while at < bytes.len() && at < Ones::LEN {
            ones[at] = bytes[at];
            at += 1;
        }
        Ones(ones)
    }

    /// The bits, and as many zeros behind them: whoever takes blocks from anywhere in a message can load their ones from
    /// here.
    #[inline]
    pub const fn padded(&self) -> &[u8; 2 * Ones::LEN] {
        &self.0
    }
}

impl<C: Crc32 + ?Sized> Crc32 for &C {
    #[inline]
    fn update(&self, state: u32, bytes: &[u8]) -> u32 {
        (**self).update(state, bytes)
    }

    #[inline]
    fn update_with_ones(&self, state: u32, bytes: &[u8], ones: &Ones) -> u32 {
        (**self).update_with_ones(state, bytes, ones)
    }
}

const POLYNOMIAL: u32 = 0xEDB8_8320;

/// `TABLES[k][b]` is the register left by byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 8] = build_tables();

const fn build_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[k - 1][byte];
            tables[k][byte] = before >> 8 ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        k += 1;
    }
    tables
}

/// The portable form: eight tables, eight bytes per step.
#[derive(Copy, Clone, Debug, Default)]
pub struct TableCrc;

impl Crc32 for TableCrc {
    fn update(&self, state: u32, bytes: &[u8]) -> u32 {
        let (words, tail) = bytes.as_chunks::<8>();
        let mut crc = state;
        for word in words {
            let low = crc ^ u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            crc = TABLES[7][(low & 0xFF) as usize]
                ^ TABLES[6][(low >> 8 & 0xFF) as usize]
                ^ TABLES[5][(low >> 16 & 0xFF) as usize]
                ^ TABLES[4][(low >> 24) as usize]
                ^ TABLES[3][word[4] as usize]
                ^ TABLES[2][word[5] as usize]
                ^ TABLES[1][word[6] as usize]
                ^ TABLES[0][word[7] as usize];
        }
        for byte in tail {
            crc = crc >> 8 ^ TABLES[0][((crc ^ *byte as u32) & 0xFF) as usize];
        }
        crc
    }
}
