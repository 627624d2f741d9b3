//! Reproducible bytes.

/// A small generator (SplitMix64): the same seed, the same numbers, on any machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts with these numbers as its seed.
    pub fn new(seed: &[u64]) -> Rng {
        let mut rng = Rng(0x9E37_79B9_7F4A_7C15);
        for word in seed {
            rng.0 ^= word.wrapping_mul(0xD6E8_FEB8_6659_FD93);
            rng.next();
        }
        rng
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)] // it never ends
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(&mut out);
        out
    }
}

/// What memory holds that nobody may touch.
pub const GUARD: u8 = 0xA5;
/// Guard bytes before and after the data of a slot, at least.
const MARGIN: usize = 64;

/// The part of a region that belongs to one message of a round.
#[derive(Copy, Clone, Debug)]
pub struct Slot {
    /// Bytes of every slot.
    pub size: usize,
    /// Offset in the region.
    pub start: usize,
}

impl Slot {
    /// Bytes of a slot for messages of up to `max` bytes.
    pub const fn size(max: usize) -> usize {
        (2 * MARGIN + 64 + max).next_multiple_of(64)
    }

    /// Slot `index` of a region with slots for messages of up to `max` bytes.
    pub const fn new(index: usize, max: usize) -> Slot {
        let size = Self::size(max);
        Slot {
            size,
            start: index * size,
        }
    }

    /// Offset in the region of data with this misalignment, 0 to 63.
    pub const fn data(&self, misaligned: usize) -> usize {
        self.start + MARGIN + misaligned
    }

    /// Puts guards everywhere, and `data` at its place.
    pub fn fill(&self, region: &rnic::Mr, misaligned: usize, data: &[u8]) {
        region.write_at(self.start, &self.image(misaligned, data));
    }

    /// Compares all of it; says where it first differs.
    pub fn compare(&self, region: &rnic::Mr, misaligned: usize, data: &[u8]) -> Result<(), String> {
        let wanted = self.image(misaligned, data);
        let found = region.read_vec(self.start, self.size);
        let Some(at) = wanted.iter().zip(&found).position(|(a, b)| a != b) else {
            return Ok(());
        };
        let wrong = wanted.iter().zip(&found).filter(|(a, b)| a != b).count();
        let (base, len) = (MARGIN + misaligned, data.len());
        Err(format!(
            "{wrong} bytes differ, the first at {} of {len}: {:#04x} instead of {:#04x}",
            at as i64 - base as i64,
            found[at],
            wanted[at]
        ))
    }

    fn image(&self, misaligned: usize, data: &[u8]) -> Vec<u8> {
        let mut image = vec![GUARD; self.size];
        image[MARGIN + misaligned..][..data.len()].copy_from_slice(data);
        image
    }
}
